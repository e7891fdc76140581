"""Random commits against the rules that every tree keeps, and against a plain dictionary."""

from __future__ import annotations

import contextlib
import itertools
import random
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, select

from nodeserver.metadata import buckets, commits, tables
from nodeserver.metadata.engines import connect
from nodeserver.metadata.migrations import migrate
from nodeserver.metadata.tables import LIVE
from nodeserver.protocol.wire import (
    Commit,
    Create,
    Exchange,
    File,
    FileId,
    Link,
    Manifest,
    NewBucket,
    Op,
    Rename,
    Result,
    SetAttr,
    Slice,
    Unlink,
    Write,
)

BOTH_ENGINES = True

Place = tuple[FileId, bytes]

NAMES = [b"a", b"b", b"c.txt"]
REGULAR, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
CLIENTS = [bytes([n]) * 16 for n in range(3)]


class Bucket:
    """A bucket in a database in memory."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.row = buckets.create(connection, "bucket", NewBucket(new_id()), 1)
        self.root = self.row.root
        self.trees: list[dict[Place, FileId]] = [{}]

    def commit(self, ops: list[Op], client: bytes = CLIENTS[0]) -> list[Result]:
        batch = Commit(client, new_id(), ops, "desk")
        answer = commits.commit(self.connection, self.row.bucket, batch, author="ada", now_ns=1)
        assert answer.seq == len(self.trees)
        self.trees.append(self.tree())
        return answer.results

    def tree(self, seq: int | None = None) -> dict[Place, FileId]:
        entry = tables.entry.c
        when = entry.until_seq == LIVE if seq is None else (entry.since_seq <= seq) & (entry.until_seq > seq)
        rows = self.connection.execute(select(entry.parent, entry.name, entry.file).where(when)).all()
        found = {(row.parent, row.name): row.file for row in rows}
        assert len(found) == len(rows), "a name is live twice"
        return found

    def check(self) -> None:
        """The rules that the columns of the tables promise."""
        tree = self.tree()
        files = {row.id: row for row in self.connection.execute(select(tables.file))}
        names, children = Counter(tree.values()), Counter(parent for parent, _ in tree)
        subdirectories = Counter(parent for (parent, _), id_ in tree.items() if stat.S_ISDIR(files[id_].mode))
        parents = {id_: parent for (parent, _), id_ in tree.items()}
        for id_, row in files.items():
            assert row.entries == children[id_]
            if stat.S_ISDIR(row.mode):
                here = id_ == self.root or id_ in names
                assert row.nlink == (2 + subdirectories[id_] if here else 0)
                assert names[id_] <= 1
            else:
                assert row.nlink == names[id_]
        for id_ in parents:
            steps = 0
            while id_ != self.root:
                id_, steps = parents[id_], steps + 1
                assert steps <= len(parents), "a loop"
        live = [row for row in files.values() if row.nlink]
        usage = buckets.find(self.connection, "bucket")
        assert usage.used_files == len(live) - 1
        assert usage.used_bytes == sum(row.size for row in live if stat.S_ISREG(row.mode))
        versions = {row.id: row for row in self.connection.execute(select(tables.version))}
        for row in files.values():
            mine = sorted((version.seq, version.number) for version in versions.values() if version.file == row.id)
            numbers = [number for _, number in mine]
            assert numbers == sorted(set(numbers))
            assert not mine or (versions[row.version].number, versions[row.version].size) == (numbers[-1], row.size)
            if row.follows:
                assert row.follows != row.id
                assert 0 < row.follows_seq <= row.since_seq
                assert stat.S_IFMT(row.mode) == stat.S_IFMT(files[row.follows].mode)
                if stat.S_ISDIR(row.mode):  # it met the other when it was to be made, and that is none that met one
                    assert not row.nlink
                    assert not files[row.follows].follows
                else:
                    assert stat.S_ISREG(row.mode)
            past = tables.past.c
            were = self.connection.execute(select(past.since_seq, past.until_seq).where(past.file == row.id)).all()
            spans = [*sorted((since, until) for since, until in were), (row.since_seq, LIVE)]
            assert all(since < until for since, until in spans)
            assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
        for seq, then in enumerate(self.trees):
            assert self.tree(seq) == then


_numbers = itertools.count()


def new_id() -> bytes:
    """Ids in a sequence: what sorts by them must do the same in each run of an example."""
    return next(_numbers).to_bytes(16, "big")


@pytest.fixture(scope="module")
def database(metadata_engine: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    if metadata_engine == "sqlite":
        made = create_engine("sqlite://")
    else:
        made = connect(request.getfixturevalue("postgres_server").create()).writing
    yield made
    made.dispose()


@contextmanager
def bucket(database: Engine) -> Iterator[Bucket]:
    """In a database that is empty before and after."""
    global _numbers
    _numbers = itertools.count(1)
    patches = (mock.patch(f"nodeserver.metadata.{module}.new_id", new_id) for module in ("apply", "buckets"))
    with contextlib.ExitStack() as stack:
        stack.callback(database.dispose)  # of one in memory nothing is left then
        for patch in patches:
            stack.enter_context(patch)
        connection = stack.enter_context(database.connect())
        transaction = connection.begin()
        migrate(connection)
        yield Bucket(connection)
        transaction.rollback()


def new_file(mode: int) -> File:
    return File(new_id(), mode)


def write(file: FileId, size: int, base: bytes, session: bytes, hash_: bytes = b"") -> Write:
    """Content of its own, unless ``hash_`` says what it is."""
    slices = [Slice(b"", 0, size)] if size else []
    version = new_id()
    return Write(file, version, size, hash_ or version * 2, Manifest(slices), 1, 1, base, session)


class Chaos:
    """Clients that believe anything: ids, places and versions that are, were, or never have been."""

    def __init__(self, rng: random.Random, root: FileId) -> None:
        self.rng = rng
        self.files = [root, new_id()]
        self.places: list[Place] = [(root, name) for name in NAMES]
        self.versions = [b"", new_id()]
        self.sessions = [b"", new_id(), new_id()]

    def op(self) -> Op:
        pick, rng = self.rng.choice, self.rng
        (parent, name), (other, other_name) = self.place(), self.place()
        file, other_file = pick(self.files), pick(self.files)
        match rng.randrange(12):
            case 0 | 1 | 2:
                file_ = new_file(pick([REGULAR, DIRECTORY]))
                self.files += [file_.id] * 3
                self.places += [(file_.id, name) for name in NAMES]
                return Create(parent, name, file_, 1, pick([b"", b"", other]))
            case 3:
                return Link(parent, name, file, 1)
            case 4 | 5:
                return Unlink(parent, name, file, 1)
            case 6 | 7 | 8:
                return Rename(parent, name, file, other, other_name, 1, pick([b"", other_file]))
            case 9:
                return Exchange(parent, name, file, other, other_name, other_file, 1)
            case 10:
                return SetAttr(file, 1, mode=REGULAR)
        made = write(file, rng.randrange(100), pick(self.versions), pick(self.sessions), bytes(32))
        self.versions.append(made.version)
        return made

    def place(self) -> Place:
        return self.rng.choice(self.places)

    def learn(self, tree: dict[Place, FileId]) -> None:
        """Believe something true, so that operations fit often enough."""
        for (parent, name), file in tree.items():
            self.places.append((parent, name))
            self.files.append(file)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 12), max_size=8))
def test_no_commit_breaks_the_rules(database: Engine, rng: random.Random, sizes: list[int]) -> None:
    with bucket(database) as it:
        chaos = Chaos(rng, it.root)
        for size in sizes:
            ops = [_fit(it, chaos, rng) if rng.random() < 0.6 else chaos.op() for _ in range(size)]
            results = it.commit(ops, rng.choice(CLIENTS))
            assert len(results) == size
            stored = set(it.connection.execute(select(tables.version.c.id)).scalars())
            replaceable = {op.version for op in ops if isinstance(op, Write) and op.session}
            for op, result in zip(ops, results, strict=True):
                if isinstance(op, Write) and result.status != "dropped":
                    assert op.version in stored | replaceable or result.status == "same", "content was lost"
                if result.status == "conflict":
                    assert len(result.name) <= 255
            it.check()


def _fit(it: Bucket, chaos: Chaos, rng: random.Random) -> Op:
    """An operation that fits the tree before the batch."""
    tree = it.trees[-1]
    if not tree:
        return chaos.op()
    (parent, name), file = rng.choice(sorted(tree.items()))
    other, other_name = chaos.place()
    (one_parent, one_name), one = rng.choice(sorted(tree.items()))
    head = it.connection.execute(select(tables.file.c.version).where(tables.file.c.id == file)).scalar_one()
    chaos.learn(tree)
    ops: list[Op] = [
        Unlink(parent, name, file, 1),
        Rename(parent, name, file, other, other_name, 1, tree.get((other, other_name), b"")),
        Exchange(parent, name, file, one_parent, one_name, one, 1),
        write(file, rng.randrange(3), head, rng.choice(chaos.sessions), bytes(32)),
        Link(other, other_name, file, 1),
    ]
    return rng.choice(ops)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 20))
def test_what_one_client_does_is_what_a_dictionary_does(
    database: Engine, rng: random.Random, count: int, batch: int
) -> None:
    """Operations that fit, however they are cut into batches, all succeed and lead to the same tree."""
    with bucket(database) as it:
        model: dict[Place, FileId] = {}
        directories, sizes, heads = {it.root}, dict[FileId, int](), dict[FileId, bytes]()
        pending: list[Op] = []
        for _ in range(count):
            parent, name = rng.choice(sorted(directories)), rng.choice(NAMES)
            held = model.get((parent, name))
            if held is None:
                made = new_file(rng.choice([REGULAR, DIRECTORY]))
                pending.append(Create(parent, name, made, 1))
                model[parent, name] = made.id
                if made.mode == DIRECTORY:
                    directories.add(made.id)
                else:
                    sizes[made.id], heads[made.id] = 0, b""
            elif held in directories:
                if held not in {above for above, _ in model}:
                    pending.append(Unlink(parent, name, held, 1))
                    del model[parent, name]
                    directories.discard(held)
            elif rng.random() < 0.5:
                made_write = write(held, rng.randrange(100), heads[held], b"")
                pending.append(made_write)
                sizes[held], heads[held] = made_write.size, made_write.version
            else:
                target = rng.choice(sorted(directories)), rng.choice(NAMES)
                replaced = model.get(target)
                if replaced not in directories and replaced != held:
                    pending.append(Rename(parent, name, held, *target, 1, replaced or b""))
                    del model[parent, name]
                    model[target] = held
            if len(pending) >= batch:
                assert {result.status for result in it.commit(pending)} == {"ok"}
                pending = []
        it.commit(pending)
        assert it.tree() == model
        it.check()
        assert buckets.find(it.connection, "bucket").used_bytes == sum(
            sizes[file] for file in set(model.values()) if file in sizes
        )
