"""Chunks on the disk of a node."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nodeserver.chunks.appending import Appender
from nodeserver.chunks.claims import Claims
from nodeserver.chunks.compaction import WASTE, Moving, move, retire, survivors
from nodeserver.chunks.disk import idle_priority, make_dir, read_at
from nodeserver.chunks.engine import ChunkStore, Space
from nodeserver.chunks.files import Files
from nodeserver.chunks.index import Index
from nodeserver.chunks.pack import Packs
from nodeserver.chunks.reading import Located, NoChunk, check, read
from nodeserver.chunks.recovery import bucket_of, discard, recover
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import CHUNK_ID, chunk_of
from nodeserver.protocol.wire import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from nodeserver.protocol.wire import ChunkId

SMALL = 64 * 1024
"""Stored chunks of fewer bytes go into packs; fragments never do."""
DISK_THREADS = 8
SAMPLED = 10_000
"""Files of a bucket that are looked at for an estimate of all."""
RECENT = 16 * 1024
"""Chunks that are known to be stored without looking: a commit mostly refers to what was put just before."""

T = TypeVar("T")


class DiskStore(ChunkStore):
    """The chunks below one directory. Methods raise ``OSError`` when the disk does."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = Files(root)
        self._packs = Packs(root)
        self._writer = ThreadPoolExecutor(1, "chunk-writer")
        self._reader = ThreadPoolExecutor(1, "chunk-index")
        self._disk = ThreadPoolExecutor(DISK_THREADS, "chunk-disk")
        self._upkeep = ThreadPoolExecutor(1, "chunk-upkeep")
        self._claims = Claims()
        self._damaged: set[tuple[bytes, ChunkId]] = set()
        self._recent: dict[tuple[bytes, ChunkId], None] = {}
        self._drops = 0  # what was found before one must not be remembered after it
        self._met: set[tuple[bytes, ChunkId]] = set()
        self._scrub = ThreadPoolExecutor(1, "chunk-scrub", idle_priority)
        self.verified: Callable[[ChunkId], int] = lambda _: 0
        """When the checksum of a piece was last found right, for who looks at them all."""
        self._stuck: dict[tuple[bytes, int], int] = {}
        """Packs that could not be compacted, and how many of their bytes were dead then."""
        self._appender = Appender(lambda bucket, chunks: self._run(self._writer, partial(self._write, bucket, chunks)))

    @classmethod
    async def open(cls, root: Path) -> DiskStore:
        """Open the store at ``root``, made if absent, after mending what a crash left behind."""
        store = cls(root)
        await asyncio.to_thread(store._open)
        return store

    async def put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        async with self.using(bucket, [chunk for chunk, _ in items]):
            await self._put(bucket, items)

    async def missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        unknown = [chunk for chunk in ids if (bucket, chunk) not in self._recent]
        if not unknown:
            return []
        drops = self._drops
        missing = set(await self._run(self._reader, partial(self._missing, bucket, unknown)))
        if drops == self._drops:
            self._remember(bucket, set(unknown) - missing)
        return [chunk for chunk in unknown if chunk in missing or self._claims.dying(bucket, chunk)]

    async def locate(self, bucket: bytes, chunk: ChunkId) -> Located | None:
        """Where a chunk lies; None when it is not stored. Does not look at its content.

        It may be moved at any time: who does not find it there looks again.
        """
        return (await self._places(bucket, [chunk])).get(chunk)

    async def sizes(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, int]:
        return {chunk: place.length for chunk, place in (await self._places(bucket, ids)).items()}

    async def get(self, bucket: bytes, chunk: ChunkId) -> bytes:
        # Path-send would keep the bytes out of Python, but costs granian 1.1 s of a core a GiB, and this 0.7.
        for _ in range(2):
            place = await self.locate(bucket, chunk)
            if place is None:
                break
            with suppress(FileNotFoundError):  # it was deleted in this moment, or moved
                return await self._run(self._disk, partial(_load, place))
        raise NoChunk([chunk])

    async def read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int = MAX_BATCH_BYTES
    ) -> list[tuple[ChunkId, bytes]]:
        return await self._read(bucket, ids, limit, self._disk)

    async def _read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int, pool: ThreadPoolExecutor
    ) -> list[tuple[ChunkId, bytes]]:
        try:
            return await self._read_once(bucket, ids, limit, pool)
        except NoChunk:
            return await self._read_once(bucket, ids, limit, pool)  # its pack may have gone between look-up and open

    async def _read_once(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int, pool: ThreadPoolExecutor
    ) -> list[tuple[ChunkId, bytes]]:
        found = await self._places(bucket, ids)
        if gone := [chunk for chunk in ids if chunk not in found]:
            raise NoChunk(gone)
        wanted: list[tuple[ChunkId, Located]] = []
        for chunk in ids:
            limit -= found[chunk].length
            if limit < 0 and wanted:
                break
            wanted.append((chunk, found[chunk]))
        try:
            return await self._run(pool, partial(read, wanted))
        except CorruptChunk as error:
            self._damaged.add((bucket, error.chunk))
            self._met.add((bucket, error.chunk))
            self._recent.pop((bucket, error.chunk), None)
            raise

    def using(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractAsyncContextManager[None]:
        return self._claims.use(bucket, ids)

    @contextmanager
    def doom(self, bucket: bytes, ids: Collection[ChunkId]) -> Iterator[list[ChunkId]]:
        with self._claims.doom(bucket, ids) as doomed:
            self.forget(bucket, doomed)
            try:
                yield doomed
            finally:
                self._drops += 1

    async def delete(self, bucket: bytes, ids: Sequence[ChunkId]) -> None:
        await self._run(self._writer, partial(self._index.remove, bucket, ids))
        await self._run(self._disk, partial(self._delete_files, bucket, ids))
        self._damaged.difference_update((bucket, chunk) for chunk in ids)

    def forget(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        self._drops += 1
        for chunk in ids:
            self._recent.pop((bucket, chunk), None)

    async def count(self, bucket: bytes) -> int:
        return await self._run(self._upkeep, partial(self._count, bucket))

    async def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> set[ChunkId]:
        return await self._run(self._upkeep, partial(self._older, bucket, first, beyond, before_ns))

    # Pieces: what a node of a cluster has.

    async def find(self, bucket: bytes, chunks: Sequence[ChunkId]) -> list[Held]:
        """The pieces there are of some chunks. Does not look at their content."""
        found = await self._run(self._reader, partial(self._find, bucket, chunks))
        for held in found:
            held.verified_ns = max(held.stored_ns, self.verified(held.piece))
        return [held for held in found if (bucket, held.piece) not in self._damaged]

    async def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """All pieces whose ids begin with a byte from ``first`` on and below ``beyond``, ascending."""
        found = await self._run(self._upkeep, partial(self._listing, bucket, first, beyond))
        return [held for held in found if (bucket, held.piece) not in self._damaged]

    async def inspect(self, bucket: bytes, pieces: Sequence[ChunkId]) -> list[tuple[ChunkId, bytes]]:
        """As ``read``; the disk serves all others first."""
        return await self._read(bucket, pieces, MAX_BATCH_BYTES, self._scrub)

    async def quarantine(self, bucket: bytes, piece: ChunkId) -> None:
        """Take a damaged piece out of the store; what is left of it is kept beside, for who wants to look at it."""
        place = await self.locate(bucket, piece)
        if place is not None:
            await self._run(self._disk, partial(self._set_aside, place, f"{bucket.hex()}-{piece.hex()}"))
        with self.doom(bucket, [piece]) as unused:
            await self.delete(bucket, unused)

    def take_met(self) -> list[tuple[bytes, ChunkId]]:
        """Bucket and chunk of pieces that were found damaged since this was asked last."""
        found = [(bucket, chunk_of(piece)) for bucket, piece in self._met]
        self._met.clear()
        return found

    async def totals(self) -> tuple[int, int]:
        """How many pieces there are, and their bytes; estimated when there are very many."""
        return await self._run(self._upkeep, self._totals)

    async def buckets(self) -> list[bytes]:
        """The buckets that something is stored of."""
        return await self._run(self._upkeep, self._buckets)

    async def compact(self, bucket: bytes, step: Callable[[], Awaitable[None]]) -> int:
        freed = 0
        for number, dead in await self._run(self._writer, partial(self._index.wasteful, bucket, WASTE)):
            if self._stuck.get((bucket, number)) == dead:
                continue
            await self._run(self._writer, partial(self._packs.seal, bucket, number))
            moving = survivors(self._packs, self._upkeep_index, bucket, number)
            while (some := await self._run(self._upkeep, partial(_next, moving))) is not None:
                if some:
                    freed -= await self._run(self._writer, partial(move, self._packs, self._index, bucket, some))
                await step()
            size = await self._run(self._writer, partial(retire, self._packs, self._index, bucket, number))
            if not size:
                left = dict(await self._run(self._writer, partial(self._index.wasteful, bucket, WASTE)))
                self._stuck[bucket, number] = left.get(number, 0)
            freed += size
        return freed

    async def drop_bucket(self, bucket: bytes) -> None:
        trash = await self._run(self._writer, partial(self._drop, bucket))
        self._drops += 1
        self._recent.clear()
        if trash:
            await self._run(self._disk, partial(shutil.rmtree, trash))

    def usage(self) -> Space:
        stat = os.statvfs(self._root)
        return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)

    async def close(self) -> None:
        await self._appender.finish()
        await asyncio.to_thread(self._close)

    async def _put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        if len(items) == 1 and not _packed(*items[0]):
            await self._run(self._disk, partial(self._write_one, bucket, *items[0]))
            self._remember(bucket, [items[0][0]])
            return
        verified = partial(check, items)
        if sum(len(stored) for _, stored in items) < SMALL:
            verified()
        else:
            await self._run(self._disk, verified)
        small = {chunk: stored for chunk, stored in items if _packed(chunk, stored)}
        jobs = [
            self._run(self._disk, partial(self._write_file, bucket, chunk, stored))
            for chunk, stored in items
            if chunk not in small
        ]
        if small:
            jobs.append(self._appender.append(bucket, small))
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        self._remember(bucket, [chunk for chunk, _ in items])

    async def _places(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, Located]:
        """Where those of ``ids`` lie that are stored."""
        return await self._run(self._reader, partial(self._locate, bucket, ids))

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def _remember(self, bucket: bytes, stored: Iterable[ChunkId]) -> None:
        for chunk in stored:
            if (bucket, chunk) not in self._damaged:
                self._recent[bucket, chunk] = None
        while len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    # On the threads of the store.

    def _open(self) -> None:
        for directory in (self._root / "tmp", self._root / "trash"):
            make_dir(directory)
        self._index = Index.open(self._root / "index.sqlite")
        self._lookups = Index(self._root / "index.sqlite")
        self._upkeep_index = Index(self._root / "index.sqlite")
        recover(self._root, self._packs, self._index)

    def _close(self) -> None:
        for pool in (self._scrub, self._upkeep, self._disk, self._reader, self._writer):
            pool.shutdown()
        self._packs.close()
        self._lookups.close()
        self._upkeep_index.close()
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

    def _locate(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, Located]:
        packed = self._lookups.find(bucket, ids)
        paths = {number: str(self._packs.path(bucket, number)) for number in {place.pack for place in packed.values()}}
        found: dict[ChunkId, Located] = {}
        for chunk in ids:
            if place := packed.get(chunk):
                found[chunk] = Located(paths[place.pack], place.offset, place.length)
            elif (size := self._files.size(bucket, chunk)) is not None:
                found[chunk] = Located(self._files.path(bucket, chunk), 0, size)
        return found

    def _delete_files(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        for chunk in ids:
            self._files.delete(bucket, chunk)

    def _count(self, bucket: bytes) -> int:
        return self._upkeep_index.count(bucket) + self._files.count(bucket)

    def _older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> set[ChunkId]:
        packed = self._upkeep_index.older(bucket, first, beyond, before_ns)
        return {*packed, *self._files.older(bucket, first, beyond, before_ns)}

    def _find(self, bucket: bytes, chunks: Sequence[ChunkId]) -> list[Held]:
        found = self._lookups.stored(bucket, chunks)
        packed = {held.piece for held in found}
        fragmented = self._files.has_fragments(bucket)
        for chunk in chunks:
            if chunk not in packed and self._files.has(bucket, chunk) and (held := self._files.held(bucket, chunk)):
                found.append(held)
            if fragmented:
                found += self._files.fragments(bucket, chunk)
        return sorted(found, key=_piece)

    def _listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        found = [
            *self._upkeep_index.listing(bucket, first, beyond),
            *self._files.listing(bucket, first, beyond),
        ]
        return sorted({held.piece: held for held in found}.values(), key=_piece)

    def _set_aside(self, place: Located, name: str) -> None:
        directory = self._root / "quarantine"
        make_dir(directory)
        (directory / name).write_bytes(_load(place))

    def _totals(self) -> tuple[int, int]:
        pieces = size = 0
        for bucket in self._buckets():
            seen = Counter[int]()
            for first in range(256):
                for held in (*self._files.listing(bucket, first, first + 1),):
                    seen[0] += 1
                    seen[1] += held.size
                if seen[0] > SAMPLED:
                    seen = Counter({key: value * 256 // (first + 1) for key, value in seen.items()})
                    break
            packed = self._upkeep_index.totals(bucket)
            pieces, size = pieces + seen[0] + packed[0], size + seen[1] + packed[1]
        return pieces, size

    def _buckets(self) -> list[bytes]:
        return sorted(bucket for path in self._root.iterdir() if (bucket := bucket_of(path)))

    def _drop(self, bucket: bytes) -> Path | None:
        self._packs.close(bucket)
        trash = discard(self._root, bucket)
        self._files.forget(bucket)
        self._index.drop(bucket)
        return trash


def _next(moving: Iterator[Moving]) -> Moving | None:
    try:
        return next(moving, None)
    except FileNotFoundError:  # the pack went with its bucket
        return None


def _packed(piece: bytes, stored: bytes) -> bool:
    """Whether a piece goes into a pack: its records name whole chunks."""
    return len(stored) < SMALL and len(piece) == CHUNK_ID


def _piece(held: Held) -> bytes:
    return held.piece


def _load(place: Located) -> bytes:
    with Path(place.path).open("rb") as file:
        return read_at(file.fileno(), place.length, place.offset)
