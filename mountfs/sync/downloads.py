"""Getting chunks: cached, on their way already, or asked for; verified before anyone sees a byte."""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from mountfs.local.slabs import write_at
from mountfs.local.space import Place
from mountfs.sync.context import Context
from mountfs.sync.errors import deadline, os_error
from nodeserver.client import ClientError, Refused
from nodeserver.protocol.errors import Code

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Requests under way at the same time."""
RECENT_BYTES = 32 << 20
"""Plaintext kept in memory."""
AHEAD_BYTES = 16 << 20
"""Bytes fetched ahead of a sequential reader."""
TOGETHER_BYTES = 4 << 20
"""Bytes of them in one request."""
MANY_CHUNKS = 256
"""Chunks asked for in one request."""

Plaintext = bytes | bytearray | memoryview


class _Coming:
    """A chunk that was asked for; once ``done``, what came of it."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk
        self.done = trio.Event()
        self.plaintext: Plaintext | None = None
        self.error: OSError | None = None

    async def wait(self) -> Plaintext:
        """The chunk. Raises OSError."""
        await self.done.wait()
        if self.plaintext is None:
            error = self.error or OSError(errno.EIO, "the mount ends")
            raise OSError(error.errno, error.strerror) from self.error
        return self.plaintext


class Downloads:
    """Chunks by id."""

    def __init__(self, context: Context, nursery: trio.Nursery) -> None:
        self._context = context
        self._nursery = nursery
        self._slots = trio.CapacityLimiter(AT_ONCE)
        self._coming: dict[bytes, _Coming] = {}
        self._recent: OrderedDict[bytes, Plaintext] = OrderedDict()
        self._recent_bytes = 0

    async def read(self, bucket: int, layers: Layers, start: int, end: int, *, verify: bool = False) -> bytes:
        """The bytes [start, end) of a file. Raises OSError.

        With ``verify`` cached chunks are compared with their ids, for what is to be sent again: damage here
        must not become damage there.

        What is here is read without an ``await`` after the plan: later it may lie elsewhere.
        """
        plan = layers.plan(start, end)
        parts = [self._here(part, verify=verify) for part in plan]
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]
        lacking = {index: self._ask(bucket, plan[index].chunk) for index, part in enumerate(parts) if part is None}
        if lacking:
            with deadline(self._context.config.data_deadline):
                for index, coming in lacking.items():
                    parts[index] = _range(await coming.wait(), plan[index])
        return b"".join([part for part in parts if part is not None])

    def _here(self, part: Extent, *, verify: bool) -> Plaintext | None:
        """The bytes of a part, None when they have to be downloaded."""
        slabs = self._context.slabs
        if part.slab:
            return slabs.read(part.slab, part.position, part.length)
        if not part.chunk:
            return bytes(part.length)
        recent = self._recent.get(part.chunk)
        if recent is not None:
            return _range(recent, part)
        where = self._context.cache.locate(part.chunk, verify=verify)
        if where is None:
            return None
        slab, position, length = where
        if part.position + part.length > length:
            raise OSError(errno.EIO, f"chunk {part.chunk.hex()} is shorter than its slice")
        return slabs.read(slab, position + part.position, part.length)

    async def chunk(self, bucket: BucketState, chunk: bytes) -> Plaintext:
        """The whole plaintext of a chunk. Raises OSError."""
        recent = self._recent.get(chunk)
        if recent is not None:
            return recent
        where = self._context.cache.locate(chunk, verify=True)
        if where is not None:
            return self._context.slabs.read(*where)
        return await self._ask(bucket.id, chunk).wait()

    def lacks(self, chunk: bytes) -> bool:
        """Whether a chunk is neither here nor on its way."""
        return chunk not in self._coming and chunk not in self._recent and self._context.cache.locate(chunk) is None

    def ahead(self, bucket: int, layers: Layers, position: int) -> int:
        """Begin to fetch what a sequential reader at ``position`` will want; returns where to call again.

        Who has read much will read much more: one who looks at the beginning of a file only gets no more than that.
        """
        window = left = min(AHEAD_BYTES, max(position, 1))
        group: dict[bytes, None] = {}
        size = 0
        for piece in layers.slices_from(position):
            if left <= 0:
                break
            left -= piece.length
            if piece.chunk and self.lacks(piece.chunk):
                group[piece.chunk] = None
                size += piece.length
                if size >= TOGETHER_BYTES:
                    self.fetch_many(bucket, group)
                    group, size = {}, 0
        self.fetch_many(bucket, group)
        return max(layers.slice_end(position), position + window // 3)

    def fetch_many(self, bucket: int, chunks: Iterable[bytes]) -> None:
        """Begin to fetch chunks, those that are not here, in one request; a read of one waits for it."""
        asked = [self._coming.setdefault(chunk, _Coming(chunk)) for chunk in dict.fromkeys(chunks) if self.lacks(chunk)]
        for start in range(0, len(asked), MANY_CHUNKS):
            group = asked[start : start + MANY_CHUNKS]
            self._nursery.start_soon(self._fetch_many, self._context.buckets.by_id[bucket], group)

    def _ask(self, bucket: int, chunk: bytes) -> _Coming:
        """A chunk that is not here: on its way now if it was not."""
        coming = self._coming.get(chunk)
        if coming is None:
            coming = self._coming[chunk] = _Coming(chunk)
            self._nursery.start_soon(self._fetch, self._context.buckets.by_id[bucket], coming)
        return coming

    # In tasks of their own: whoever waits may give up, and others may wait too

    async def _fetch(self, bucket: BucketState, coming: _Coming) -> None:
        try:
            async with self._slots:
                self._arrived(coming, await self._download(bucket, coming.chunk))
                await self._store([coming])
        except OSError as error:
            log.debug("chunk %s: %s", coming.chunk.hex(), error)
            coming.error = error
        finally:
            self._settle(coming)

    async def _fetch_many(self, bucket: BucketState, group: list[_Coming]) -> None:
        """As one: an answer with a flaw is no answer, and each is asked for alone."""
        try:
            async with self._slots:
                plain = await self._context.nodes.open(bucket, [coming.chunk for coming in group])
                for coming, plaintext in zip(group, plain, strict=True):
                    self._arrived(coming, plaintext)
                await self._store(group)
        except ClientError as error:
            log.info("%d chunks of bucket %s: %s", len(group), bucket.name, error)
            for coming in group:
                self._nursery.start_soon(self._fetch, bucket, coming)
        except BaseException:
            for coming in group:
                self._settle(coming)
            raise
        else:
            for coming in group:
                self._settle(coming)

    async def _download(self, bucket: BucketState, chunk: bytes) -> Plaintext:
        try:
            return (await self._context.nodes.open(bucket, [chunk]))[0]
        except ClientError as error:
            if isinstance(error, Refused) and error.code is Code.CORRUPT:
                self._context.report(0, f"chunk {chunk.hex()} of bucket {bucket.name} is corrupt on the nodes")
            raise os_error(error) from error

    def _arrived(self, coming: _Coming, plaintext: Plaintext) -> None:
        """Let those who wait have it."""
        coming.plaintext = plaintext
        coming.done.set()
        self._recent_bytes += len(plaintext) - len(self._recent.pop(coming.chunk, b""))
        self._recent[coming.chunk] = plaintext
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def _settle(self, coming: _Coming) -> None:
        del self._coming[coming.chunk]
        coming.done.set()

    async def _store(self, group: Sequence[_Coming]) -> None:
        """Put chunks that arrived into the cache, if it has room."""
        pieces = [(coming.chunk, coming.plaintext) for coming in group if coming.plaintext is not None]
        size = sum(len(plaintext) for _, plaintext in pieces)
        try:
            if size and self._context.cache.has_room(size):
                await self._write(pieces, self._context.cache.space.reserve(size))
        except OSError as error:
            log.warning("%d bytes are not cached: %s", size, error)

    async def _write(self, pieces: list[tuple[bytes, Plaintext]], place: Place) -> None:
        cache = self._context.cache
        try:
            await trio.to_thread.run_sync(write_at, place.fd, place.position, [plaintext for _, plaintext in pieces])
            position = place.position
            with self._context.db.transaction():
                for chunk, plaintext in pieces:
                    cache.add(chunk, place.slab, position, len(plaintext))
                    position += len(plaintext)
        finally:
            cache.space.settle(place)


def _range(whole: Plaintext, part: Extent) -> memoryview:
    """The bytes of a chunk that ``part`` asks for."""
    if part.position + part.length > len(whole):
        raise OSError(errno.EIO, f"chunk {part.chunk.hex()} is shorter than its slice")
    return memoryview(whole)[part.position : part.position + part.length]
