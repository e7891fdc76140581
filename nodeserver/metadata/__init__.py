"""Buckets, their trees, versions and commit logs, in a transactional database.

``store.Metadata`` is the way in. Functions that take a ``Connection`` run inside one transaction that
``database.Database`` opened; ``apply`` knows what operations mean and nothing of SQL.
"""
