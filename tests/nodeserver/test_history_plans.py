"""No statement about history, or of a commit, reads a table from end to end."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine

from nodeserver.metadata import buckets, commits, events, past, tables, versions
from nodeserver.metadata.migrations import migrate
from nodeserver.protocol.ids import new_id
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
    SetAttr,
    Slice,
    Unlink,
    VersionId,
    Write,
)

REGULAR, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
SCAN = re.compile(rf"SCAN (then|earlier|{'|'.join(tables.metadata.tables)})\b|SEARCH .*\(bucket=\?\)$")
"""Of a plan: a table is read, or all of it that is a bucket's."""
SMALL = re.compile(r"SEARCH (hold|retention) ")
"""Tables that are read whole on purpose."""


class Traced:
    """A bucket in a database whose statements are noted."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bucket = buckets.create(connection, "bucket", NewBucket(new_id()), 1)
        self.root = self.bucket.root
        self.statements: set[str] = set()
        self.driver = connection.connection.dbapi_connection
        assert self.driver is not None
        self.driver.set_trace_callback(self.statements.add)

    def commit(self, *ops: Op) -> None:
        batch = Commit(bytes(16), new_id(), list(ops))
        answer = commits.commit(self.connection, self.bucket.bucket, batch, author="ada", now_ns=1)
        assert {result.status for result in answer.results} == {"ok"}

    def scans(self) -> list[str]:
        """The steps of plans that read a whole table."""
        assert self.driver is not None
        self.driver.set_trace_callback(None)
        found = []
        for statement in self.statements:
            if statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE", "INSERT")):
                cursor = self.driver.cursor()
                cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
                found += [
                    f"{row[3]}: {statement}"
                    for row in cursor.fetchall()
                    if SCAN.match(row[3]) and not SMALL.match(row[3])
                ]
                cursor.close()
        return found


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
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
