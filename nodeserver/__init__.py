"""nodeserver: the HTTP server that keeps buckets, and the library that talks to it."""

__version__ = "0.1.0"
