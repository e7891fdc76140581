"""Reading stored chunks from where they lie, and checking them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from nodeserver.chunks.disk import read_at
from nodeserver.content import codec, erasure
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.pieces import CHUNK_ID, FRAGMENT_ID, fragment_of, valid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeserver.protocol.wire import ChunkId


class Located(NamedTuple):
    """Where a stored chunk lies, in bytes: ``path`` may hold other things around it."""

    path: str
    offset: int
    length: int


class NoChunk(LookupError):
    """The bucket lacks the chunks ``ids``."""

    def __init__(self, ids: list[ChunkId]) -> None:
        super().__init__(f"{len(ids)} chunks are not stored, {ids[0].hex()} first")
        self.ids = ids


def check(items: Iterable[tuple[ChunkId, bytes]]) -> None:
    """Check ids and checksums of chunks and fragments.

    Raises ``CorruptChunk``, ``ValueError`` for an id that cannot be one.
    """
    for piece, stored in items:
        if not valid(piece):
            raise ValueError(f"a chunk id has {CHUNK_ID} bytes, that of a fragment {FRAGMENT_ID}: not {piece.hex()}")
        try:
            fragment = fragment_of(piece)
            if fragment is None:
                codec.verify(stored)
            else:
                found = erasure.verify(stored)
                if fragment != (found.coding.k, found.coding.m, found.index):
                    raise CorruptChunk(f"this is fragment {found.index} of {found.coding.k}+{found.coding.m}")
        except (CorruptChunk, erasure.CorruptFragment) as error:
            raise CorruptChunk(f"chunk {piece.hex()}: {error}", piece) from error


def read(wanted: Iterable[tuple[ChunkId, Located]]) -> list[tuple[ChunkId, bytes]]:
    """Chunks in their stored form, checked. Raises ``NoChunk``, ``CorruptChunk``, ``OSError``."""
    with contextlib.ExitStack() as stack:
        open_files: dict[str, int] = {}
        items: list[tuple[ChunkId, bytes]] = []
        for chunk, place in wanted:
            if place.path not in open_files:
                try:
                    open_files[place.path] = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise NoChunk([chunk]) from error
                stack.callback(os.close, open_files[place.path])
            items.append((chunk, read_at(open_files[place.path], place.length, place.offset)))
    check(items)
    return items
