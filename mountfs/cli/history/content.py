"""Content of versions, read from the server as far as it is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from mountfs.cli.history.node import Talk
from mountfs.errors import MountError
from nodeserver.content.codec import CorruptChunk, open_chunk
from nodeserver.content.manifest import BadManifest, Unpacker, check_indirect
from nodeserver.protocol.wire import ChunkId, Manifest, Slice

KEPT = 4
"""Chunks kept while two contents are compared, of at most 8 MiB each."""


class Reader:
    """Chunks of one bucket, the last few kept."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._kept: OrderedDict[ChunkId, memoryview] = OrderedDict()

    async def slices(self, manifest: Manifest | None) -> list[Slice]:
        """The slices that make up a content."""
        if manifest is None:
            return []
        if not manifest.indirect:
            return manifest.slices
        try:
            check_indirect(manifest.slices)
            unpacker, found = Unpacker(), list[Slice]()
            for piece in manifest.slices:
                found += unpacker.feed(await self._piece(piece))
            unpacker.end()
        except BadManifest as error:
            raise MountError(f"the list of slices of a content is wrong: {error}") from error
        return found

    async def read(self, slices: Sequence[Slice]) -> bytes:
        """All of a content."""
        return b"".join([await self._piece(piece) for piece in slices])

    async def equal(self, one: Sequence[Slice], other: Sequence[Slice]) -> bool:
        """Whether two contents of the same size are the same; reads only what can differ, up to the first that does."""
        for mine, theirs in _aligned(one, other):
            if mine != theirs and await self._piece(mine) != await self._piece(theirs):
                return False
        return True

    async def _piece(self, piece: Slice) -> bytes | memoryview:
        if not piece.chunk:
            return bytes(piece.length)
        chunk = await self._chunk(piece.chunk)
        return chunk[piece.offset : piece.offset + piece.length]

    async def _chunk(self, chunk: ChunkId) -> memoryview:
        if chunk in self._kept:
            self._kept.move_to_end(chunk)
            return self._kept[chunk]
        stored = await self._talk.client.get_chunk(self._talk.name, chunk)
        try:
            found = memoryview(open_chunk(self._talk.bucket.chunk_key, chunk, stored))
        except CorruptChunk as error:
            raise MountError(f"the server has a damaged chunk: {error}") from error
        self._kept[chunk] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def _aligned(one: Sequence[Slice], other: Sequence[Slice]) -> Iterator[tuple[Slice, Slice]]:
    """The slices of two contents of the same size, cut so that they fit each other."""
    ours, theirs = iter(one), iter(other)
    mine, its = next(ours, None), next(theirs, None)
    while mine and its:
        length = min(mine.length, its.length)
        yield _head(mine, length), _head(its, length)
        mine = _rest(mine, length) or next(ours, None)
        its = _rest(its, length) or next(theirs, None)


def _head(piece: Slice, length: int) -> Slice:
    return Slice(piece.chunk, piece.offset, length)


def _rest(piece: Slice, length: int) -> Slice | None:
    if piece.length == length:
        return None
    return Slice(piece.chunk, piece.offset + length if piece.chunk else 0, piece.length - length)
