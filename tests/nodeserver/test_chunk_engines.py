"""What every chunk store does, on each of them: the disk, and an S3-compatible store that is a real SeaweedFS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import obstore
import pytest

from nodeserver.chunks import ChunkStore, DiskStore, NoChunk
from nodeserver.chunks.s3 import Address, S3Store
from nodeserver.chunks.store import SMALL
from nodeserver.content import codec
from nodeserver.content.codec import CorruptChunk
from tests.nodeserver.seaweed import Seaweed

KEY = bytes(32)
BUCKET = bytes(16)
OTHER = b"\1" * 16
FOREVER = 1 << 62
"""A moment that is later than now, in nanoseconds."""

Item = tuple[bytes, bytes]
Use = Callable[[ChunkStore], Awaitable[None]]


def item(seed: int, size: int = 4096) -> Item:
    plaintext = random.Random(seed).randbytes(size)
    return codec.chunk_id(KEY, plaintext), codec.encode(plaintext)


def ids(items: list[Item]) -> list[bytes]:
    return [chunk for chunk, _ in items]


MIXED = [
    item(1, 0),
    item(2, 1),
    item(3),
    item(4, SMALL - codec.HEADER - 1),
    item(5, SMALL - codec.HEADER),
    item(6, 300_000),
]


class Engine:
    """One kind of store, and what a vandal can do to it."""

    async def open(self) -> ChunkStore:
        """Open the store; it may be open already, and is then shared if it can be."""
        raise NotImplementedError

    def lose_index(self) -> None:
        """Delete what can be made anew, while it is closed."""
        raise NotImplementedError

    def objects(self) -> list[str]:
        """The names of files or objects that chunks of ``BUCKET`` are in."""
        raise NotImplementedError

    def load(self, name: str) -> bytes:
        raise NotImplementedError

    def store(self, name: str, data: bytes) -> None:
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError

    def run(self, use: Use) -> None:
        """Use a store that is opened for it and closed again."""

        async def main() -> None:
            store = await self.open()
            try:
                async with asyncio.timeout(60):
                    await use(store)
            finally:
                await store.close()

        asyncio.run(main())

    def damage(self, stored: bytes) -> None:
        """Flip the last bit of a chunk, wherever it lies."""
        [name] = [name for name in self.objects() if stored in self.load(name)]
        data = self.load(name)
        end = data.index(stored) + len(stored)
        self.store(name, data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])


class Disk(Engine):
    def __init__(self, root: Path) -> None:
        self.root = root

    async def open(self) -> ChunkStore:
        return await DiskStore.open(self.root)

    def lose_index(self) -> None:
        for path in self.root.glob("index.sqlite*"):
            path.unlink()

    def objects(self) -> list[str]:
        below = self.root / BUCKET.hex()
        return [str(path) for path in [*below.glob("files/*/*"), *below.glob("packs/*")]]

    def load(self, name: str) -> bytes:
        return Path(name).read_bytes()

    def store(self, name: str, data: bytes) -> None:
        Path(name).write_bytes(data)

    def delete(self, name: str) -> None:
        Path(name).unlink()


class S3(Engine):
    def __init__(self, weed: Seaweed, directory: Path) -> None:
        prefix = f"engine/{uuid4().hex}"
        self.bucket = weed.bucket(prefix)
        self.address = Address.parse(weed.address(prefix))
        self.index = directory / "index.sqlite"

    async def open(self) -> ChunkStore:
        return await S3Store.open(self.address, self.index)

    def lose_index(self) -> None:
        for path in self.index.parent.glob("index.sqlite*"):
            path.unlink()

    def objects(self) -> list[str]:
        listed = obstore.list(self.bucket, BUCKET.hex()).collect()
        return [one["path"] for one in listed if not one["path"].endswith(".gone")]

    def load(self, name: str) -> bytes:
        return obstore.get(self.bucket, name).bytes().to_bytes()

    def store(self, name: str, data: bytes) -> None:
        obstore.put(self.bucket, name, data)

    def delete(self, name: str) -> None:
        obstore.delete(self.bucket, name)


@pytest.fixture(params=["disk", "s3"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "disk":
        return Disk(tmp_path / "chunks")
    request.getfixturevalue("keys")
    return S3(request.getfixturevalue("seaweed"), tmp_path)


async def no_step() -> None:
    """Between two steps of upkeep."""


async def delete(store: ChunkStore, items: list[Item]) -> None:
    with store.doom(BUCKET, ids(items)) as doomed:
        assert doomed == ids(items)
        await store.delete(BUCKET, doomed)


def test_what_was_put_is_there_in_its_bucket_only(engine: Engine) -> None:
    async def use(store: ChunkStore) -> None:
        assert await store.missing(BUCKET, ids(MIXED)) == ids(MIXED)
        await store.put(BUCKET, MIXED)
        await store.put(BUCKET, MIXED[::-1])
        for again in range(2):
            assert await store.missing(BUCKET, ids(MIXED)) == [], again
            assert await store.missing(OTHER, ids(MIXED)) == ids(MIXED)
        assert await store.read(BUCKET, ids(MIXED)) == MIXED
        assert await store.sizes(BUCKET, ids([*MIXED, item(9)])) == {chunk: len(stored) for chunk, stored in MIXED}
        for chunk, stored in MIXED:
            assert await store.get(BUCKET, chunk) == stored
        with pytest.raises(NoChunk):
            await store.get(OTHER, MIXED[0][0])

    async def reopened(store: ChunkStore) -> None:
        assert await store.read(BUCKET, ids(MIXED)) == MIXED
        assert await store.missing(BUCKET, ids(MIXED)) == []

    engine.run(use)
    engine.run(reopened)
    engine.lose_index()
    engine.run(reopened)
    # Four are packed once, two are on their own.
    assert len(engine.objects()) == 3


def test_reading_what_is_not_there_names_it(engine: Engine) -> None:
    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, MIXED[:2])
        with pytest.raises(NoChunk) as caught:
            await store.read(BUCKET, ids(MIXED[1:3]))
        assert caught.value.ids == ids(MIXED[2:3])
        with pytest.raises(NoChunk) as caught:
            await store.get(BUCKET, MIXED[5][0])
        assert caught.value.ids == [MIXED[5][0]]

    engine.run(use)


def test_a_read_stops_at_its_limit_but_gives_one(engine: Engine) -> None:
    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, MIXED)
        assert await store.read(BUCKET, ids(MIXED)[::-1], limit=1) == MIXED[:-2:-1]
        assert await store.read(BUCKET, ids(MIXED), limit=5000) == MIXED[:3]
        assert await store.read(BUCKET, []) == []

    engine.run(use)


def test_a_bad_chunk_is_refused_with_its_whole_batch(engine: Engine) -> None:
    good, (chunk, stored) = item(1), item(2)
    large = item(3, 200_000)

    async def use(store: ChunkStore) -> None:
        for bad in (chunk, stored[:-1]), (chunk, b""), (large[0], large[1][:-1] + b"x"):
            with pytest.raises(CorruptChunk) as caught:
                await store.put(BUCKET, [good, large, bad])
            assert caught.value.chunk == bad[0]
        with pytest.raises(ValueError, match="32 bytes"):
            await store.put(BUCKET, [good, (b"short", stored)])
        assert await store.missing(BUCKET, [good[0], large[0]]) == [good[0], large[0]]

    engine.run(use)
    assert engine.objects() == []


@pytest.mark.parametrize("one", [item(1), item(1, 200_000)], ids=["packed", "large"])
def test_a_damaged_chunk_is_missing_until_it_is_put_again(engine: Engine, one: Item) -> None:
    beside = item(2)

    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, [one, beside])
        assert await store.missing(BUCKET, [one[0]]) == []
        await asyncio.to_thread(engine.damage, one[1])
        with pytest.raises(CorruptChunk) as caught:
            await store.read(BUCKET, ids([beside, one]))
        assert caught.value.chunk == one[0]
        assert await store.missing(BUCKET, ids([beside, one])) == [one[0]]
        await store.put(BUCKET, [one])
        assert await store.missing(BUCKET, [one[0]]) == []
        assert await store.read(BUCKET, ids([beside, one])) == [beside, one]

    async def reopened(store: ChunkStore) -> None:
        assert await store.read(BUCKET, ids([beside, one])) == [beside, one]

    engine.run(use)
    engine.run(reopened)
    engine.lose_index()
    engine.run(reopened)


@pytest.mark.parametrize("one", [item(1), item(1, 200_000)], ids=["packed", "large"])
def test_what_somebody_deleted_behind_its_back_is_not_there(engine: Engine, one: Item) -> None:
    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, [one])
        for name in engine.objects():
            engine.delete(name)
        with pytest.raises(NoChunk):
            await store.read(BUCKET, [one[0]])
        with pytest.raises(NoChunk):
            await store.get(BUCKET, one[0])

    async def reopened(store: ChunkStore) -> None:
        assert await store.missing(BUCKET, [one[0]]) == [one[0]]
        await store.put(BUCKET, [one])
        assert await store.read(BUCKET, [one[0]]) == [one]

    engine.run(use)
    engine.run(reopened)


def test_puts_that_arrive_together_share_a_pack(engine: Engine) -> None:
    items = [item(seed, 500) for seed in range(200)]

    async def use(store: ChunkStore) -> None:
        await asyncio.gather(*(store.put(BUCKET, [one]) for one in items))
        assert await store.read(BUCKET, ids(items)) == items

    engine.run(use)
    assert len(engine.objects()) < 20


def test_deleted_chunks_are_gone_and_others_stay(engine: Engine) -> None:
    items = [*(item(seed) for seed in range(10)), *(item(seed, 100_000) for seed in range(4))]
    dead, kept = items[::2], items[1::2]

    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, items)
        await delete(store, dead)
        assert await store.missing(BUCKET, ids(items)) == ids(dead)
        assert await store.read(BUCKET, ids(kept)) == kept
        with pytest.raises(NoChunk):
            await store.read(BUCKET, ids(dead))
        await store.put(BUCKET, dead[:1])
        assert await store.read(BUCKET, ids(dead[:1])) == dead[:1]

    async def reopened(store: ChunkStore) -> None:
        assert await store.missing(BUCKET, ids(items)) == ids(dead[1:])

    engine.run(use)
    engine.run(reopened)


def test_a_chunk_in_use_is_not_deleted_and_a_put_waits_for_the_end_of_a_deletion(engine: Engine) -> None:
    one = item(1, 100_000)

    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, [one])
        async with store.using(BUCKET, [one[0]]):
            with store.doom(BUCKET, [one[0]]) as doomed:
                assert doomed == []
        with store.doom(BUCKET, [one[0]]) as doomed:
            assert await store.missing(BUCKET, [one[0]]) == [one[0]]
            again = asyncio.create_task(store.put(BUCKET, [one]))
            await store.delete(BUCKET, doomed)
            assert not again.done()
        await again
        assert await store.missing(BUCKET, [one[0]]) == []
        assert await store.read(BUCKET, [one[0]]) == [one]

    engine.run(use)


def test_chunks_are_listed_by_their_ids_and_age(engine: Engine) -> None:
    items = [*(item(seed, 100) for seed in range(40)), *(item(seed, 70_000) for seed in range(20))]

    async def use(store: ChunkStore) -> None:
        assert await store.older(BUCKET, 0, 256, FOREVER) == set()
        assert await store.count(BUCKET) == 0
        await store.put(BUCKET, items)
        assert await store.older(BUCKET, 0, 256, FOREVER) == set(ids(items))
        assert await store.older(BUCKET, 0, 256, 1) == set()
        assert await store.older(OTHER, 0, 256, FOREVER) == set()
        halves = [await store.older(BUCKET, first, first + 128, FOREVER) for first in (0, 128)]
        assert halves == [{chunk for chunk in ids(items) if chunk[0] // 128 == half} for half in (0, 1)]

    engine.run(use)


def test_packs_that_are_mostly_dead_are_compacted(engine: Engine) -> None:
    items = [item(seed, 10_000) for seed in range(40)]
    kept = items[:5]

    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, items)
        assert await store.compact(BUCKET, no_step) == 0
        await delete(store, items[5:])
        before = sum(len(engine.load(name)) for name in engine.objects())
        freed = await store.compact(BUCKET, no_step)
        after = sum(len(engine.load(name)) for name in engine.objects())
        assert freed >= before - after - 200  # a new pack begins with something
        assert after < 60_000
        assert await store.compact(BUCKET, no_step) == 0
        assert await store.read(BUCKET, ids(kept)) == kept
        assert await store.missing(BUCKET, ids(items)) == ids(items[5:])

    async def rest(store: ChunkStore) -> None:
        assert await store.read(BUCKET, ids(kept)) == kept
        await delete(store, kept)
        await store.compact(BUCKET, no_step)
        assert await store.missing(BUCKET, ids(items)) == ids(items)

    async def empty(store: ChunkStore) -> None:
        assert await store.missing(BUCKET, ids(items)) == ids(items)

    engine.run(use)
    engine.lose_index()
    engine.run(rest)
    engine.lose_index()
    engine.run(empty)
    assert sum(len(engine.load(name)) for name in engine.objects()) < 1000


def test_a_dropped_bucket_leaves_nothing(engine: Engine) -> None:
    async def use(store: ChunkStore) -> None:
        for bucket in BUCKET, OTHER:
            await store.put(bucket, MIXED)
        await store.drop_bucket(BUCKET)
        await store.drop_bucket(BUCKET)
        assert await store.missing(BUCKET, ids(MIXED)) == ids(MIXED)
        assert await store.read(OTHER, ids(MIXED)) == MIXED
        assert engine.objects() == []
        await store.put(BUCKET, MIXED)
        assert await store.read(BUCKET, ids(MIXED)) == MIXED

    engine.run(use)


def test_there_is_room(engine: Engine) -> None:
    async def use(store: ChunkStore) -> None:
        space = store.usage()
        assert 0 < space.free_bytes <= space.capacity_bytes

    engine.run(use)
