"""The chunk store against ``kill -9``, loss of power and damaged files."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nodeserver.chunks import DiskStore
from nodeserver.chunks.record import PACK_HEADER, record_header
from nodeserver.content import codec
from nodeserver.content.codec import CorruptChunk
from tests.nodeserver.chunk_writer import BUCKET, chunk

SMALL = [chunk(seed, 1000 + seed) for seed in range(20)]
LATE = [chunk(100 + seed, 3000) for seed in range(5)]
BIG = chunk(1000, 100_000)


def run(root: Path, use: Callable[[DiskStore], Awaitable[None]]) -> None:
    """Use a store that is opened for it and closed again."""

    async def main() -> None:
        store = await DiskStore.open(root)
        try:
            await use(store)
        finally:
            await store.close()

    asyncio.run(main())


def put(root: Path, *items: tuple[bytes, bytes]) -> None:
    run(root, lambda store: store.put(BUCKET, items))


def missing(root: Path, items: list[tuple[bytes, bytes]]) -> list[int]:
    """Which of ``items``, by their place in the list, the store lacks. The others must read well."""
    gone: list[int] = []

    async def look(store: DiskStore) -> None:
        ids = await store.missing(BUCKET, [chunk for chunk, _ in items])
        gone.extend(n for n, (chunk, _) in enumerate(items) if chunk in ids)
        there = [item for item in items if item[0] not in ids]
        if there:
            assert await store.read(BUCKET, [chunk for chunk, _ in there], limit=1 << 40) == there

    run(root, look)
    return gone


def pack_of(root: Path) -> Path:
    (path,) = root.glob("*/packs/*.pack")
    return path


def lose_index(root: Path, older: Path | None = None) -> None:
    """Put an older index in the place of the store's, or none."""
    for path in root.glob("index.sqlite*"):
        path.unlink()
    if older:
        shutil.copy(older, root / "index.sqlite")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store that holds ``SMALL`` in one pack."""
    root = tmp_path / "chunks"
    put(root, *SMALL)
    return root


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.nodeserver.chunk_writer", str(tmp_path / "chunks")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_killed_at_any_moment_it_keeps_what_it_acknowledged(
    writers: subprocess.Popen[bytes], tmp_path: Path, soak: int
) -> None:
    assert writers.stdin
    assert writers.stdout
    root = tmp_path / "chunks"
    rng = random.Random(3)
    acknowledged: set[tuple[int, int]] = set()
    for number in range(60 * soak):
        writers.stdin.write(b"%d\n" % number)
        writers.stdin.flush()
        child = int(writers.stdout.readline())
        killer = threading.Timer(rng.uniform(0, 0.02), os.kill, (child, signal.SIGKILL))
        # It dies soon after so many lines: while it opens the store, or in the middle of puts.
        left = rng.choice([0, rng.randint(1, 40)])
        while True:
            if left == 0:
                killer.start()
            left -= 1
            # What is written to a pipe at once is not torn: it is less than PIPE_BUF bytes.
            line = writers.stdout.readline()
            if line == b"dead\n":
                break
            if line != b"open\n":
                seed, size = map(int, line.split())
                acknowledged.add((seed, size))
        killer.join()
        if number % 10 == 9:
            assert missing(root, [chunk(*one) for one in acknowledged]) == []
            assert list((root / "tmp").iterdir()) == []
    assert len(acknowledged) > 300 * soak


def test_a_torn_end_is_cut_and_what_is_whole_is_found(root: Path, tmp_path: Path) -> None:
    """The power went while the last batch was written, and took the index's last rows along."""
    older = tmp_path / "older.sqlite"
    shutil.copy(root / "index.sqlite", older)
    start = pack_of(root).stat().st_size
    put(root, *LATE)
    whole = pack_of(root).read_bytes()
    record = (len(whole) - start) // len(LATE)
    rng = random.Random(4)
    for end in [start, start + 1, len(whole) - 1, *(rng.randrange(start, len(whole)) for _ in range(20))]:
        for tail in b"", bytes(500), rng.randbytes(500):
            pack_of(root).write_bytes(whole[:end] + tail)
            lose_index(root, older)
            kept = (end - start) // record
            assert missing(root, [*SMALL, *LATE]) == list(range(len(SMALL) + kept, len(SMALL) + len(LATE)))
            assert pack_of(root).stat().st_size == start + kept * record
    put(root, *LATE)
    assert missing(root, [*SMALL, *LATE]) == []


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 500], ids=["absent", "empty", "garbage"])
def test_a_lost_index_is_rebuilt(root: Path, content: bytes | None) -> None:
    put(root, BIG)
    lose_index(root)
    if content is not None:
        (root / "index.sqlite").write_bytes(content)
    assert missing(root, [*SMALL, BIG]) == []
    assert missing(root, [*SMALL, BIG]) == []


def test_damage_in_the_middle_costs_only_the_chunks_it_hits(root: Path) -> None:
    """With the index lost too, so that all must be found by scanning."""
    pack = pack_of(root)
    content = pack.read_bytes()
    for _, stored in SMALL:
        at = content.index(stored)
        for bad in (at - 1, at - 40, at, at + len(stored) // 2):
            pack.write_bytes(content[:bad] + bytes([content[bad] ^ 4]) + content[bad + 1 :])
            lose_index(root)
            assert missing(root, SMALL) == [[item[1] for item in SMALL].index(stored)]


def test_a_record_forged_inside_a_chunk_is_not_taken_for_one(root: Path) -> None:
    """A scan that looks for the next record behind damage reads what clients chose."""
    forged, stored = LATE[0]
    inner = record_header(os.urandom(32), forged, len(stored)) + stored
    outer = codec.encode(random.Random(5).randbytes(5000) + inner)
    assert inner in outer
    put(root, (bytes(32), outer), LATE[1])
    pack = pack_of(root)
    content = pack.read_bytes()
    pack.write_bytes(content.replace(outer[:100], bytes(100)))
    lose_index(root)
    assert missing(root, [*SMALL, LATE[0], LATE[1]]) == [len(SMALL)]


@pytest.mark.parametrize("cut", [0, 10, PACK_HEADER], ids=["empty", "short", "header only"])
def test_a_pack_that_never_held_anything_is_no_trouble(root: Path, cut: int) -> None:
    new = pack_of(root).with_name("00000002.pack")
    new.write_bytes(pack_of(root).read_bytes()[:cut])
    put(root, *LATE)
    assert missing(root, [*SMALL, *LATE]) == []


def test_a_pack_of_another_version_is_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = pack_of(root).with_name("00000002.pack")
    content = bytearray(pack_of(root).read_bytes())
    content[4] = 2
    new.write_bytes(content)
    put(root, *LATE)
    assert missing(root, [*SMALL, *LATE]) == []
    assert new.read_bytes() == content
    assert "left alone: unknown pack format" in caplog.text


def test_what_a_pack_lost_is_missing_and_can_be_put_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pack_of(root).open("r+b") as pack:
        pack.truncate(pack_of(root).stat().st_size - 1)
    assert missing(root, SMALL) == [len(SMALL) - 1]
    assert "lost 1 chunks" in caplog.text
    put(root, *SMALL)
    assert missing(root, SMALL) == []
    pack_of(root).unlink()
    assert missing(root, SMALL) == list(range(len(SMALL)))


def test_leftovers_are_cleaned_at_the_start(root: Path) -> None:
    (root / "tmp" / "half").write_bytes(b"written")
    (root / "trash" / "dropped" / "packs").mkdir(parents=True)
    (root / "trash" / "dropped" / "packs" / "00000001.pack").touch()
    assert missing(root, SMALL) == []
    assert not list((root / "tmp").iterdir())
    assert not list((root / "trash").iterdir())


@pytest.mark.parametrize("item", [SMALL[3], BIG], ids=["packed", "file"])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_is_told_and_healed_by_the_next_put(root: Path, item: tuple[bytes, bytes], damage: str) -> None:
    put(root, BIG)

    async def use(store: DiskStore) -> None:
        place = await store.locate(BUCKET, item[0])
        assert place
        content = Path(place.path).read_bytes()
        middle = place.offset + place.length // 2
        if damage == "flip":
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        Path(place.path).write_bytes(content if damage == "flip" else content[:middle])
        with pytest.raises(CorruptChunk) as caught:
            await store.read(BUCKET, [SMALL[0][0], item[0]])
        assert caught.value.chunk == item[0]
        assert await store.read(BUCKET, [SMALL[0][0]]) == [SMALL[0]]
        assert await store.missing(BUCKET, [item[0]]) == [item[0]]
        await store.put(BUCKET, [item])
        assert await store.missing(BUCKET, [item[0]]) == []
        assert await store.read(BUCKET, [item[0]]) == [item]

    run(root, use)
