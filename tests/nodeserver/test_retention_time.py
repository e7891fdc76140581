"""Retention over months, with a clock of its own: the functions inside one transaction, on a database in memory."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, func, select

from nodeserver.metadata import buckets, commits, holds, purges, remains, retention, tables
from nodeserver.metadata import past as trees
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.migrations import migrate
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.thinning import DAY, HOUR, MINUTE
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Commit,
    Create,
    File,
    FileId,
    Hold,
    Manifest,
    NewBucket,
    Op,
    Policy,
    Purge,
    Rename,
    SetAttr,
    Slice,
    Unlink,
    Write,
)

BOTH_ENGINES = True

S = 1_000_000_000
REGULAR, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Past:
    """A bucket and a clock."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.now = 1_700_000_000 * S
        self.bucket: BucketRow = buckets.create(connection, "bucket", NewBucket(new_id()), self.now)
        self.root = self.bucket.root

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * S)

    def commit(self, *ops: Op) -> None:
        batch = Commit(new_id(), new_id(), list(ops))
        answer = commits.commit(self.connection, self.bucket.bucket, batch, author="ada", now_ns=self.now)
        assert {result.status for result in answer.results} == {"ok"}

    def create(self, name: bytes, mode: int = REGULAR, parent: FileId = b"") -> FileId:
        file = new_id()
        self.commit(Create(parent or self.root, name, File(file, mode), self.now))
        return file

    def save(self, file: FileId) -> None:
        head = self.connection.execute(select(tables.file.c.version).where(tables.file.c.id == file)).scalar_one()
        size = int.from_bytes(os.urandom(2), "big") + 1
        self.commit(Write(file, new_id(), size, os.urandom(32), Manifest([Slice(b"", 0, size)]), 1, 1, head))

    def unlink(self, name: bytes, file: FileId, parent: FileId = b"") -> None:
        self.commit(Unlink(parent or self.root, name, file, self.now))

    def policy(self, policy: Policy, directory: FileId = b"") -> None:
        retention.set_policy(self.connection, self.bucket.bucket, directory or self.root, policy)

    def thin(self) -> int:
        """What the worker does; how many versions went."""
        number, gone, after = self.bucket.bucket, 0, b""
        while True:
            found = retention.look(self.connection, number, after, self.now)
            gone += len(retention.take_out(self.connection, number, found.files, self.now))
            if not (after := found.last):
                break
        while True:
            after, files = remains.changed_files(self.connection, number, after, self.now)
            remains.thin_past(self.connection, number, files, self.now)
            if not after:
                break
        for forget in (remains.end_entries, remains.forget_files):
            while True:
                after, _ = forget(self.connection, number, after, self.now)
                if not after:
                    break
        return gone

    def count(self, table: str, **where: object) -> int:
        found = tables.metadata.tables[table]
        query = select(func.count()).select_from(found)
        for column, value in where.items():
            query = query.where(found.c[column] == value)
        return int(self.connection.execute(query).scalar_one())

    def ended(self) -> int:
        """Names that are history."""
        query = select(func.count()).select_from(tables.entry).where(tables.entry.c.until_seq < LIVE)
        return int(self.connection.execute(query).scalar_one())


@pytest.fixture
def past() -> Iterator[Past]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        migrate(connection)
        yield Past(connection)
    engine.dispose()


def test_a_file_that_is_saved_all_the_time_has_what_the_slots_keep(past: Past) -> None:
    file = past.create(b"f")
    for pause, times in ((6 * HOUR, 160), (10 * MINUTE, 300), (20, 200), (1, 60)):
        for _ in range(times):
            past.wait(pause)
            past.save(file)
        past.thin()
    assert past.count("version") < 60 + 31 + 61 + 25 + 32 + 5
    assert past.count("past") <= past.count("version") + 40, "what the file was is thinned by the same slots"
    before = past.count("version")
    past.wait(40 * DAY)
    past.thin()
    assert past.count("version") < before / 3
    past.wait(1000 * DAY)
    past.thin()
    assert past.count("version") == 1
    assert past.count("past", file=file) == 0


def test_a_deleted_file_is_kept_for_a_year_and_then_forgotten(past: Past) -> None:
    folder = past.create(b"d", DIRECTORY)
    file = past.create(b"f", parent=folder)
    past.save(file)
    past.wait(700 * DAY)
    past.unlink(b"f", file, folder)
    past.unlink(b"d", folder)
    past.wait(364 * DAY)
    assert past.thin() == 0
    assert past.ended() == 2
    past.wait(2 * DAY)
    assert past.thin() == 1
    past.thin()
    assert (past.count("version"), past.ended(), past.count("file"), past.count("past", file=file)) == (0, 0, 1, 0)


def test_what_retention_takes_at_once_is_known_for_a_month(past: Past) -> None:
    """So that a late write to a deleted file brings it back instead of being dropped."""
    past.policy(Policy(max_age=0))
    file = past.create(b"f")
    past.save(file)
    past.unlink(b"f", file)
    past.wait(29 * DAY)
    assert past.thin() == 1
    assert past.count("file", id=file) == 1
    assert past.ended() == 1
    past.wait(2 * DAY)
    past.thin()
    assert past.count("file", id=file) == 0
    assert past.ended() == 0


def test_names_that_ended_are_forgotten_with_the_policy(past: Past) -> None:
    file = past.create(b"a")
    past.save(file)
    past.commit(Rename(past.root, b"a", file, past.root, b"b", past.now))
    past.wait(364 * DAY)
    past.thin()
    assert past.ended() == 1
    past.wait(2 * DAY)
    past.thin()
    assert past.ended() == 0
    assert past.count("version") == 1


def test_attributes_of_the_past_are_thinned_but_those_of_the_last_minutes(past: Past) -> None:
    file = past.create(b"f")
    for number in range(120):
        past.wait(30)
        past.commit(SetAttr(file, past.now, mode=REGULAR ^ (number % 2)))
    past.thin()
    # Ten minutes whole, 50 minutes by the minute.
    assert 20 + 45 <= past.count("past", file=file) <= 20 + 55
    past.wait(DAY + HOUR)
    past.thin()
    assert past.count("past", file=file) <= 3


def test_directories_that_change_all_the_time_do_not_fill_the_database(past: Past) -> None:
    for number in range(200):
        past.wait(3 * HOUR)
        past.create(b"%d" % number)
    assert past.count("past", file=past.root) == 200
    past.thin()
    assert past.count("past", file=past.root) < 40


def test_what_is_held_is_left_alone_for_ever(past: Past) -> None:
    folder = past.create(b"d", DIRECTORY)
    file = past.create(b"f", parent=folder)
    for _ in range(5):
        past.wait(HOUR)
        past.save(file)
    past.unlink(b"f", file, folder)
    holds.place(past.connection, past.bucket.bucket, Hold(folder, past.now, "ada", ""))
    rows = past.count("past", file=file)
    past.wait(3000 * DAY)
    past.thin()
    assert (past.count("version"), past.count("past", file=file), past.count("file", id=file)) == (5, rows, 1)
    assert past.ended() == 1
    holds.release(past.connection, past.bucket.bucket, folder)
    past.thin()
    past.thin()
    assert (past.count("version"), past.count("past", file=file), past.count("file", id=file)) == (0, 0, 0)


def test_a_thousand_saves_by_rename_are_one_history(past: Past) -> None:
    old = past.create(b"f")
    past.save(old)
    for _ in range(300):
        past.wait(HOUR)
        new = new_id()
        past.commit(
            Create(past.root, b"f.new", File(new, REGULAR), past.now),
            Write(new, new_id(), 9, os.urandom(32), Manifest([Slice(b"", 0, 9)]), 1, 1),
            Rename(past.root, b"f.new", new, past.root, b"f", past.now, old),
        )
        old = new
    past.thin()
    assert past.count("version") < 40
    newest = buckets.find(past.connection, "bucket").seq
    shown = [trees.lookup(past.connection, past.bucket.bucket, past.root, b"f", at).file for at in range(1, newest + 1)]
    kept = [file for file in shown if file and file.manifest and file.nlink == 1]
    assert len(kept) > 290, "what went is stood in for by what stayed before it"
    assert shown[-len(kept) :] == kept
    past.wait(500 * DAY)
    past.thin()
    past.thin()
    assert past.count("version") == 1
    assert past.count("file") == 2, "the root and the last"
    assert past.ended() == 0
    [row] = past.connection.execute(select(tables.file).where(tables.file.c.id == old))
    assert not row.follows


def test_large_histories_are_taken_out_in_steps(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 10)
    monkeypatch.setattr(retention, "PAGE", 3)
    monkeypatch.setattr(remains, "PAGE", 2)
    for number in range(8):
        file = past.create(b"%d" % number)
        for _ in range(25):
            past.wait(1)
            past.save(file)
    past.wait(2 * HOUR)
    steps = list(itertools.takewhile(bool, (past.thin() for _ in range(100))))
    assert sum(steps) > 8 * 22
    assert past.count("version") <= 8 * 2


def test_a_purge_of_a_deleted_file_leaves_no_trace_but_the_record(past: Past) -> None:
    file = past.create(b"f")
    for _ in range(3):
        past.save(file)
    past.unlink(b"f", file)
    done = purges.purge(past.connection, past.bucket.bucket, Purge(past.root, b"f"), author="eve", now_ns=past.now)
    assert len(done.contents) == 3
    assert (past.count("version"), past.count("past", file=file), past.ended()) == (0, 0, 0)
    [row] = past.connection.execute(select(tables.commit).where(tables.commit.c.seq == done.seq))
    assert row.author == "eve"
