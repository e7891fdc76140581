"""Sending content: what the bucket lacks of it, before the commit that refers to it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from mountfs.local.staging import Content, Snapshot
from mountfs.sync.chunking import PLANNED_HERE, Cut, Keep, Plan, make_plan
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from mountfs.sync.errors import ungrouped
from mountfs.sync.pieces import Piece, Plaintext, Source, encode_all, name_all, read_and_cut
from nodeserver.client import ClientError
from nodeserver.content.chunker import MIN_CHUNK
from nodeserver.content.codec import MAX_CHUNK, encode
from nodeserver.content.manifest import MAX_INLINE, content_hash, pack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.ids import new_id

log = logging.getLogger(__name__)

WINDOW = MAX_CHUNK
"""Bytes of a file read and cut at a time."""
WINDOWS = 4
"""Windows, or groups of small files, in memory at the same time."""
GROUP_BYTES = 4 << 20
"""Bytes of small files read and encoded together."""
GROUP_FILES = 256
SMALL_STORED = 64 << 10
"""Stored chunks below this size travel many to a request."""
AT_ONCE = 4
"""Requests with content under way at the same time."""
EARLY_BYTES = 32 << 20
"""A file being written starts to upload when this much of it waits, or as much as fills its share of the cache."""
EARLY_SHARE = 4


def early_start(content: Content) -> int:
    """Where the first staged run that is worth sending before the file is closed may begin."""
    return max(content.early, content.layers.base_size)


def early_cut(content: Content) -> Cut | None:
    """The first staged run that is worth sending before the file is closed."""
    start = early_start(content)
    for step in Plan(content.layers, still_open=False, start=start):
        if isinstance(step, Cut):
            start = step.start
            if step.limit - start >= WINDOW:
                return step
    # What is too small stays so, but for the last of it: it is looked at once, not at every write.
    content.early = start
    return None


@dataclasses.dataclass
class Upload:
    """A file's content that is on the nodes and waits for its commit."""

    content: Content
    snapshot: Snapshot
    slices: list[wire.Slice]
    manifest: wire.Manifest
    hash: bytes
    version: bytes


class Uploads:
    """Sends snapshots.

    A pipeline: while the chunks of one window are sent, the next is read and cut, as many at a time
    as ``WINDOWS`` allows. What is sent goes on in the background, in the nursery passed along, whose
    end is the moment when the nodes have it all.
    """

    def __init__(self, context: Context, downloads: Downloads, nursery: trio.Nursery) -> None:
        self._context = context
        self.downloads = downloads
        self._nursery = nursery
        self._windows = trio.Semaphore(WINDOWS)
        self._slots = trio.CapacityLimiter(AT_ONCE)
        self._early: set[int] = set()
        self._early_from = max(WINDOW, min(EARLY_BYTES, context.cache.cap // EARLY_SHARE))
        self.bytes_sent = 0

    async def send(self, bucket: BucketState, snapshots: Sequence[tuple[Content, Snapshot]]) -> list[Upload]:
        """Make sure that the nodes have the content of these files. Raises ClientError, OSError."""
        results: dict[int, list[wire.Slice]] = {}
        group: list[Snapshot] = []
        size = 0
        with ungrouped():
            async with trio.open_nursery() as sending:
                for _, snapshot in snapshots:
                    layers = snapshot.layers
                    if layers.size > MIN_CHUNK or (snapshot.open and layers.base):
                        results[snapshot.ino] = await self._send_large(bucket, snapshot, sending)
                        continue
                    group.append(snapshot)
                    size += layers.size
                    if size >= GROUP_BYTES or len(group) >= GROUP_FILES:
                        results |= await self._send_group(bucket, group, sending)
                        group, size = [], 0
                results |= await self._send_group(bucket, group, sending)
                return [
                    await self._finish(bucket, content, snapshot, results[snapshot.ino], sending)
                    for content, snapshot in snapshots
                ]

    async def _finish(
        self, bucket: BucketState, content: Content, snapshot: Snapshot, slices: list[wire.Slice], sending: trio.Nursery
    ) -> Upload:
        digest = content_hash(bucket.chunk_key, slices)
        manifest = wire.Manifest(slices)
        if len(slices) > MAX_INLINE:
            packed = pack_slices(slices)
            pieces = [packed[start : start + MAX_CHUNK] for start in range(0, len(packed), MAX_CHUNK)]
            ids = await self._send_pieces(bucket, pieces, sending)
            stored = [wire.Slice(key, 0, len(piece)) for key, piece in zip(ids, pieces, strict=True)]
            manifest = wire.Manifest(stored, indirect=True)
        return Upload(content, snapshot, slices, manifest, digest, new_id())

    async def _send_group(
        self, bucket: BucketState, group: list[Snapshot], sending: trio.Nursery
    ) -> dict[int, list[wire.Slice]]:
        """Small files: a chunk each, many to a request."""
        plain = {}
        results: dict[int, list[wire.Slice]] = {}
        for snapshot in group:
            if not any(part.slab or part.chunk for part in snapshot.layers.plan(0, snapshot.layers.size)):
                size = snapshot.layers.size
                results[snapshot.ino] = [wire.Slice(b"", 0, size)] if size else []
                continue
            plain[snapshot.ino] = await self.downloads.read(
                bucket.id, snapshot.layers, 0, snapshot.layers.size, verify=True
            )
        ids = await self._send_pieces(bucket, list(plain.values()), sending)
        for (ino, piece), key in zip(plain.items(), ids, strict=True):
            results[ino] = [wire.Slice(key, 0, len(piece))]
        return results

    async def _send_pieces(
        self, bucket: BucketState, pieces: Sequence[Plaintext], sending: trio.Nursery
    ) -> list[bytes]:
        """Begin to store pieces as chunks; returns their ids."""
        if not pieces:
            return []
        make = partial(trio.to_thread.run_sync, name_all, bucket.chunk_key, pieces)
        return [key for key, _ in await self._begin(bucket, make, sending)]

    async def _send_large(self, bucket: BucketState, snapshot: Snapshot, sending: trio.Nursery) -> list[wire.Slice]:
        layers = snapshot.layers
        slices: list[wire.Slice] = []
        plan = await make_plan(layers, still_open=snapshot.open)
        while step := next(plan, None):
            if isinstance(step, Keep):
                slices.append(step.slice)
                if not len(slices) % PLANNED_HERE:
                    await trio.lowlevel.checkpoint()
                continue
            end = await self._send_range(bucket, layers, step, slices, sending)
            if not plan.met(end):
                # the layers changed: an earlier commit of the file was acknowledged
                plan = await make_plan(layers, still_open=snapshot.open, start=end)
        return slices

    async def _send_range(
        self,
        bucket: BucketState,
        layers: Layers,
        step: Cut,
        slices: list[wire.Slice],
        sending: trio.Nursery,
        *,
        final: bool = True,
    ) -> int:
        """Cut a range and begin to send it; returns where it ends: at the limit, or where old boundaries were met.

        Unless ``final``, more will follow, and what could still grow at the end is left out.
        """
        start = step.start
        while start < step.limit and (start == step.start or start not in step.stops):
            end = min(start + WINDOW, step.limit)
            last = final and end == step.limit
            pieces = await self._begin(
                bucket, partial(self._cut, bucket, layers, start, end, step.stops, last), sending
            )
            if not pieces:
                break
            for key, piece in pieces:
                slices.append(wire.Slice(key, 0, len(piece)))
                start += len(piece)
        return start

    async def _cut(
        self, bucket: BucketState, layers: Layers, start: int, end: int, stops: frozenset[int], final: bool
    ) -> list[Piece]:
        """The chunks of [start, end), up to the first stop; none when the layers change meanwhile.

        Staged bytes are read in a thread: they stay as long as the layers refer to them.
        """
        plan = layers.plan(start, end)
        files = {slab: self._context.slabs.open(slab) for slab in {part.slab for part in plan if part.slab}}
        try:
            sources: list[bytes | Source] = []
            for part in plan:
                if part.chunk:
                    sources.append(await self.downloads.read(bucket.id, layers, part.offset, part.end, verify=True))
                else:
                    sources.append((files.get(part.slab), part.position, part.length))
            work = partial(read_and_cut, sources, start, stops, final, bucket.chunk_key)
            pieces = await trio.to_thread.run_sync(work)
        finally:
            for fd in files.values():
                os.close(fd)
        return pieces if layers.plan(start, end) == plan else []

    # The second half of the pipeline

    async def _begin(
        self, bucket: BucketState, make: Callable[[], Awaitable[list[Piece]]], sending: trio.Nursery
    ) -> list[Piece]:
        """What ``make`` returns, which begins when there is room for it in memory. It is sent in the background."""
        await self._windows.acquire()
        try:
            pieces = await make()
        except BaseException:
            self._windows.release()
            raise
        sending.start_soon(self._deliver, bucket, pieces)
        return pieces

    async def _deliver(self, bucket: BucketState, pieces: list[Piece]) -> None:
        """Store the pieces that the bucket lacks."""
        small = {key: piece for key, piece in pieces if len(piece) < SMALL_STORED}
        large = {key: piece for key, piece in pieces if len(piece) >= SMALL_STORED}
        try:
            async with trio.open_nursery() as nursery:
                if small:
                    nursery.start_soon(self._put_small, bucket, list(small.items()))
                if large:
                    for key in await self._context.nodes.missing(bucket, list(large)):
                        nursery.start_soon(self._put, bucket, key, large[key])
        finally:
            self._windows.release()

    async def _put(self, bucket: BucketState, key: bytes, piece: Plaintext) -> None:
        async with self._slots:
            stored = await trio.to_thread.run_sync(encode, piece)
            await self._context.nodes.put(bucket, [(key, stored)])
        self._sent(len(stored))

    async def _put_small(self, bucket: BucketState, small: list[Piece]) -> None:
        async with self._slots:
            stored = await trio.to_thread.run_sync(encode_all, small)
            await self._context.nodes.put(bucket, stored)
        self._sent(sum(len(piece) for _, piece in stored))

    def _sent(self, size: int) -> None:
        self.bytes_sent += size
        self._context.server_full = False
        self._context.made_progress()

    # Files that are written for a long time

    def written(self, content: Content) -> None:
        """A file grew: begin to send it when much of it waits."""
        layers = content.layers
        if (
            content.ino not in self._early
            and content.private
            and not self._context.staging.has_lost(content.ino)
            and layers.size - early_start(content) >= self._early_from
        ):
            self._early.add(content.ino)
            content.users += 1
            self._nursery.start_soon(self._send_early, content)

    async def _send_early(self, content: Content) -> None:
        try:
            bucket = self._context.buckets.by_id[content.bucket]
            while content.writers and await self._send_early_part(bucket, content):
                pass
        except (ClientError, OSError) as error:
            log.info("early upload of %s: %s", self._context.inodes.path(content.ino), error)
        finally:
            self._early.discard(content.ino)
            self._context.staging.release(content)

    async def _send_early_part(self, bucket: BucketState, content: Content) -> bool:
        """Send some more of a file that is being written; False when there is too little, or it changes under us."""
        step = early_cut(content)
        if step is None:
            return False
        start, gen = step.start, content.gen
        content.lowest_write = content.layers.size
        slices: list[wire.Slice] = []
        part = Cut(start, min(start + self._early_from, step.limit))
        with ungrouped():
            async with trio.open_nursery() as sending:
                await self._send_range(bucket, content.layers, part, slices, sending, final=False)
        for piece in slices:
            if start + piece.length > content.lowest_write or content.gen != gen:
                return False
            self._context.staging.replace(content, Extent(start, piece.length, 0, 0, gen, piece.chunk))
            start += piece.length
            content.early = start
        self._context.made_progress()
        return bool(slices)
