"""Sending content: what the bucket lacks of it, before the commit that refers to it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from itertools import accumulate

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from mountfs.local.staging import Content, Snapshot
from mountfs.sync.chunking import Cut, Keep, after_stop, steps
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from mountfs.sync.errors import ungrouped
from nodeserver.client import ClientError
from nodeserver.content.chunker import MIN_CHUNK, cut
from nodeserver.content.codec import MAX_CHUNK, chunk_id, encode
from nodeserver.content.manifest import MAX_INLINE, content_hash, pack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.ids import new_id

log = logging.getLogger(__name__)

WINDOW = 2 * MAX_CHUNK
"""Bytes of a file read and cut at a time."""
READ_BYTES = 1 << 20
"""Bytes read without letting anyone else at the processor."""
GROUP_BYTES = 4 << 20
"""Bytes of small files read and encoded together."""
GROUP_FILES = 256
SMALL_STORED = 64 << 10
"""Stored chunks below this size travel many to a request."""
AT_ONCE = 3
"""Requests with content under way at the same time."""
EARLY_BYTES = 32 << 20
"""A file being written starts to upload when this much of it waits."""

Plaintext = bytes | memoryview


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
    """Sends snapshots."""

    def __init__(self, context: Context, downloads: Downloads, nursery: trio.Nursery) -> None:
        self._context = context
        self.downloads = downloads
        self._nursery = nursery
        self._slots = trio.CapacityLimiter(AT_ONCE)
        self._early: set[int] = set()
        self.bytes_sent = 0

    async def send(self, bucket: BucketState, snapshots: Sequence[tuple[Content, Snapshot]]) -> list[Upload]:
        """Make sure that the nodes have the content of these files. Raises ClientError, OSError."""
        results: dict[int, list[wire.Slice]] = {}
        group: list[Snapshot] = []
        size = 0
        for _, snapshot in snapshots:
            layers = snapshot.layers
            if layers.size > MIN_CHUNK or (snapshot.open and layers.base):
                results[snapshot.ino] = await self._send_large(bucket, snapshot)
                continue
            group.append(snapshot)
            size += layers.size
            if size >= GROUP_BYTES or len(group) >= GROUP_FILES:
                results |= await self._send_group(bucket, group)
                group, size = [], 0
        results |= await self._send_group(bucket, group)
        return [await self._finish(bucket, content, snapshot, results[snapshot.ino]) for content, snapshot in snapshots]

    async def _finish(
        self, bucket: BucketState, content: Content, snapshot: Snapshot, slices: list[wire.Slice]
    ) -> Upload:
        digest = content_hash(bucket.chunk_key, slices)
        manifest = wire.Manifest(slices)
        if len(slices) > MAX_INLINE:
            packed = pack_slices(slices)
            pieces = [packed[start : start + MAX_CHUNK] for start in range(0, len(packed), MAX_CHUNK)]
            ids = await self._send_pieces(bucket, pieces)
            stored = [wire.Slice(key, 0, len(piece)) for key, piece in zip(ids, pieces, strict=True)]
            manifest = wire.Manifest(stored, indirect=True)
        return Upload(content, snapshot, slices, manifest, digest, new_id())

    async def _send_group(self, bucket: BucketState, group: list[Snapshot]) -> dict[int, list[wire.Slice]]:
        """Small files: a chunk each, many to a request."""
        plain = {}
        results: dict[int, list[wire.Slice]] = {}
        for snapshot in group:
            if not any(part.slab or part.chunk for part in snapshot.layers.plan(0, snapshot.layers.size)):
                size = snapshot.layers.size
                results[snapshot.ino] = [wire.Slice(b"", 0, size)] if size else []
                continue
            plain[snapshot.ino] = await self.downloads.read(bucket.id, snapshot.layers, 0, snapshot.layers.size)
        ids = await self._send_pieces(bucket, list(plain.values()))
        for (ino, piece), key in zip(plain.items(), ids, strict=True):
            results[ino] = [wire.Slice(key, 0, len(piece))]
        return results

    async def _send_large(self, bucket: BucketState, snapshot: Snapshot) -> list[wire.Slice]:
        slices: list[wire.Slice] = []
        todo = list(reversed(steps(snapshot.layers, still_open=snapshot.open)))
        while todo:
            step = todo.pop()
            if isinstance(step, Keep):
                slices.append(step.slice)
                continue
            stopped = await self._send_range(bucket, snapshot, step, slices)
            if stopped is not None:
                todo = list(reversed(after_stop(snapshot.layers, stopped)))
        return slices

    async def _send_range(
        self, bucket: BucketState, snapshot: Snapshot, step: Cut, slices: list[wire.Slice]
    ) -> int | None:
        """Cut and send a range; returns where old boundaries were met, if they were."""
        start = step.start
        while start < step.limit:
            end = min(start + WINDOW, step.limit)
            window = await self._read(bucket, snapshot.layers, start, end)
            lengths = await trio.to_thread.run_sync(_cut, window, end == step.limit)
            view, ends = memoryview(window), list(accumulate(lengths))
            stop = next((index for index, cut_at in enumerate(ends) if start + cut_at in step.stops), None)
            if stop is not None:
                ends = ends[: stop + 1]
            pieces: list[Plaintext] = [view[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            ids = await self._send_pieces(bucket, pieces)
            slices += [wire.Slice(key, 0, len(piece)) for key, piece in zip(ids, pieces, strict=True)]
            start += ends[-1]
            if stop is not None:
                return start
        return None

    async def _read(self, bucket: BucketState, layers: Layers, start: int, end: int) -> bytes:
        """As ``downloads.read``, but lets others at the processor every now and then."""
        parts = []
        for offset in range(start, end, READ_BYTES):
            parts.append(await self.downloads.read(bucket.id, layers, offset, min(offset + READ_BYTES, end)))
            await trio.lowlevel.checkpoint()
        return b"".join(parts)

    async def _send_pieces(self, bucket: BucketState, pieces: Sequence[Plaintext]) -> list[bytes]:
        """Store pieces as chunks, those the bucket lacks; returns their ids."""
        if not pieces:
            return []
        ids = await trio.to_thread.run_sync(_ids, bucket.chunk_key, pieces)
        lacking = set(await self._context.client.missing(bucket.name, list(dict.fromkeys(ids))))
        todo = {key: piece for key, piece in zip(ids, pieces, strict=True) if key in lacking}
        small = [(key, piece) for key, piece in todo.items() if len(piece) < SMALL_STORED]
        with ungrouped():
            async with trio.open_nursery() as nursery:
                if small:
                    nursery.start_soon(self._put_small, bucket, small)
                for key, piece in todo.items():
                    if len(piece) >= SMALL_STORED:
                        nursery.start_soon(self._put, bucket, key, piece)
        return ids

    async def _put(self, bucket: BucketState, key: bytes, piece: Plaintext) -> None:
        async with self._slots:
            stored = await trio.to_thread.run_sync(encode, piece)
            await self._context.client.put_chunk(bucket.name, key, stored)
        self._sent(len(stored))

    async def _put_small(self, bucket: BucketState, small: list[tuple[bytes, Plaintext]]) -> None:
        async with self._slots:
            stored = await trio.to_thread.run_sync(_encode_all, small)
            await self._context.client.put_chunks(bucket.name, stored)
        self._sent(sum(len(piece) for _, piece in stored))

    def _sent(self, size: int) -> None:
        self.bytes_sent += size
        self._context.server_full = False
        self._context.made_progress()

    # Files that are written for a long time

    def written(self, content: Content) -> None:
        """A file grew: begin to send it when much of it waits."""
        layers = content.layers
        if content.ino not in self._early and content.private and layers.size - self._start(content) >= EARLY_BYTES:
            self._early.add(content.ino)
            content.users += 1
            self._nursery.start_soon(self._send_early, content)

    def _start(self, content: Content) -> int:
        """Where the first staged run that is worth sending begins."""
        return max(content.early, content.layers.base_size)

    async def _send_early(self, content: Content) -> None:
        try:
            bucket = self._context.buckets.by_id[content.bucket]
            while content.writers and content.layers.size - self._start(content) >= WINDOW:
                if not await self._send_early_window(bucket, content):
                    break
        except (ClientError, OSError) as error:
            log.info("early upload of %s: %s", self._context.inodes.path(content.ino), error)
        finally:
            self._early.discard(content.ino)
            self._context.staging.release(content)

    async def _send_early_window(self, bucket: BucketState, content: Content) -> bool:
        """Send the next chunks of a file that is being written; False when it changes under us."""
        start = self._start(content)
        end = min(start + WINDOW, content.layers.size)
        content.lowest_write = content.layers.size
        window = await self._read(bucket, content.layers, start, end)
        lengths = await trio.to_thread.run_sync(_cut, window, False)
        ends = list(accumulate(lengths))
        pieces: list[Plaintext] = [memoryview(window)[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        ids = await self._send_pieces(bucket, pieces)
        for key, piece in zip(ids, pieces, strict=True):
            if start + len(piece) > content.lowest_write:
                break
            self._context.staging.replace(content, Extent(start, len(piece), 0, 0, content.gen, key))
            start += len(piece)
        moved = start > content.early
        content.early = max(start, content.early)
        return moved


def _cut(window: bytes, final: bool) -> list[int]:
    return cut(window, final=final)


def _ids(key: bytes, pieces: Sequence[Plaintext]) -> list[bytes]:
    return [chunk_id(key, piece) for piece in pieces]


def _encode_all(pieces: list[tuple[bytes, Plaintext]]) -> list[tuple[bytes, bytes]]:
    return [(key, encode(piece)) for key, piece in pieces]
