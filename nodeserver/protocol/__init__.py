"""What travels between mountfs and nodeserver: wire types, codecs, error codes, name rules.

This package imports nothing else of ours, so that both sides can depend on it.
"""
