"""Deleting chunks, and what becomes of the packs they were in."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nodeserver.chunks import DiskStore, NoChunk, compaction
from nodeserver.chunks import pack as packs
from tests.nodeserver.chunk_writer import BUCKET, chunk

OTHER = b"\1" * 16
SMALL = [chunk(seed, 1000 + seed) for seed in range(60)]
BIG = [chunk(1000 + seed, 100_000) for seed in range(3)]
ALL = [*SMALL, *BIG]

Item = tuple[bytes, bytes]


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


async def delete(store: DiskStore, items: list[Item], bucket: bytes = BUCKET) -> None:
    with store.doom(bucket, ids(items)) as doomed:
        assert doomed == ids(items)
        await store.delete(bucket, doomed)


async def no_rest() -> None:
    """Between steps of a compaction."""


def packed(root: Path) -> int:
    """Bytes in packs."""
    return sum(path.stat().st_size for path in root.glob("*/packs/*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store that holds ``ALL`` in two buckets."""
    root = tmp_path / "chunks"

    async def fill(store: DiskStore) -> None:
        for bucket in BUCKET, OTHER:
            await store.put(bucket, ALL)

    run(root, fill)
    return root


def test_deleted_chunks_are_gone_and_can_be_put_again(root: Path) -> None:
    gone, kept = [*SMALL[::2], *BIG[:2]], [*SMALL[1::2], *BIG[2:]]

    async def use(store: DiskStore) -> None:
        await delete(store, gone)
        await delete(store, gone)
        assert await store.missing(BUCKET, ids(ALL)) == [one for one in ids(ALL) if one in ids(gone)]
        with pytest.raises(NoChunk) as caught:
            await store.read(BUCKET, ids([*kept, *gone]))
        assert caught.value.ids == ids(gone)
        assert await store.read(BUCKET, ids(kept)) == kept
        assert await store.read(OTHER, ids(ALL)) == ALL

    async def reopened(store: DiskStore) -> None:
        assert await store.missing(BUCKET, ids(ALL)) == [one for one in ids(ALL) if one in ids(gone)]
        await store.put(BUCKET, ALL)
        assert await store.read(BUCKET, ids(ALL)) == ALL

    run(root, use)
    run(root, reopened)


def test_room_is_given_back(root: Path) -> None:
    before = packed(root)
    one = before // 2

    async def some(store: DiskStore) -> None:
        await delete(store, SMALL[:20])
        assert await store.compact(BUCKET, no_rest) == 0, "most of the pack is needed"
        await delete(store, SMALL[20:50])
        assert await store.compact(BUCKET, no_rest) > one / 2
        assert packed(root) < before - one * 0.7
        assert await store.read(BUCKET, ids(SMALL[50:])) == SMALL[50:]
        assert await store.compact(BUCKET, no_rest) == 0

    async def rest(store: DiskStore) -> None:
        assert await store.read(BUCKET, ids(SMALL[50:])) == SMALL[50:]
        await delete(store, SMALL[50:])
        await delete(store, BIG)
        await store.compact(BUCKET, no_rest)
        assert packed(root) < one + 200
        assert not list(root.glob(f"{BUCKET.hex()}/files/*/*"))
        await store.put(BUCKET, ALL)
        assert await store.read(BUCKET, ids(ALL)) == ALL
        assert await store.read(OTHER, ids(ALL)) == ALL

    run(root, some)
    run(root, rest)


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_dead_room_is_known_however_it_came_about(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By deletion, by a new copy of what was damaged, by a lost index."""

    async def damage(store: DiskStore) -> None:
        for one in SMALL[:40]:
            place = await store.locate(BUCKET, one[0])
            assert place
            flip(Path(place.path), place.offset + 60)
            with pytest.raises(Exception, match="checksum"):
                await store.read(BUCKET, [one[0]])
        await store.put(BUCKET, SMALL[:40])

    async def compact(store: DiskStore) -> None:
        assert await store.compact(BUCKET, no_rest) >= 0
        assert await store.read(BUCKET, ids(SMALL)) == SMALL

    monkeypatch.setattr(compaction, "AT_ONCE", 7)
    monkeypatch.setattr(packs, "PACK_LIMIT", 30_000)
    for lose_index in (False, True):
        run(root, damage)
        if lose_index:
            for path in root.glob("index.sqlite*"):
                path.unlink()
        run(root, compact)
        sizes = sum(56 + len(stored) for _, stored in SMALL)
        assert packed(root) < 2 * sizes + sizes + 1000, "each bucket's chunks, and as much again at most"


def test_a_damaged_chunk_keeps_its_pack_and_harms_no_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use(store: DiskStore) -> None:
        await delete(store, SMALL[:50])
        place = await store.locate(BUCKET, SMALL[55][0])
        assert place
        path = Path(place.path)
        content = bytearray(path.read_bytes())
        content[place.offset + 60] ^= 1
        path.write_bytes(content)
        for _ in range(2):
            await store.compact(BUCKET, no_rest)
            assert path.exists()
        assert await store.read(BUCKET, ids([*SMALL[50:55], *SMALL[56:]])) == [*SMALL[50:55], *SMALL[56:]]
        with pytest.raises(Exception, match="checksum"):
            await store.read(BUCKET, [SMALL[55][0]])
        await store.put(BUCKET, [SMALL[55]])
        await store.compact(BUCKET, no_rest)
        assert not path.exists()
        assert await store.read(BUCKET, ids(SMALL[50:])) == SMALL[50:]

    run(root, use)
    assert caplog.text.count("has damaged chunks and is kept") == 1


def test_who_reads_while_packs_are_compacted_finds_everything(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_LIMIT", 20_000)
    monkeypatch.setattr(compaction, "AT_ONCE", 5)

    async def use(store: DiskStore) -> None:
        stop = False

        async def read() -> int:
            rounds = 0
            while not stop:
                assert await store.read(BUCKET, ids(SMALL[::6])) == SMALL[::6]
                for chunk_, stored in SMALL[::12]:
                    assert await store.get(BUCKET, chunk_) == stored
                rounds += 1
            return rounds

        readers = [asyncio.create_task(read()) for _ in range(3)]
        seeds = iter(range(10_000, 1_000_000))
        for _ in range(30):
            more = [chunk(next(seeds), 2000) for _ in range(20)]
            await store.put(BUCKET, [*more, *SMALL[::6]])
            await delete(store, [*more, *(SMALL[1::6])])
            await store.compact(BUCKET, no_rest)
        stop = True
        assert min([await reader for reader in readers]) > 5
        assert packed(root) < 400_000

    run(root, use)


def test_a_place_that_was_looked_up_is_never_another_chunks(root: Path) -> None:
    """A reader that is late finds the pack gone, not another under its name."""

    async def use(store: DiskStore) -> None:
        place = await store.locate(BUCKET, SMALL[0][0])
        assert place
        await delete(store, SMALL)
        await store.compact(BUCKET, no_rest)
        await store.put(BUCKET, [chunk(5000 + seed, 1000) for seed in range(60)])
        assert not Path(place.path).exists()
        with pytest.raises(NoChunk):
            await store.get(BUCKET, SMALL[0][0])

    run(root, use)


def test_a_full_disk_stops_a_compaction_and_nothing_is_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    async def use(store: DiskStore) -> None:
        await delete(store, SMALL[:50])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with pytest.raises(OSError, match="no room"):
                await store.compact(BUCKET, no_rest)
        assert await store.read(BUCKET, ids(SMALL[50:])) == SMALL[50:]
        assert await store.compact(BUCKET, no_rest) > 0
        assert await store.read(BUCKET, ids(SMALL[50:])) == SMALL[50:]

    run(root, use)


def test_a_bucket_that_is_dropped_meanwhile_ends_its_compaction(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "AT_ONCE", 5)

    async def use(store: DiskStore) -> None:
        await delete(store, SMALL[:50])

        async def drop() -> None:
            await store.drop_bucket(BUCKET)

        await store.compact(BUCKET, drop)
        assert not (root / BUCKET.hex()).exists()
        assert await store.read(OTHER, ids(ALL)) == ALL

    run(root, use)


@pytest.fixture
def reapers(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.nodeserver.chunk_reaper", str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_killed_at_any_moment_it_loses_nothing_and_gives_room_back(
    reapers: subprocess.Popen[bytes], tmp_path: Path, soak: int
) -> None:
    assert reapers.stdin
    assert reapers.stdout
    root, rng = tmp_path / "store", random.Random(5)
    stored: dict[tuple[int, int], bool] = {}
    """Chunks that must be there, and with False those that may be."""
    moves = 0
    for number in range(30 * soak):
        reapers.stdin.write(b"%d\n" % number)
        reapers.stdin.flush()
        child = int(reapers.stdout.readline())
        killer = threading.Timer(rng.uniform(0.02, 0.4), os.kill, (child, signal.SIGKILL))
        killer.start()
        while (line := reapers.stdout.readline()) != b"dead\n":
            if line == b"open\n":
                continue
            what, *numbers = line.split()
            one = (int(numbers[0]), int(numbers[1]))
            if what == b"+":
                stored[one] = True
            elif what == b"-":
                stored[one] = False
            else:
                del stored[one]
                moves += 1
        killer.join()
        if number % 10 == 9:
            _check(root, stored)
    assert moves > 700 * soak

    async def empty(store: DiskStore) -> None:
        there = await store.older(BUCKET, 0, 256, 1 << 62)
        with store.doom(BUCKET, there) as doomed:
            await store.delete(BUCKET, doomed)
        await store.compact(BUCKET, no_rest)

    run(root, empty)
    assert packed(root) < 200
    assert not list(root.glob("*/files/*/*"))


def _check(root: Path, stored: dict[tuple[int, int], bool]) -> None:
    """What must be there reads well, and what is there takes no more than twice its room."""

    async def look(store: DiskStore) -> None:
        sure = [chunk(*one) for one, must in stored.items() if must]
        assert await store.missing(BUCKET, ids(sure)) == []
        assert await store.read(BUCKET, ids(sure), limit=1 << 40) == sure
        await store.compact(BUCKET, no_rest)
        assert await store.read(BUCKET, ids(sure), limit=1 << 40) == sure
        small = set(await store.older(BUCKET, 0, 256, 1 << 62))
        sizes = await store.sizes(BUCKET, small)
        room = sum(56 + size for size in sizes.values() if size < 64 * 1024)
        assert packed(root) <= 2 * room + 1000

    run(root, look)
