"""Staging against plain arrays of bytes: whatever is sent, given back, committed or evicted, no byte changes."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from mountfs.local import space
from mountfs.local.buckets import Buckets
from mountfs.local.cache import Cache
from mountfs.local.checking import Checker
from mountfs.local.database import Database
from mountfs.local.inodes import Inode, Inodes
from mountfs.local.journal import Journal, Op
from mountfs.local.layers import Layers
from mountfs.local.slabs import Slabs
from mountfs.local.staging import SMALL, Content, Snapshot, Staging
from nodeserver.content.codec import chunk_id
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol import wire

KEY = bytes(32)
FILES = (2, 3)
OFFSETS = [0, 1, 4096, 100_000, SMALL, SMALL + 4096, 256 << 10, 300_000]
SIZES = [1, 100, 4096, 50_000, SMALL, SMALL + 1, 256 << 10]


class Local:
    """A state directory with two empty files, and no server."""

    def __init__(self, db: Database, slabs: Slabs) -> None:
        self.db, self.slabs = db, slabs
        self.inodes, self.journal, self.buckets = Inodes(db), Journal(db), Buckets(db)
        self.cache = Cache(db, slabs, 1 << 30)
        self.staging = Staging(db, self.inodes, self.journal, slabs, self.cache)
        self.checker = Checker(db, slabs, self.cache, self.inodes, self.staging.faults)

    def add_files(self) -> None:
        with self.db.transaction():
            self.db.execute(
                "INSERT INTO bucket (id, uuid, name, root, chunk_key, seq, usage) VALUES (1, ?, 'b', 1, ?, 0, ?)",
                (bytes(16), KEY, wire.pack(wire.Usage(0, 0, None, 0, 0))),
            )
            for ino in FILES:
                inode = Inode(ino, 1, bytes([ino]) * 16, 0o100644, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, b"", b"", None)
                self.inodes.insert(inode, pack_slices([]))

    def acquire(self, ino: int, *, write: bool = False) -> Content:
        content = self.staging.acquire(ino, write=write)
        assert content is not None
        return content

    def take(self, ino: int) -> None:
        """As the committer does with the oldest WRITE row of a file, if there is one."""
        row = next(row for row in self.journal.of_ino(ino) if row.op == Op.WRITE and row.id not in self.journal.taken)
        self.journal.take(row)

    def bytes_of(self, layers: Layers, chunks: dict[bytes, bytes]) -> bytes:
        """What a reader gets; ``chunks`` are what the nodes have."""
        parts = []
        for part in layers.plan(0, layers.size):
            if part.slab:
                parts.append(self.slabs.read(part.slab, part.position, part.length))
            elif part.chunk:
                parts.append(chunks[part.chunk][part.position : part.position + part.length])
            else:
                parts.append(bytes(part.length))
        return b"".join(parts)


@contextmanager
def local() -> Iterator[Local]:
    with (
        tempfile.TemporaryDirectory() as state,
        closing(Database(Path(state))) as db,
        closing(Slabs(Path(state) / "slabs")) as slabs,
    ):
        it = Local(db, slabs)
        it.add_files()
        yield it


def test_what_was_written_while_a_snapshot_went_is_sent_when_it_comes_back() -> None:
    with local() as it:
        staging, ino = it.staging, FILES[0]
        content = it.acquire(ino, write=True)
        staging.write(content, 0, b"first")
        staging.release(content, write=True)
        held = it.acquire(ino)
        it.take(ino)
        snapshot = staging.send(held)
        again = it.acquire(ino, write=True)
        staging.write(again, 5, b"second")
        staging.release(again, write=True)
        staging.give_back(held, snapshot)
        assert it.bytes_of(staging.send(held).layers, {}) == b"firstsecond"


def test_what_only_a_replaced_snapshot_had_comes_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when so much waits to be taken back that each call looks."""
    monkeypatch.setattr(space, "COLLECT_BYTES", 0)
    with local() as it:
        content = it.acquire(FILES[0], write=True)
        for number in range(3):
            it.staging.write(content, 0, bytes([number]) * SMALL)
            it.staging.seal(content)
        assert it.slabs.used == SMALL
        assert not trio.run(it.checker.check).faults


class Model(RuleBasedStateMachine):
    """Two files with writers that come and go, and a committer that sends, fails, and is answered late."""

    def __init__(self) -> None:
        super().__init__()
        self._context = local()
        self.it = self._context.__enter__()
        self.expected = {ino: bytearray() for ino in FILES}
        self.writers: dict[int, Content] = {}
        self.sending: list[tuple[Content, Snapshot, bytes]] = []
        self.chunks: dict[bytes, bytes] = {}
        self.sent = dict.fromkeys(FILES, b"")

    def writer(self, ino: int) -> Content:
        if ino not in self.writers:
            self.writers[ino] = self.it.acquire(ino, write=True)
        return self.writers[ino]

    @rule(
        ino=st.sampled_from(FILES), offset=st.sampled_from(OFFSETS), size=st.sampled_from(SIZES), seed=st.integers(0, 3)
    )
    def write(self, ino: int, offset: int, size: int, seed: int) -> None:
        data = random.Random(seed).randbytes(size)
        self.it.staging.write(self.writer(ino), offset, data)
        expected = self.expected[ino]
        expected.extend(bytes(max(0, offset - len(expected))))
        expected[offset : offset + size] = data

    @rule(ino=st.sampled_from(FILES), size=st.sampled_from([0, *OFFSETS]))
    def truncate(self, ino: int, size: int) -> None:
        expected = self.expected[ino]
        if size != len(expected):
            self.it.staging.truncate(self.writer(ino), size)
            del expected[size:]
            expected.extend(bytes(size - len(expected)))

    @rule(ino=st.sampled_from(FILES))
    def seal(self, ino: int) -> None:
        self.it.staging.seal(self.writer(ino))

    @rule(ino=st.sampled_from(FILES))
    def close(self, ino: int) -> None:
        if ino in self.writers:
            self.it.staging.release(self.writers.pop(ino), write=True)

    def sendable(self) -> list[int]:
        journal = self.it.journal
        busy = {content.ino for content, _, _ in self.sending}
        return [ino for ino in FILES if (Op.WRITE, ino) in journal.open and ino not in journal.held and ino not in busy]

    @precondition(lambda self: self.sendable())
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        ino = data.draw(st.sampled_from(self.sendable()))
        content = self.it.acquire(ino)
        self.it.take(ino)
        snapshot = self.it.staging.send(content)
        self.sending.append((content, snapshot, self.it.bytes_of(snapshot.layers, self.chunks)))

    @precondition(lambda self: self.sending)
    @rule()
    def fail(self) -> None:
        content, snapshot, _ = self.sending.pop(0)
        self.it.staging.give_back(content, snapshot)
        self.it.staging.release(content)
        [row] = [row for row in self.it.journal.of_ino(content.ino) if row.id in self.it.journal.taken]
        self.it.journal.give_back(row)

    @precondition(lambda self: self.sending)
    @rule(piece=st.sampled_from([64 << 10, 256 << 10]))
    def acknowledge(self, piece: int) -> None:
        content, snapshot, whole = self.sending.pop(0)
        pieces = [whole[start : start + piece] for start in range(0, len(whole), piece)]
        slices = [wire.Slice(chunk_id(KEY, one), 0, len(one)) for one in pieces]
        self.chunks |= {known.chunk: one for known, one in zip(slices, pieces, strict=True)}
        version, ino = os.urandom(16), content.ino
        with self.it.db.transaction():
            self.it.staging.committed(snapshot, slices, version)
            self.it.journal.remove([row for row in self.it.journal.of_ino(ino) if row.id in self.it.journal.taken])
        self.it.staging.settle(snapshot, slices, version)
        self.it.cache.space.collect()
        self.it.staging.release(content)
        self.sent[ino] = whole

    @rule(size=st.sampled_from([1, 200_000]))
    def evict(self, size: int) -> None:
        self.it.cache._evict(size)

    @rule()
    def collect(self) -> None:
        self.it.cache.space.collect()

    @invariant()
    def every_byte_is_what_it_was(self) -> None:
        for ino in FILES:
            content = self.it.acquire(ino)
            assert self.it.bytes_of(content.layers, self.chunks) == self.expected[ino]
            self.it.staging.release(content)
            if self.expected[ino] != self.sent[ino]:
                assert self.it.journal.inos[ino], "what is not sent has a row in the journal"
        for _, snapshot, whole in self.sending:
            assert self.it.bytes_of(snapshot.layers, self.chunks) == whole
        report = trio.run(self.it.checker.check)
        assert not report.faults + report.damaged + report.lost

    def teardown(self) -> None:
        self._context.__exit__(None, None, None)


def test_no_order_of_calls_changes_a_byte(soak: int) -> None:
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=40 * soak,
            stateful_step_count=40,
            derandomize=soak == 1,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
