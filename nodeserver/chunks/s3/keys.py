"""Where in a store things are."""

from __future__ import annotations


def packs_of(bucket: bytes) -> str:
    """Below which key the packs and notes of a bucket are."""
    return f"{bucket.hex()}/packs"


def large_of(bucket: bytes, first: int | None = None) -> str:
    """Below which key the large chunks of a bucket are: all of them, or those whose ids begin with a byte."""
    return f"{bucket.hex()}/chunks" + ("" if first is None else f"/{first:02x}")


def key_of(bucket: bytes, chunk: bytes) -> str:
    """The key of a large chunk."""
    return f"{large_of(bucket, chunk[0])}/{chunk.hex()}"
