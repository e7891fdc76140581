"""What chunks the versions of a bucket refer to, in as much memory as the caller's question takes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator

from nodeserver.chunks import ChunkStore, NoChunk, StoreUnavailable
from nodeserver.content.codec import CorruptChunk, open_chunk
from nodeserver.content.manifest import MAX_SLICES, BadManifest, Unpacker
from nodeserver.metadata import garbage
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.garbage import Content
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.wire import ChunkId, Manifest, Slice, VersionId
from nodeserver.workers.registry import Run

UNREADABLE = (NoChunk, CorruptChunk, BadManifest, StoreUnavailable)
AT_ONCE = 200_000
"""Chunk ids that are looked at in one pass over the versions: about 100 MB with all that goes with it."""

MANY = 1 << 32
"""Slices in a list that was taken by a release without a limit."""

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


async def inner_chunks(
    chunks: ChunkStore, bucket: BucketRow, manifests: Iterable[Manifest], *, sizes: Iterable[int] | None = None
) -> set[ChunkId]:
    """The chunks that the content of indirect manifests is in. Raises ``NoChunk``, ``CorruptChunk``, ``BadManifest``.

    With ``sizes``, the bytes that each should make up, they are those of a commit, and are refused when they are
    longer than a file's may be. Takes memory for two chunks, and for the answer.
    """
    found: set[ChunkId] = set()
    most = MANY if sizes is None else MAX_SLICES
    for manifest, size in zip(manifests, itertools.repeat(None) if sizes is None else sizes, strict=False):
        if not manifest.indirect:
            continue
        length = await walk(chunks, bucket, manifest, lambda some: found.update(piece.chunk for piece in some), most)
        if size is not None and length != size:
            raise BadManifest(f"slices of {length} bytes for a size of {size}")
    return found - {b""}


async def walk(
    chunks: ChunkStore,
    bucket: BucketRow,
    manifest: Manifest,
    visit: Callable[[Iterable[Slice]], None],
    most: int = MANY,
) -> int:
    """Call ``visit``, on a thread, with the slices that an indirect manifest stands for, some at a time; the bytes they
    make up. ``visit`` goes through what it gets. Raises as ``inner_chunks``."""
    unpacker = Unpacker(most)

    def take(outer: Slice, stored: bytes) -> None:
        plain = memoryview(open_chunk(bucket.chunk_key, outer.chunk, stored))
        if outer.offset + outer.length > len(plain):
            raise BadManifest(f"a slice behind the end of chunk {outer.chunk.hex()}")
        visit(unpacker.feed(plain[outer.offset : outer.offset + outer.length]))

    for outer in manifest.slices:
        [(_, stored)] = await chunks.read(bucket.id, [outer.chunk])
        await asyncio.to_thread(take, outer, stored)
    unpacker.end()
    return unpacker.length


def ranges(count: int) -> Iterator[tuple[int, int]]:
    """First bytes of ids, from one on and below another, so that of ``count`` ids a range has about ``AT_ONCE``."""
    step = max(1, 256 * AT_ONCE // max(count, AT_ONCE))
    for first in range(0, 256, step):
        yield first, min(first + step, 256)
