"""What is done to content on a thread of its own before it is sent."""

from __future__ import annotations

from collections.abc import Sequence

from mountfs.local.slabs import read_at
from nodeserver.content.chunker import cut
from nodeserver.content.codec import chunk_id, encode

Plaintext = bytes | memoryview
Piece = tuple[bytes, Plaintext]
"""A chunk's id and plaintext."""
Source = tuple[int | None, int, int]
"""Descriptor (None for zeros), position and length of some bytes."""


def read_and_cut(
    sources: list[bytes | Source], start: int, stops: frozenset[int], final: bool, key: bytes
) -> list[Piece]:
    """The chunks of some bytes that begin at ``start``, up to the first stop, read and cut. Raises OSError."""
    parts = [source if isinstance(source, bytes) else _read(*source) for source in sources]
    window = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
    pieces: list[Piece] = []
    end = 0
    for length in cut(window, final=final):
        piece = window[end : end + length]
        pieces.append((chunk_id(key, piece), piece))
        end += length
        if start + end in stops:
            break
    return pieces


def _read(fd: int | None, position: int, length: int) -> bytes:
    return bytes(length) if fd is None else read_at(fd, position, length)


def name_all(key: bytes, pieces: Sequence[Plaintext]) -> list[Piece]:
    """Plaintexts with their ids."""
    return [(chunk_id(key, piece), piece) for piece in pieces]


def encode_all(pieces: list[Piece]) -> list[tuple[bytes, bytes]]:
    """Ids with the stored forms of their chunks."""
    return [(key, encode(piece)) for key, piece in pieces]
