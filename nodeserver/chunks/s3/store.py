"""Chunks in an S3-compatible store."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nodeserver.chunks.appending import Appender
from nodeserver.chunks.claims import Claims
from nodeserver.chunks.engine import ChunkStore, Space
from nodeserver.chunks.reading import NoChunk, check
from nodeserver.chunks.s3.catalogue import Catalogue
from nodeserver.chunks.s3.format import NO_PACK, NOTE, PACK, Gone, encode_note, new_name
from nodeserver.chunks.s3.index import gone_from
from nodeserver.chunks.s3.keys import key_of, large_of, packs_of
from nodeserver.chunks.s3.objects import BadRange, NoObject, Objects
from nodeserver.chunks.s3.packing import compact, write_pack
from nodeserver.chunks.s3.recent import Recent
from nodeserver.chunks.store import SMALL
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.wire import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nodeserver.chunks.s3.address import Address
    from nodeserver.chunks.s3.index import Place
    from nodeserver.protocol.wire import ChunkId

CAPACITY = 1 << 60
"""Bytes that a store has room for when nobody says how many: 1 EiB."""
FRESH = 1.0
"""Seconds for which a server relies on what it saw of the packs of others."""
FULL = 60.0
"""Seconds after which it lists all packs again, when it is asked for chunks."""
SAMPLE = 64
"""Large chunks from which their number is estimated, or else they are counted."""
MARKER = "nodeserver-chunks"
"""The object that says what everything else in the store is."""
FORMAT = b'{"format": 1}\n'
_BUCKET = re.compile("[0-9a-f]{32}")


class BadStore(OSError):
    """What is at the address was not written by a server that this one understands."""


class S3Store(ChunkStore):
    """The chunks below one address, which other servers may use too."""

    def __init__(self, objects: Objects, index: Path, address: str, capacity: int | None) -> None:
        self._objects = objects
        self._capacity = capacity or CAPACITY
        self._claims = Claims()
        self._recent = Recent()
        self._catalogue = Catalogue(objects, index, address, self._forget)
        self._appenders: defaultdict[bytes, Appender] = defaultdict(lambda: Appender(self._write_pack))
        self._damaged: set[tuple[bytes, ChunkId]] = set()
        self._large: dict[bytes, int] = {}
        """Bytes of large chunks, about, as of the last count."""
        self._packed = 0

    @classmethod
    async def open(cls, address: Address, index: Path, capacity: int | None = None) -> S3Store:
        """Open the store at an address, with the index in a file; ``capacity`` is in bytes.

        Raises ``NoCredentials``, ``StoreUnavailable``, ``BadStore``.
        """
        objects = Objects(address)
        try:
            found = await objects.get(MARKER)
        except NoObject:
            await objects.put(MARKER, FORMAT)
        else:
            if found != FORMAT:
                raise BadStore(f"{address} has a format that this release does not know: {found[:80]!r}")
        store = cls(objects, index, f"{address.endpoint or ''} {address}", capacity)
        store._packed = await store._catalogue.ask(lambda index: index.size())
        return store

    async def put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        await _check(items)
        async with self.using(bucket, [chunk for chunk, _ in items]):
            known = {chunk for chunk, _ in items if self._recent.size(bucket, chunk)}
            small = {chunk: stored for chunk, stored in items if len(stored) < SMALL}
            jobs = [self._put_large(bucket, chunk, stored) for chunk, stored in items if len(stored) >= SMALL]
            if small:
                jobs.append(self._appenders[bucket].append(bucket, small))
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            for chunk, stored in items:
                if chunk not in known:  # a put that found it believed does not make the belief younger
                    self._recent.add(bucket, chunk, len(stored))

    async def missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        if all(self._recent.size(bucket, chunk, FRESH) for chunk in ids):
            return []
        await self._catalogue.refresh(bucket, FRESH, FULL)
        unknown = [chunk for chunk in ids if not self._recent.size(bucket, chunk)]
        found = await self._sizes(bucket, unknown)
        return [
            chunk
            for chunk in unknown
            if chunk not in found or (bucket, chunk) in self._damaged or self._claims.dying(bucket, chunk)
        ]

    async def sizes(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, int]:
        await self._catalogue.refresh(bucket, FRESH, FULL)
        return await self._sizes(bucket, ids)

    async def get(self, bucket: bytes, chunk: ChunkId) -> bytes:
        [(_, stored)] = await self._load(bucket, [chunk])
        return stored

    async def read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int = MAX_BATCH_BYTES
    ) -> list[tuple[ChunkId, bytes]]:
        ids = await self._about(bucket, ids, limit)
        sizes = await self._sizes(bucket, ids)
        if len(sizes) < len(set(ids)):
            await self._catalogue.refresh(bucket, 0, FRESH)
            sizes = await self._sizes(bucket, ids)
        if gone := [chunk for chunk in ids if chunk not in sizes]:
            raise NoChunk(gone)
        wanted: list[ChunkId] = []
        for chunk in ids:
            limit -= sizes[chunk]
            if limit < 0 and wanted:
                break
            wanted.append(chunk)
        return await self._load(bucket, wanted)

    def using(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractAsyncContextManager[None]:
        return self._claims.use(bucket, ids)

    @contextmanager
    def doom(self, bucket: bytes, ids: Collection[ChunkId]) -> Iterator[list[ChunkId]]:
        with self._claims.doom(bucket, ids) as doomed:
            self._forget(bucket, doomed)
            try:
                yield doomed
            finally:
                self._forget(bucket, doomed)

    async def delete(self, bucket: bytes, ids: Sequence[ChunkId]) -> None:
        if not ids:
            return
        places = await self._catalogue.ask(lambda index: index.find(bucket, ids))
        packs = {chunk: bytes.fromhex(place.pack.removesuffix(PACK)) for chunk, place in places.items()}
        gone = [Gone(packs.get(chunk, NO_PACK), chunk) for chunk in ids]
        name = new_name(NOTE)
        # The note first: once it is there, no server takes the chunks for stored.
        await self._objects.put(f"{packs_of(bucket)}/{name}", encode_note(gone))
        await self._catalogue.ask(lambda index: index.note(bucket, name, gone_from(gone)))
        await self._objects.delete([key_of(bucket, chunk) for chunk in ids])
        self._damaged.difference_update((bucket, chunk) for chunk in ids)

    def forget(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        self._forget(bucket, ids)
        self._catalogue.distrust(bucket)

    async def count(self, bucket: bytes) -> int:
        await self._catalogue.refresh(bucket, 0, 0)
        self._packed = await self._catalogue.ask_slowly(lambda index: index.size())
        sizes = [entry.size async for page in self._objects.list(large_of(bucket, 0)) for entry in page]
        factor = 256
        if len(sizes) < SAMPLE:
            sizes = [entry.size async for page in self._objects.list(large_of(bucket)) for entry in page]
            factor = 1
        self._large[bucket] = factor * sum(sizes)
        return factor * len(sizes) + await self._catalogue.ask_slowly(lambda index: index.count(bucket))

    async def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> set[ChunkId]:
        await self._catalogue.refresh(bucket, FULL, FULL)
        found = set(await self._catalogue.ask_slowly(lambda index: index.older(bucket, first, beyond, before_ns)))
        whole = first == 0 and beyond == 256
        for prefix in [large_of(bucket)] if whole else [large_of(bucket, byte) for byte in range(first, beyond)]:
            async for page in self._objects.list(prefix):
                found.update(bytes.fromhex(entry.key.rpartition("/")[2]) for entry in page if entry.time_ns < before_ns)
        return found

    # For who looks at everything.

    async def buckets(self) -> list[bytes]:
        """The buckets that something is stored of."""
        found = [_BUCKET.fullmatch(name) for name in await self._objects.directories()]
        return sorted(bytes.fromhex(match[0]) for match in found if match)

    async def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """All chunks whose ids begin with a byte from ``first`` on and below ``beyond``."""
        await self._catalogue.refresh(bucket, FRESH, FULL)
        found = await self._catalogue.ask_slowly(lambda index: index.listing(bucket, first, beyond))
        for byte in range(first, beyond):
            async for page in self._objects.list(large_of(bucket, byte)):
                found += [
                    Held(bytes.fromhex(entry.key.rpartition("/")[2]), entry.size, entry.time_ns) for entry in page
                ]
        return found

    async def inspect(self, bucket: bytes, pieces: Sequence[ChunkId]) -> list[tuple[ChunkId, bytes]]:
        """As ``read``."""
        return await self.read(bucket, pieces)

    async def quarantine(self, bucket: bytes, piece: ChunkId) -> None:
        """Nothing more: a chunk that was found damaged is taken for missing, and stored anew when somebody has it."""

    async def compact(self, bucket: bytes, step: Callable[[], Awaitable[None]]) -> int:
        return await compact(self._objects, self._catalogue, bucket, step)

    async def drop_bucket(self, bucket: bytes) -> None:
        async for page in self._objects.list(bucket.hex()):
            await self._objects.delete([entry.key for entry in page])
        await self._catalogue.ask(lambda index: index.drop(bucket))
        self._appenders.pop(bucket, None)
        self._large.pop(bucket, None)
        self._recent.clear()

    def usage(self) -> Space:
        used = self._packed + sum(self._large.values())
        return Space(self._capacity, max(0, self._capacity - used))

    async def close(self) -> None:
        for appender in list(self._appenders.values()):
            await appender.finish()
        await asyncio.to_thread(self._catalogue.close)

    async def _put_large(self, bucket: bytes, chunk: ChunkId, stored: bytes) -> None:
        if not self._recent.size(bucket, chunk):
            await self._objects.put(key_of(bucket, chunk), stored)
            self._damaged.discard((bucket, chunk))
            self._large[bucket] = self._large.get(bucket, 0) + len(stored)

    async def _write_pack(self, bucket: bytes, chunks: dict[ChunkId, bytes]) -> None:
        known = await self._catalogue.ask(lambda index: index.find(bucket, chunks))
        new = {
            chunk: stored for chunk, stored in chunks.items() if chunk not in known or (bucket, chunk) in self._damaged
        }
        if new:
            behind = max((place.pack for place in known.values()), default="")
            self._packed += await write_pack(self._objects, self._catalogue, bucket, new, behind)
            self._damaged.difference_update((bucket, chunk) for chunk in new)

    async def _about(self, bucket: bytes, ids: Sequence[ChunkId], limit: int) -> Sequence[ChunkId]:
        """As many of ``ids``, from the first, as may fit in ``limit`` bytes, and one."""
        packed = await self._catalogue.ask(lambda index: index.find(bucket, ids))
        if any(chunk not in packed and not self._recent.size(bucket, chunk) for chunk in ids):
            await self._catalogue.refresh(bucket, FRESH, FULL)
            packed = await self._catalogue.ask(lambda index: index.find(bucket, ids))
        for number, chunk in enumerate(ids):
            limit -= packed[chunk].length if chunk in packed else SMALL
            if limit < 0:
                return ids[: number + 1]
        return ids

    async def _sizes(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, int]:
        packed = await self._catalogue.ask(lambda index: index.find(bucket, ids))
        sizes = {chunk: place.length for chunk, place in packed.items()}
        others = [chunk for chunk in ids if chunk not in packed]
        found = await asyncio.gather(*(self._size(bucket, chunk) for chunk in others))
        return sizes | {chunk: size for chunk, size in zip(others, found, strict=True) if size}

    async def _size(self, bucket: bytes, chunk: ChunkId) -> int:
        """The bytes of a large chunk, 0 when it is not there."""
        if not (size := self._recent.size(bucket, chunk)):
            try:
                size = await self._objects.size(key_of(bucket, chunk))
            except NoObject:
                return 0
            if (bucket, chunk) not in self._damaged and not self._claims.dying(bucket, chunk):
                self._recent.add(bucket, chunk, size)
        return size

    async def _load(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[tuple[ChunkId, bytes]]:
        """Chunks, checked. Raises ``NoChunk``, ``CorruptChunk``."""
        found: dict[ChunkId, bytes] = {}
        await self._fetch(bucket, ids, found)
        if lost := [chunk for chunk in ids if chunk not in found]:
            # Another server may have stored them, or moved them, since this one looked.
            await self._catalogue.refresh(bucket, 0, 0)
            await self._fetch(bucket, lost, found)
        if lost := [chunk for chunk in ids if chunk not in found]:
            self._forget(bucket, lost)
            raise NoChunk(lost)
        items = [(chunk, found[chunk]) for chunk in ids]
        try:
            await _check(items)
        except CorruptChunk as error:
            self._damaged.add((bucket, error.chunk))
            self._forget(bucket, [error.chunk])
            raise
        return items

    async def _fetch(self, bucket: bytes, ids: Sequence[ChunkId], found: dict[ChunkId, bytes]) -> None:
        """Add to ``found`` what there is of some chunks; of a pack that is cut off, empty chunks."""
        places = await self._catalogue.ask(lambda index: index.find(bucket, ids))
        packs: defaultdict[str, list[tuple[ChunkId, Place]]] = defaultdict(list)
        for chunk, place in places.items():
            packs[place.pack].append((chunk, place))

        async def from_pack(name: str) -> None:
            starts, lengths = [one.offset for _, one in packs[name]], [one.length for _, one in packs[name]]
            try:
                parts = await self._objects.ranges(f"{packs_of(bucket)}/{name}", starts, lengths)
            except NoObject:
                return
            except BadRange:
                parts = [b""] * len(starts)
            found.update((chunk, part) for (chunk, _), part in zip(packs[name], parts, strict=True))

        async def from_own(chunk: ChunkId) -> None:
            try:
                found[chunk] = await self._objects.get(key_of(bucket, chunk))
            except NoObject:
                return

        jobs = [*map(from_pack, packs), *(from_own(chunk) for chunk in set(ids) if chunk not in places)]
        await asyncio.gather(*jobs)

    def _forget(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        self._recent.remove(bucket, ids)


async def _check(items: Sequence[tuple[ChunkId, bytes]]) -> None:
    """Check what takes its time on a thread."""
    if sum(len(stored) for _, stored in items) < SMALL:
        check(items)
    else:
        await asyncio.to_thread(check, items)
