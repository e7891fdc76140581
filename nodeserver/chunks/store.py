"""The chunk store of a node."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nodeserver.chunks.disk import make_dir
from nodeserver.chunks.files import Files
from nodeserver.chunks.index import Index
from nodeserver.chunks.pack import Packs
from nodeserver.chunks.reading import Located, NoChunk, check, read
from nodeserver.chunks.recovery import discard, recover
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.wire import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from nodeserver.protocol.wire import ChunkId

SMALL = 64 * 1024
"""Stored chunks of fewer bytes go into packs."""
GROUP_BYTES = 32 * 1024 * 1024
"""Stored bytes after which an append takes no further puts along."""
DISK_THREADS = 8
RECENT = 16 * 1024
"""Chunks that are known to be stored without looking: a commit mostly refers to what was put just before."""

T = TypeVar("T")


class Space(NamedTuple):
    """Bytes of the file system the store is on, and those of them that are free to it."""

    capacity_bytes: int
    free_bytes: int


@dataclass
class _Queue:
    """Small chunks of one bucket that wait for the next append."""

    puts: list[tuple[dict[ChunkId, bytes], asyncio.Future[None]]] = field(default_factory=list)

    def take(self) -> tuple[dict[ChunkId, bytes], list[asyncio.Future[None]]]:
        """As many puts as one append takes, oldest first."""
        chunks: dict[ChunkId, bytes] = {}
        done: list[asyncio.Future[None]] = []
        size = 0
        while self.puts and size < GROUP_BYTES:
            items, future = self.puts.pop(0)
            chunks.update(items)
            size += sum(map(len, items.values()))
            done.append(future)
        return chunks, done


class ChunkStore:
    """Chunks of many buckets in one directory. For one process, one asyncio loop.

    What ``put`` returned for is on the disk. Methods raise ``OSError`` when the disk does.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = Files(root)
        self._packs = Packs(root)
        self._writer = ThreadPoolExecutor(1, "chunk-writer")
        self._reader = ThreadPoolExecutor(1, "chunk-index")
        self._disk = ThreadPoolExecutor(DISK_THREADS, "chunk-disk")
        self._damaged: set[tuple[bytes, ChunkId]] = set()
        self._recent: dict[tuple[bytes, ChunkId], None] = {}
        self._drops = 0  # what was found before one must not be remembered after it
        self._queues: dict[bytes, _Queue] = {}
        self._flusher: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, root: Path) -> ChunkStore:
        """Open the store at ``root``, made if absent, after mending what a crash left behind."""
        store = cls(root)
        await asyncio.to_thread(store._open)
        return store

    async def put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        """Store chunks in their stored form; they are durable on return. Those there already are left.

        Raises ``CorruptChunk`` before anything is stored, ``ValueError`` for an id that cannot be
        one, ``OSError`` when the disk fails or is full: chunks then are stored whole or not at all.
        """
        if len(items) == 1 and len(items[0][1]) >= SMALL:
            await self._run(self._disk, partial(self._write_one, bucket, *items[0]))
            self._remember(bucket, [items[0][0]])
            return
        verified = partial(check, items)
        if sum(len(stored) for _, stored in items) < SMALL:
            verified()
        else:
            await self._run(self._disk, verified)
        small = {chunk: stored for chunk, stored in items if len(stored) < SMALL}
        jobs = [
            self._run(self._disk, partial(self._write_file, bucket, chunk, stored))
            for chunk, stored in items
            if len(stored) >= SMALL
        ]
        if small:
            jobs.append(self._append(bucket, small))
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._remember(bucket, [chunk for chunk, _ in items])

    async def missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of ``ids`` that are not stored durably, or that a read found damaged, in their order."""
        unknown = [chunk for chunk in ids if (bucket, chunk) not in self._recent]
        if not unknown:
            return []
        drops = self._drops
        missing = await self._run(self._reader, partial(self._missing, bucket, unknown))
        if drops == self._drops:
            self._remember(bucket, set(unknown).difference(missing))
        return missing

    async def locate(self, bucket: bytes, chunk: ChunkId) -> Located | None:
        """Where a chunk lies; None when it is not stored. Does not look at its content."""
        found = await self._run(self._reader, partial(self._locate, bucket, [chunk]))
        return found.get(chunk)

    async def read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int = MAX_BATCH_BYTES
    ) -> list[tuple[ChunkId, bytes]]:
        """The stored forms of as many of ``ids``, from the first, as fit in ``limit`` bytes; at least one.

        Raises ``NoChunk``, and ``CorruptChunk`` when what is on the disk is damaged: the chunk then
        is missing, until it is put again.
        """
        found = await self._run(self._reader, partial(self._locate, bucket, ids))
        if gone := [chunk for chunk in ids if chunk not in found]:
            raise NoChunk(gone)
        wanted: list[tuple[ChunkId, Located]] = []
        for chunk in ids:
            limit -= found[chunk].length
            if limit < 0 and wanted:
                break
            wanted.append((chunk, found[chunk]))
        try:
            return await self._run(self._disk, partial(read, wanted))
        except CorruptChunk as error:
            self._damaged.add((bucket, error.chunk))
            self._recent.pop((bucket, error.chunk), None)
            raise

    async def drop_bucket(self, bucket: bytes) -> None:
        """Delete all chunks of a bucket. Must not run together with a put into it."""
        trash = await self._run(self._writer, partial(self._drop, bucket))
        self._drops += 1
        self._recent.clear()
        if trash:
            await self._run(self._disk, partial(shutil.rmtree, trash))

    def usage(self) -> Space:
        """The room on the disk."""
        stat = os.statvfs(self._root)
        return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)

    async def close(self) -> None:
        """Finish what was begun and close the files."""
        if self._flusher:
            await self._flusher
        await asyncio.to_thread(self._close)

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def _remember(self, bucket: bytes, stored: Iterable[ChunkId]) -> None:
        for chunk in stored:
            if (bucket, chunk) not in self._damaged:
                self._recent[bucket, chunk] = None
        while len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    async def _append(self, bucket: bytes, chunks: dict[ChunkId, bytes]) -> None:
        """Queue small chunks for the next append, which takes along all that came while one ran."""
        done = asyncio.get_running_loop().create_future()
        self._queues.setdefault(bucket, _Queue()).puts.append((chunks, done))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._queues:
            bucket, queue = next(iter(self._queues.items()))
            chunks, done = queue.take()
            del self._queues[bucket]
            if queue.puts:
                self._queues[bucket] = queue
            error: BaseException | None = None
            try:
                await self._run(self._writer, partial(self._write, bucket, chunks))
            except Exception as caught:
                error = caught
            for future in done:
                if future.cancelled():
                    continue
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
        self._flusher = None

    # On the threads of the store.

    def _open(self) -> None:
        for directory in (self._root / "tmp", self._root / "trash"):
            make_dir(directory)
        self._index = Index.open(self._root / "index.sqlite")
        self._lookups = Index(self._root / "index.sqlite")
        recover(self._root, self._packs, self._index)

    def _close(self) -> None:
        for pool in (self._disk, self._reader, self._writer):
            pool.shutdown()
        self._packs.close()
        self._lookups.close()
        self._index.close()

    def _write(self, bucket: bytes, chunks: dict[ChunkId, bytes]) -> None:
        for chunk in self._index.find(bucket, chunks):
            if (bucket, chunk) not in self._damaged:
                del chunks[chunk]
        if chunks:
            with self._packs.append(bucket, chunks) as appended:
                self._index.add(bucket, appended)
        self._damaged.difference_update([(bucket, chunk) for chunk in chunks])

    def _write_one(self, bucket: bytes, chunk: ChunkId, stored: bytes) -> None:
        check([(chunk, stored)])
        self._write_file(bucket, chunk, stored)

    def _write_file(self, bucket: bytes, chunk: ChunkId, stored: bytes) -> None:
        if (bucket, chunk) in self._damaged or not self._files.has(bucket, chunk):
            self._files.write(bucket, chunk, stored)
            self._damaged.discard((bucket, chunk))

    def _missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        packed = self._lookups.find(bucket, ids)
        return [
            chunk
            for chunk in ids
            if (bucket, chunk) in self._damaged or not (chunk in packed or self._files.has(bucket, chunk))
        ]

    def _locate(self, bucket: bytes, ids: Sequence[ChunkId]) -> dict[ChunkId, Located]:
        packed = self._lookups.find(bucket, ids)
        paths = {number: str(self._packs.path(bucket, number)) for number in {place.pack for place in packed.values()}}
        found: dict[ChunkId, Located] = {}
        for chunk in ids:
            if place := packed.get(chunk):
                found[chunk] = Located(paths[place.pack], place.offset, place.length)
            elif (size := self._files.size(bucket, chunk)) is not None:
                found[chunk] = Located(self._files.path(bucket, chunk), 0, size)
        return found

    def _drop(self, bucket: bytes) -> Path | None:
        self._packs.close(bucket)
        trash = discard(self._root, bucket)
        self._files.forget(bucket)
        self._index.drop(bucket)
        return trash
