"""All metadata of a database into a file, and from one into an empty database; in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    LargeBinary,
    MetaData,
    Table,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

from nodeserver.metadata import tables
from nodeserver.metadata.buckets import OWNED
from nodeserver.metadata.database import Database
from nodeserver.metadata.dumpfile import BadDump, Head, Rows, Sum, Tail, Writer, check, frames
from nodeserver.metadata.migrations import FIRST, LOADING, STEPS
from nodeserver.protocol.ids import new_id

MOVED = {str(table.name): table for table in (tables.bucket, *OWNED)}
"""What a dump holds: all but the format and the servers' secrets. First what others refer to."""
FORMAT = FIRST + len(STEPS)
FRAME_ROWS, FRAME_BYTES = 1000, 1 << 20
"""A frame ends at the row that reaches one of them."""
FETCH = 100
"""Rows fetched at a time."""

_state = Table(
    "load_state", MetaData(), Column("dump", LargeBinary, nullable=False), Column("done", BigInteger, nullable=False)
)
"""One row while a load is under way: which dump's, and the offset behind the last frame that is in the tables."""


class Refused(Exception):
    """The database is not one that this can be done with."""


class Mismatch(Exception):
    """What was loaded is not what was dumped."""


async def dump(url: str, path: Path) -> dict[str, int]:
    """Write all metadata, as of one moment, to a file; the number of rows of each table.

    Raises ``UnusableUrl``, ``Refused``, ``Unavailable``, ``SQLAlchemyError``, ``OSError``.
    """
    database = Database(url)
    try:
        return await database.read(_dump, path)
    finally:
        await database.close()


async def load(url: str, path: Path) -> dict[str, int]:
    """Fill an empty database, or go on where an earlier load of the same file ended; the rows of each table.

    No server may run on the database. Raises as ``dump``, and ``BadDump``, ``Mismatch``.
    """
    head, tail = check(path)
    if head.format != FORMAT:
        raise BadDump(f"{path} has metadata of format {head.format}; this release loads format {FORMAT} alone")
    if head.columns != {name: _names(table) for name, table in MOVED.items()}:
        raise BadDump(f"{path} has other columns than this release")
    database = Database(url)
    try:
        done = await database.repeat(_begin, head.id)
        for frame, end in frames(path, done):
            if isinstance(frame, Rows):
                await database.repeat(_insert, frame, head.id, done, end)
                done = end
        for name, table in MOVED.items():
            if (found := await database.read(_sum, table)) != tail.tables[name]:
                raise Mismatch(f"{name} is not as it was dumped: {found.rows} rows of {tail.tables[name].rows}")
        await database.repeat(_finish, tail)
    finally:
        await database.close()
    return {name: sum_.rows for name, sum_ in tail.tables.items()}


def _dump(connection: Connection, path: Path) -> dict[str, int]:
    known = inspect(connection).has_table(tables.schema_version.name)
    found = connection.execute(select(tables.schema_version.c.version)).scalar_one() if known else None
    if found != FORMAT:
        raise Refused(
            "there is no metadata"
            if found is None
            else f"the metadata has format {found}, this release dumps format {FORMAT} alone: "
            "start a server of this release on it first"
        )
    columns = {name: _names(table) for name, table in MOVED.items()}
    with Writer(path) as file:
        file.write(Head(new_id(), FORMAT, time.time_ns(), columns))
        sums = {}
        for name, table in MOVED.items():
            sums[name] = _Summer()
            rows: list[list[Any]] = []
            size = 0
            for row in _rows(connection, table):
                rows.append(row)
                size += sums[name].add(row)
                if len(rows) >= FRAME_ROWS or size >= FRAME_BYTES:
                    file.write(Rows(name, rows))
                    rows, size = [], 0
            if rows:
                file.write(Rows(name, rows))
        result = {name: sum_.result() for name, sum_ in sums.items()}
        file.write(Tail(result, _last_bucket(connection)))
    return {name: sum_.rows for name, sum_ in result.items()}


def _begin(connection: Connection, dump_id: bytes) -> int:
    """Mark an empty database as being loaded; the offset of what is to be loaded next."""
    version = tables.schema_version
    found = None
    if inspect(connection).has_table(version.name):
        found = connection.execute(select(version.c.version)).scalar_one()
    if found == LOADING:
        state = connection.execute(select(_state)).one()
        if state.dump != dump_id:
            raise Refused("a load of another dump into this database was begun and not finished")
        done: int = state.done
        return done
    if found is None:
        tables.metadata.create_all(connection)
        connection.execute(insert(version).values(version=LOADING))
    elif found != FORMAT:
        raise Refused(f"the database has metadata of format {found}; it must be empty")
    else:
        for table in MOVED.values():
            if connection.execute(select(*table.primary_key).limit(1)).first() is not None:
                raise Refused("the database has metadata; it must be empty")
        connection.execute(update(version).values(version=LOADING))
    _state.create(connection)
    connection.execute(insert(_state).values(dump=dump_id, done=0))
    return 0


def _insert(connection: Connection, frame: Rows, dump_id: bytes, done: int, end: int) -> None:
    state = connection.execute(select(_state)).one()
    if state.dump == dump_id and state.done == end:
        return
    if state.dump != dump_id or state.done != done:
        raise Refused("another load into this database is under way")
    table = MOVED[frame.table]
    names = _names(table)
    connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in frame.rows])
    connection.execute(update(_state).values(done=end))


def _finish(connection: Connection, tail: Tail) -> None:
    version = tables.schema_version
    if connection.execute(select(version.c.version)).scalar_one() == FORMAT:
        return
    if tail.last_bucket and connection.dialect.name == "sqlite":
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = 'bucket'"))
        connection.execute(text("INSERT INTO sqlite_sequence VALUES ('bucket', :last)"), {"last": tail.last_bucket})
    elif tail.last_bucket:
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence('bucket', 'bucket'), :last)"), {"last": tail.last_bucket}
        )
    _state.drop(connection)
    connection.execute(update(version).values(version=FORMAT))


def _last_bucket(connection: Connection) -> int:
    """The greatest number that a bucket ever had, deleted ones too."""
    if connection.dialect.name == "sqlite":
        last = text("SELECT seq FROM sqlite_sequence WHERE name = 'bucket'")
    else:
        last = text("SELECT pg_sequence_last_value(pg_get_serial_sequence('bucket', 'bucket')::regclass)")
    greatest = select(func.max(tables.bucket.c.bucket))
    return max(connection.execute(last).scalar() or 0, connection.execute(greatest).scalar() or 0)


class _Summer:
    def __init__(self) -> None:
        self._hash = blake3()
        self._count = 0

    def add(self, row: list[Any]) -> int:
        """Returns the bytes of the row's MessagePack."""
        packed = msgspec.msgpack.encode(row)
        self._hash.update(packed)
        self._count += 1
        return len(packed)

    def result(self) -> Sum:
        return Sum(self._count, self._hash.digest())


def _sum(connection: Connection, table: Table) -> Sum:
    sum_ = _Summer()
    for row in _rows(connection, table):
        sum_.add(row)
    return sum_.result()


def _rows(connection: Connection, table: Table) -> Iterator[list[Any]]:
    """The rows of a table in the order of its key, a few at a time."""
    key = [column for column in table.c if column.primary_key]
    ordered = select(*table.c).order_by(*key).execution_options(yield_per=FETCH)
    for row in connection.execute(ordered):
        yield list(row)


def _names(table: Table) -> list[str]:
    return [str(column.name) for column in table.c]
