"""What chunks the versions of a bucket refer to, in as much memory as the caller's question takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Iterator

from nodeserver.chunks import ChunkStore, NoChunk, StoreUnavailable
from nodeserver.content.codec import CorruptChunk, open_chunk
from nodeserver.content.manifest import BadManifest, unpack_slices
from nodeserver.metadata import garbage
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.garbage import Content
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.wire import ChunkId, Manifest, Slice, VersionId
from nodeserver.workers.registry import Run

UNREADABLE = (NoChunk, CorruptChunk, BadManifest, StoreUnavailable)
AT_ONCE = 200_000
"""Chunk ids that are looked at in one pass over the versions: about 100 MB with all that goes with it."""

log = logging.getLogger(__name__)


class References:
    """Of one bucket. Methods raise ``NoChunk``, ``CorruptChunk``, ``BadManifest`` when a manifest cannot be read."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore, bucket: BucketRow) -> None:
        self._metadata = metadata
        self._chunks = chunks
        self._bucket = bucket

    async def spare_needed(self, suspects: set[ChunkId], run: Run, *, without: Collection[VersionId] = ()) -> None:
        """Take out of ``suspects`` what a version refers to, leaving those ``without`` out of account.

        What a commit refers to that is made meanwhile may or may not stay among them.
        """
        async for needed in self._pages(run, without):
            suspects -= needed
            if not suspects:
                return

    async def known(self, run: Run) -> AsyncIterator[set[ChunkId]]:
        """What all versions refer to, some versions at a time, but for what is behind a manifest that cannot be read;
        the chunks of such a manifest are among them."""
        async for needed in self._pages(run, lenient=True):
            yield needed

    async def _pages(
        self, run: Run, without: Collection[VersionId] = (), *, lenient: bool = False
    ) -> AsyncIterator[set[ChunkId]]:
        after = b""
        while True:
            after, needed, indirect = await self._metadata.read(garbage.references, self._bucket.bucket, after, without)
            for manifest in indirect:
                try:
                    needed |= await inner_chunks(self._chunks, self._bucket, [manifest])
                except UNREADABLE as error:
                    if not lenient:
                        raise
                    log.warning("a list of chunks of bucket %s cannot be read: %s", self._bucket.name, error)
            yield needed
            if not after:
                return
            await run.step()

    async def room(self, contents: Iterable[Content], run: Run) -> int:
        """The stored bytes of chunks that these versions, deleted or not, refer to and no other does."""
        contents = list(contents)
        manifests = [content.manifest for content in contents]
        ids = {content.version for content in contents}
        total = 0
        for first, beyond in ranges(sum(len(manifest.slices) for manifest in manifests)):
            inner = await inner_chunks(self._chunks, self._bucket, manifests)
            direct = {piece.chunk for manifest in manifests for piece in manifest.slices if piece.chunk}
            suspects = {chunk for chunk in inner | direct if first <= chunk[0] < beyond}
            await self.spare_needed(suspects, run, without=ids)
            for some in garbage.groups(suspects):
                total += sum((await self._chunks.sizes(self._bucket.id, some)).values())
        return total


async def inner_chunks(chunks: ChunkStore, bucket: BucketRow, manifests: Iterable[Manifest]) -> set[ChunkId]:
    """The chunks that the content of indirect manifests is in. Raises ``NoChunk``, ``CorruptChunk``, ``BadManifest``.

    Takes memory for one such manifest, and for the answer.
    """
    found: set[ChunkId] = set()
    for manifest in manifests:
        if manifest.indirect:
            slices = await inner_slices(chunks, bucket, manifest)
            found.update(piece.chunk for piece in slices if piece.chunk)
    return found


async def inner_slices(chunks: ChunkStore, bucket: BucketRow, manifest: Manifest) -> list[Slice]:
    """The slices that an indirect manifest stands for. Raises as ``inner_chunks``."""
    ids = [piece.chunk for piece in manifest.slices]
    parts: list[tuple[ChunkId, bytes]] = []
    while len(parts) < len(ids):
        parts += await chunks.read(bucket.id, ids[len(parts) :])
    return await asyncio.to_thread(_unpacked, bucket.chunk_key, manifest, parts)


def ranges(count: int) -> Iterator[tuple[int, int]]:
    """First bytes of ids, from one on and below another, so that of ``count`` ids a range has about ``AT_ONCE``."""
    step = max(1, 256 * AT_ONCE // max(count, AT_ONCE))
    for first in range(0, 256, step):
        yield first, min(first + step, 256)


def _unpacked(chunk_key: bytes, manifest: Manifest, parts: list[tuple[ChunkId, bytes]]) -> list[Slice]:
    content = [
        open_chunk(chunk_key, chunk, stored)[piece.offset : piece.offset + piece.length]
        for (chunk, stored), piece in zip(parts, manifest.slices, strict=True)
    ]
    return unpack_slices(b"".join(content))
