"""The chunk store: what it keeps, when it syncs, and what it does when the disk is full."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nodeserver.chunks import DiskStore, Located, NoChunk, disk
from nodeserver.chunks import pack as packs
from nodeserver.chunks import store as stores
from nodeserver.chunks.store import SMALL
from nodeserver.content import codec
from nodeserver.content.codec import CorruptChunk

KEY = bytes(32)
BUCKET = bytes(16)
OTHER = b"\1" * 16

Item = tuple[bytes, bytes]


def item(seed: int, size: int = 4096) -> Item:
    plaintext = random.Random(seed).randbytes(size)
    return codec.chunk_id(KEY, plaintext), codec.encode(plaintext)


def ids(items: list[Item]) -> list[bytes]:
    return [chunk for chunk, _ in items]


def run(root: Path, use: Callable[[DiskStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await DiskStore.open(root)
        try:
            async with asyncio.timeout(60):
                await use(store)
        finally:
            await store.close()

    asyncio.run(main())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "chunks"


MIXED = [
    item(1, 0),
    item(2, 1),
    item(3),
    item(4, SMALL - codec.HEADER - 1),
    item(5, SMALL - codec.HEADER),
    item(6, 300_000),
]


def test_what_was_put_is_there_in_its_bucket_only(root: Path) -> None:
    async def use(store: DiskStore) -> None:
        assert await store.missing(BUCKET, ids(MIXED)) == ids(MIXED)
        await store.put(BUCKET, MIXED)
        await store.put(BUCKET, MIXED[::-1])
        for again in range(2):
            assert await store.missing(BUCKET, ids(MIXED)) == [], again
            assert await store.missing(OTHER, ids(MIXED)) == ids(MIXED)
        assert await store.read(BUCKET, ids(MIXED)) == MIXED
        for chunk, stored in MIXED:
            place = await store.locate(BUCKET, chunk)
            assert place
            assert place.length == len(stored)
            assert Path(place.path).read_bytes()[place.offset : place.offset + place.length] == stored
        assert await store.locate(OTHER, MIXED[0][0]) is None

    async def reopened(store: DiskStore) -> None:
        assert await store.read(BUCKET, ids(MIXED)) == MIXED

    run(root, use)
    run(root, reopened)
    # Four are packed once, two have files of their own.
    (pack,) = root.glob("*/packs/*")
    assert pack.stat().st_size < SMALL + 3 * 4096
    assert len(list(root.glob("*/files/*/*"))) == 2


@pytest.mark.parametrize("refuses", [None, "fcntl", "pwrite"])
def test_large_chunks_of_all_lengths(root: Path, monkeypatch: pytest.MonkeyPatch, refuses: str | None) -> None:
    """Whether the file system takes direct writes, says so at once that it does not, or only at the first write."""
    set_flags, pwrite = fcntl.fcntl, os.pwrite

    def no_flags(fd: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return set_flags(fd, command, flags)

    def no_direct(fd: int, data: bytes, offset: int) -> int:
        if set_flags(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not so")
        return pwrite(fd, data, offset)

    if refuses == "fcntl":
        monkeypatch.setattr(fcntl, "fcntl", no_flags)
    elif refuses:
        monkeypatch.setattr(os, "pwrite", no_direct)
    lengths = [SMALL, SMALL + 1, SMALL + 4095, 3 * 4096 + SMALL, disk.PIECE, disk.PIECE + 1, codec.MAX_STORED]
    items = [item(length, length - codec.HEADER) for length in lengths]
    assert [len(stored) for _, stored in items] == lengths

    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, items)
        for chunk, stored in items:
            place = await store.locate(BUCKET, chunk)
            assert place
            assert Path(place.path).read_bytes() == stored

    run(root, use)


def flip(place: Located) -> None:
    """Damage the last byte of a stored chunk."""
    with Path(place.path).open("r+b") as file:
        file.seek(place.offset + place.length - 1)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_what_was_just_stored_is_known_without_looking(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RECENT", 4)

    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, MIXED)
        with monkeypatch.context() as patch:
            patch.delattr(DiskStore, "_missing")
            assert await store.missing(BUCKET, ids(MIXED[-4:])) == []
        assert await store.missing(BUCKET, ids(MIXED)) == []
        # what a read found damaged, or went with its bucket, is not known any more
        small, large = MIXED[2], MIXED[5]
        for one in small, large:
            assert await store.missing(BUCKET, [one[0]]) == []
            place = await store.locate(BUCKET, one[0])
            assert place
            flip(place)
            with pytest.raises(CorruptChunk):
                await store.read(BUCKET, [one[0]])
            assert await store.missing(BUCKET, [one[0]]) == [one[0]]
            await store.put(BUCKET, [one])
            assert await store.missing(BUCKET, [one[0]]) == []
            assert await store.read(BUCKET, [one[0]]) == [one]
        await store.drop_bucket(BUCKET)
        assert await store.missing(BUCKET, ids(MIXED)) == ids(MIXED)

    run(root, use)


def test_reading_what_is_not_there_names_it(root: Path) -> None:
    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, MIXED[:2])
        with pytest.raises(NoChunk) as caught:
            await store.read(BUCKET, ids(MIXED[1:3]))
        assert caught.value.ids == ids(MIXED[2:3])

    run(root, use)


def test_a_read_stops_at_its_limit_but_gives_one(root: Path) -> None:
    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, MIXED)
        assert await store.read(BUCKET, ids(MIXED)[::-1], limit=1) == MIXED[:-2:-1]
        assert await store.read(BUCKET, ids(MIXED), limit=5000) == MIXED[:3]
        assert await store.read(BUCKET, []) == []

    run(root, use)


def test_a_bad_chunk_is_refused_with_its_whole_batch(root: Path) -> None:
    good, (chunk, stored) = item(1), item(2)
    large = item(3, 200_000)

    async def use(store: DiskStore) -> None:
        for bad in (chunk, stored[:-1]), (chunk, b""), (large[0], large[1][:-1] + b"x"):
            with pytest.raises(CorruptChunk) as caught:
                await store.put(BUCKET, [good, large, bad])
            assert caught.value.chunk == bad[0]
        with pytest.raises(ValueError, match="32 bytes"):
            await store.put(BUCKET, [good, (b"short", stored)])
        assert await store.missing(BUCKET, [good[0], large[0]]) == [good[0], large[0]]

    run(root, use)
    assert not list(root.glob("*/packs"))


def test_a_dropped_bucket_leaves_nothing(root: Path) -> None:
    async def use(store: DiskStore) -> None:
        for bucket in BUCKET, OTHER:
            await store.put(bucket, MIXED)
        await store.drop_bucket(BUCKET)
        await store.drop_bucket(BUCKET)
        assert await store.missing(BUCKET, ids(MIXED)) == ids(MIXED)
        assert await store.read(OTHER, ids(MIXED)) == MIXED
        assert not (root / BUCKET.hex()).exists()
        await store.put(BUCKET, MIXED)
        assert await store.read(BUCKET, ids(MIXED)) == MIXED

    run(root, use)


def test_full_packs_are_followed_by_new_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT", 10_000)
    monkeypatch.setattr(packs, "MAX_OPEN", 2)
    items = [item(seed) for seed in range(12)]

    async def use(store: DiskStore) -> None:
        for one in items:
            for bucket in BUCKET, OTHER, b"\2" * 16:
                await store.put(bucket, [one])
        assert await store.read(BUCKET, ids(items)) == items

    run(root, use)
    run(root, lambda store: store.put(BUCKET, [item(100)]))
    assert len(list((root / BUCKET.hex()).glob("packs/*"))) == 5


def test_the_room_is_that_of_the_disk(root: Path) -> None:
    async def use(store: DiskStore) -> None:
        space = store.usage()
        assert 0 < space.free_bytes < space.capacity_bytes

    run(root, use)


class Calls:
    """Records the calls that make things durable, can hold one up, and can fail the syncs of data."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.hold = "fdatasync"
        """Which call stops at the gate; of the fsyncs only those that follow a rename."""
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.fail = 0
        for name in "fdatasync", "fsync", "rename":
            monkeypatch.setattr(os, name, self._recorder(name, getattr(os, name)))

    def _recorder(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def recorded(*args: object) -> None:
            if name == self.hold and (name != "fsync" or self.made[-1] == "rename"):
                self.waiting.set()
                assert self.gate.wait(30)
            if name == "fdatasync" and self.fail:
                self.fail -= 1
                raise OSError(errno.EIO, "the disk fails")
            call(*args)
            self.made.append(name)

        return recorded


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_puts_that_arrive_together_share_an_fsync_and_wait_for_it(root: Path, calls: Calls) -> None:
    items = [item(seed) for seed in range(101)]

    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, [item(1000)])
        calls.made.clear()
        calls.waiting.clear()
        calls.gate.clear()
        tasks = [asyncio.create_task(store.put(BUCKET, items[:1]))]
        await asyncio.to_thread(calls.waiting.wait, 30)
        tasks += [asyncio.create_task(store.put(BUCKET, [one])) for one in items[1:]]
        assert await store.missing(BUCKET, ids(items)) == ids(items)
        assert not any(task.done() for task in tasks)
        calls.gate.set()
        await asyncio.gather(*tasks)
        assert calls.made == ["fdatasync"] * 2
        assert await store.read(BUCKET, ids(items)) == items

    run(root, use)


def test_a_batch_of_small_chunks_takes_one_fsync(root: Path, calls: Calls) -> None:
    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, [item(1000)])
        calls.made.clear()
        await store.put(BUCKET, [item(seed) for seed in range(500)])
        await store.put(BUCKET, [item(seed) for seed in range(500)])
        assert calls.made == ["fdatasync"]

    run(root, use)


@pytest.mark.parametrize("hold", ["fdatasync", "rename", "fsync"])
def test_a_file_is_there_when_it_was_synced_and_named_and_its_name_was_synced(
    root: Path, calls: Calls, hold: str
) -> None:
    big = item(1, 100_000)

    async def use(store: DiskStore) -> None:
        calls.hold = hold
        calls.gate.clear()
        task = asyncio.create_task(store.put(BUCKET, [big]))
        await asyncio.to_thread(calls.waiting.wait, 30)
        assert await store.missing(BUCKET, [big[0]]) == [big[0]]
        calls.gate.set()
        await task
        assert calls.made[-3:] == ["fdatasync", "rename", "fsync"]
        assert await store.missing(BUCKET, [big[0]]) == []

    run(root, use)


@pytest.mark.parametrize("one", [item(1), item(1, 100_000)], ids=["packed", "file"])
def test_a_failed_fsync_stores_nothing_and_the_next_put_works(root: Path, calls: Calls, one: Item) -> None:
    async def use(store: DiskStore) -> None:
        await store.put(BUCKET, [item(2)])
        calls.fail = 1
        with pytest.raises(OSError, match="the disk fails"):
            await store.put(BUCKET, [one])
        assert await store.missing(BUCKET, [one[0]]) == [one[0]]
        assert not list((root / "tmp").iterdir())
        await store.put(BUCKET, [one])
        assert await store.read(BUCKET, [one[0], item(2)[0]]) == [one, item(2)]

    run(root, use)
    run(root, lambda store: store.put(BUCKET, [one]))


def test_a_put_that_is_cancelled_harms_no_other(root: Path, calls: Calls) -> None:
    items = [item(seed) for seed in range(3)]

    async def use(store: DiskStore) -> None:
        calls.gate.clear()
        tasks = [asyncio.create_task(store.put(BUCKET, [one])) for one in items]
        await asyncio.to_thread(calls.waiting.wait, 30)
        tasks[0].cancel()
        tasks[1].cancel()
        calls.gate.set()
        await tasks[2]
        assert await store.read(BUCKET, [items[2][0]]) == items[2:]

    run(root, use)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    root = small_disk / "chunks"
    ballast = small_disk / "ballast"
    kept: list[Item] = []
    told: set[int | None] = set()
    seeds = iter(range(1_000_000))

    async def fill(store: DiskStore) -> None:
        for size, count in (300_000, 1), (60_000, 3), (4096, 20), (500, 5), (10, 1):
            while True:
                items = [item(next(seeds), size) for _ in range(count)]
                try:
                    await store.put(BUCKET, items)
                except OSError as error:
                    told.add(error.errno)
                    break
                kept.extend(items)
            assert await store.missing(BUCKET, ids(items)) == ids(items) or size > SMALL
            assert not list((root / "tmp").iterdir())
        assert await store.missing(BUCKET, ids(kept)) == []
        assert await store.read(BUCKET, ids(kept)) == kept

    async def again(store: DiskStore) -> None:
        assert await store.read(BUCKET, ids(kept)) == kept
        ballast.unlink()
        more = [item(next(seeds), 300_000), *(item(next(seeds)) for _ in range(20))]
        await store.put(BUCKET, more)
        assert await store.read(BUCKET, ids([*kept, *more])) == kept + more

    ballast.write_bytes(bytes(1_500_000))
    run(root, fill)
    assert told == {errno.ENOSPC}
    (pack,) = root.glob("*/packs/*")
    packed = [stored for _, stored in kept if len(stored) < SMALL]
    assert pack.stat().st_size == 56 + sum(56 + len(stored) for stored in packed)
    run(root, again)
