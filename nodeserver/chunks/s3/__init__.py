"""Chunks in an S3-compatible store: small ones many to an object, large ones an object each."""

from nodeserver.chunks.s3.address import Address, UnusableAddress
from nodeserver.chunks.s3.store import S3Store

__all__ = ["Address", "S3Store", "UnusableAddress"]
