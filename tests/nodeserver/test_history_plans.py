"""No statement about history, or of a commit, reads a table from end to end."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import ClientCursor, Cursor
from sqlalchemy import Column, Connection, Integer, Text, create_engine, insert, text

from nodeserver.metadata import (
    buckets,
    commits,
    events,
    garbage,
    holds,
    past,
    purges,
    remains,
    retention,
    tables,
    versions,
)
from nodeserver.metadata.engines import connect
from nodeserver.metadata.migrations import migrate
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Commit,
    Create,
    Exchange,
    File,
    FileId,
    Hold,
    Link,
    Manifest,
    NewBucket,
    Op,
    Policy,
    Purge,
    Rename,
    SetAttr,
    Slice,
    Unlink,
    VersionId,
    Write,
)

REGULAR, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
SCAN = re.compile(rf"SCAN (then|earlier|{'|'.join(tables.metadata.tables)})\b|SEARCH .*\(bucket=\?\)$")
"""Of a plan of SQLite: a table is read, or all of it that is a bucket's."""
POSTGRES_SCAN = re.compile(r"Seq Scan on (\w+)|Index Cond: \(\(?bucket = [^)]*\)+$")
"""The same of PostgreSQL, which was told to read no table that has an index."""
SMALL = re.compile(r"(SEARCH|SCAN|Scan on|Scan using \w+ on) (hold|retention|bucket|condemned)(_pkey)?\b")
"""Tables that are read whole on purpose, or that are mostly empty."""

BOTH_ENGINES = True
BEYOND, ROWS = 1 << 40, 3000
"""The first number of rows that only fill tables, and how many they are."""
PAST_FILLING = b"\x00\xff"
"""An id between theirs and those of UUIDs."""


class Traced:
    """A bucket in a database whose statements are noted."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bucket = buckets.create(connection, "bucket", NewBucket(new_id()), 1)
        self.root = self.bucket.root
        self.statements: set[str] = set()
        self.sqlite = connection.dialect.name == "sqlite"
        if not self.sqlite:
            self._fill()
        driver: Any = connection.connection.dbapi_connection
        self.driver = driver
        if self.sqlite:
            self.driver.set_trace_callback(self.statements.add)
        else:
            self.driver.cursor_factory = self._noting()

    def _fill(self) -> None:
        """Rows that nothing refers to: of a small table PostgreSQL rather reads all."""
        for table in (tables.file, tables.entry, tables.past, tables.version, tables.commit):
            rows = [
                {column.name: _value(column, number) for column in table.columns} | {"bucket": self.bucket.bucket}
                for number in range(BEYOND, BEYOND + ROWS)
            ]
            self.connection.execute(insert(table), rows)
            self.connection.execute(text(f"ANALYZE {table.name}"))

    def _noting(self) -> type[ClientCursor[Any]]:
        """Cursors of PostgreSQL that note what they execute, with the values in it."""
        statements = self.statements

        class Noting(ClientCursor[Any]):
            def execute(self, query: Any, params: Any = None, **how: Any) -> Any:
                statements.add(self.mogrify(query, params))
                return super().execute(query, params, **how)

        return Noting

    def commit(self, *ops: Op) -> None:
        batch = Commit(bytes(16), new_id(), list(ops))
        answer = commits.commit(self.connection, self.bucket.bucket, batch, author="ada", now_ns=1)
        assert {result.status for result in answer.results} == {"ok"}

    def scans(self) -> list[str]:
        """The steps of plans that read a whole table."""
        if self.sqlite:
            self.driver.set_trace_callback(None)
        else:
            self.driver.cursor_factory = Cursor
            self.driver.execute("SET enable_seqscan = off")
        scan = SCAN if self.sqlite else POSTGRES_SCAN
        found = []
        for statement in sorted(self.statements):
            if statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE", "INSERT")):
                found += [f"{step}: {statement}" for step in self._plan(statement) if scan.search(step)]
        return [step for step in found if not SMALL.search(step.split(": ")[0])]

    def _plan(self, statement: str) -> list[str]:
        """The steps of a plan, those of PostgreSQL each with its condition."""
        cursor = self.driver.cursor()
        try:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if self.sqlite else '(COSTS OFF) '}{statement}")
            steps = [str(row[3] if self.sqlite else row[0]).strip() for row in cursor.fetchall()]
        finally:
            cursor.close()
        for index, step in enumerate(steps):
            if step.startswith("Index Cond:"):
                steps[index] = f"{steps[index - 1]} {step}"
        return steps


def _value(column: Column[Any], number: int) -> object:
    """Something for a column, another for each number where it is part of a key."""
    if isinstance(column.type, Integer):
        return number if column.primary_key else 1
    data = number.to_bytes(16, "big")
    return data.hex() if isinstance(column.type, Text) else data


@pytest.fixture
def traced(request: pytest.FixtureRequest, metadata_engine: str, tmp_path: Path) -> Iterator[Traced]:
    if metadata_engine == "postgresql":
        engine = connect(request.getfixturevalue("postgres_server").create()).writing
    else:
        engine = create_engine(f"sqlite:///{tmp_path / 'metadata.sqlite'}")
    with engine.begin() as connection:
        migrate(connection)
        yield Traced(connection)
    engine.dispose()


def create(parent: FileId, name: bytes, mode: int = REGULAR) -> Create:
    return Create(parent, name, File(new_id(), mode), 1)


def write(file: FileId, base: VersionId = b"") -> Write:
    version = new_id()
    return Write(file, version, 1, version * 2, Manifest([Slice(b"", 0, 1)]), 1, 1, base)


def test_every_statement_uses_an_index(traced: Traced) -> None:
    top = create(traced.root, b"top", DIRECTORY)
    docs = [create(top.file.id, b"doc%d" % number) for number in range(3)]
    writes = [write(doc.file.id) for doc in docs]
    traced.commit(top, *docs, *writes)
    first, second, third = (doc.file.id for doc in docs)
    directory = top.file.id
    traced.commit(
        Rename(directory, b"doc0", first, directory, b"doc1", 1, second), Unlink(directory, b"doc2", third, 1)
    )
    again = create(directory, b"doc2")
    traced.commit(again, SetAttr(first, 1, mode=REGULAR & ~0o077), write(first, writes[0].version))
    traced.commit(Link(traced.root, b"link", first, 1), write(again.file.id))
    traced.commit(Exchange(directory, b"doc1", first, directory, b"doc2", again.file.id, 1))
    bucket, connection = traced.bucket.bucket, traced.connection
    for at in range(6):
        past.entries(connection, bucket, traced.root, b"", 10, at)
        past.tree(connection, bucket, traced.root, b"", 10, at)
        past.lookup(connection, bucket, traced.root, b"link", at)
    for file in (first, second, third, directory):
        past.file(connection, bucket, file, 1)
        events.log(connection, bucket, file, 0, 10)
    past.moment(connection, bucket, 1 << 60)
    assert versions.names(connection, bucket, directory, b"", 10).names
    for name in (b"doc1", b"doc2"):
        page = versions.versions(connection, bucket, directory, name, b"", 10)
        versions.version(connection, bucket, page.versions[0].id)
        versions.occupants(connection, bucket, directory, name)
    assert len(traced.statements) > 100
    assert traced.scans() == []


def test_every_statement_of_upkeep_uses_an_index(traced: Traced) -> None:
    """Retention, purge and garbage collection ask about some files, not about all of a bucket."""
    top = create(traced.root, b"top", DIRECTORY)
    docs = [create(top.file.id, b"doc%d" % number) for number in range(3)]
    directory, (first, third) = top.file.id, (docs[0].file.id, docs[2].file.id)
    traced.commit(top, *docs, *(write(doc.file.id) for doc in docs))
    for number in range(3):
        again = create(directory, b"new")
        traced.commit(
            again, write(again.file.id), Rename(directory, b"new", again.file.id, directory, b"doc0", 1, first)
        )
        first = again.file.id
        traced.commit(SetAttr(first, 1, mtime_ns=number))
    traced.commit(Unlink(directory, b"doc2", third, 1))
    bucket, connection, late = traced.bucket.bucket, traced.connection, 1 << 62
    holds.place(connection, bucket, Hold(directory, 1, "ada", "kept"))
    holds.release(connection, bucket, directory)
    retention.set_policy(connection, bucket, directory, Policy(max_age=1, max_versions=1))
    found = retention.look(connection, bucket, PAST_FILLING, late)
    assert found.versions
    purges.purge(connection, bucket, Purge(directory, b"doc2"), author="ada", now_ns=2)
    retention.take_out(connection, bucket, found.files, late)
    _, changed = remains.changed_files(connection, bucket, PAST_FILLING, late)
    assert changed
    remains.thin_past(connection, bucket, changed, late)
    remains.end_entries(connection, bucket, PAST_FILLING, late)
    remains.forget_files(connection, bucket, PAST_FILLING, late)
    chunks = [bytes(32), bytes(31) + b"x"]
    garbage.condemn(connection, bucket, chunks, 1)
    garbage.condemned(connection, bucket, 0, 128)
    garbage.take_back(connection, bucket, chunks[:1])
    garbage.doom(connection, bucket, chunks, 2, 3)
    garbage.settle(connection, bucket, chunks)
    garbage.acquit(connection, bucket, chunks)
    assert len(traced.statements) > 50
    assert traced.scans() == []
