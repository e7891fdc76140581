"""Getting chunks: cached, on their way already, or asked for; verified before anyone sees a byte."""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from itertools import islice

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from mountfs.sync.context import Context
from mountfs.sync.errors import deadline, os_error
from nodeserver.client import ClientError
from nodeserver.content.codec import CorruptChunk, open_chunk

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Chunks asked for at the same time."""
RECENT_BYTES = 32 << 20
"""Plaintext kept in memory."""
AHEAD = 6
"""Chunks fetched ahead of a sequential reader."""

Plaintext = bytes | memoryview


class Downloads:
    """Chunks by id."""

    def __init__(self, context: Context, nursery: trio.Nursery) -> None:
        self._context = context
        self._nursery = nursery
        self._slots = trio.CapacityLimiter(AT_ONCE)
        self._coming: dict[bytes, trio.Event] = {}
        self._recent: OrderedDict[bytes, Plaintext] = OrderedDict()
        self._recent_bytes = 0

    async def read(self, bucket: int, layers: Layers, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file. Raises OSError.

        What is here is read without an ``await`` after the plan: later it may lie elsewhere.
        """
        plan = layers.plan(start, end)
        parts = [self._here(part) for part in plan]
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]
        with deadline(self._context.config.data_deadline):
            for index, part in enumerate(parts):
                if part is None:
                    wanted = plan[index]
                    whole = await self.chunk(self._context.buckets.by_id[bucket], wanted.chunk)
                    parts[index] = _range(whole, wanted)
        return b"".join([part for part in parts if part is not None])

    def _here(self, part: Extent) -> Plaintext | None:
        """The bytes of a part, None when they have to be downloaded."""
        slabs = self._context.slabs
        if part.slab:
            return slabs.read(part.slab, part.position, part.length)
        if not part.chunk:
            return bytes(part.length)
        recent = self._recent.get(part.chunk)
        if recent is not None:
            return _range(recent, part)
        where = self._context.cache.locate(part.chunk)
        if where is None:
            return None
        slab, position, length = where
        if part.position + part.length > length:
            raise OSError(errno.EIO, f"chunk {part.chunk.hex()} is shorter than its slice")
        return slabs.read(slab, position + part.position, part.length)

    async def chunk(self, bucket: BucketState, chunk: bytes) -> Plaintext:
        """The whole plaintext of a chunk. Raises OSError."""
        while True:
            recent = self._recent.get(chunk)
            if recent is not None:
                return recent
            where = self._context.cache.locate(chunk)
            if where is not None:
                return self._context.slabs.read(*where)
            coming = self._coming.get(chunk)
            if coming is None:
                break
            await coming.wait()
        done = self._coming[chunk] = trio.Event()
        try:
            async with self._slots:
                plaintext = await self._download(bucket, chunk)
            self._keep(chunk, plaintext)
        finally:
            del self._coming[chunk]
            done.set()
        return plaintext

    async def _download(self, bucket: BucketState, chunk: bytes) -> Plaintext:
        for attempt in ("first", "second"):
            try:
                stored = await self._context.client.get_chunk(bucket.name, chunk)
                return await trio.to_thread.run_sync(open_chunk, bucket.chunk_key, chunk, stored)
            except ClientError as error:
                raise os_error(error) from error
            except CorruptChunk as error:
                log.error("chunk %s of bucket %s, %s answer: %s", chunk.hex(), bucket.name, attempt, error)
        self._context.report(0, f"chunk {chunk.hex()} of bucket {bucket.name} is corrupt on the node")
        raise OSError(errno.EIO, f"chunk {chunk.hex()} is corrupt")

    def _keep(self, chunk: bytes, plaintext: Plaintext) -> None:
        self._recent[chunk] = plaintext
        self._recent_bytes += len(plaintext)
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])
        context = self._context
        if context.cache.has_room(len(plaintext)):
            slab, position = context.slabs.append(plaintext)
            with context.db.transaction():
                context.cache.add(chunk, slab, position, len(plaintext))

    def ahead(self, bucket: int, layers: Layers, position: int) -> int:
        """Begin to fetch what a sequential reader at ``position`` will want; returns where to call again."""
        for piece in islice(layers.slices_from(position), AHEAD):
            chunk = piece.chunk
            if (
                chunk
                and chunk not in self._coming
                and chunk not in self._recent
                and not self._context.cache.locate(chunk)
            ):
                self._nursery.start_soon(self._prefetch, self._context.buckets.by_id[bucket], chunk)
        return layers.slice_end(position)

    async def _prefetch(self, bucket: BucketState, chunk: bytes) -> None:
        try:
            await self.chunk(bucket, chunk)
        except OSError as error:
            log.debug("read-ahead of chunk %s: %s", chunk.hex(), error)


def _range(whole: Plaintext, part: Extent) -> memoryview:
    """The bytes of a chunk that ``part`` asks for."""
    if part.position + part.length > len(whole):
        raise OSError(errno.EIO, f"chunk {part.chunk.hex()} is shorter than its slice")
    return memoryview(whole)[part.position : part.position + part.length]
