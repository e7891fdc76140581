"""What a file's content becomes: chunks cut by content, their ids and stored form, manifests.

Pure functions: nothing here reads a file, a socket or a clock, and all of it may run on any thread.
"""
