"""Trees from and to the tables. All of it runs inside the caller's transaction."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    Dialect,
    Insert,
    Row,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from nodeserver.metadata import tables
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Held, Inode, Place, Tree, Version
from nodeserver.protocol.wire import FileId, VersionId

T = TypeVar("T")

IN_LIST = 8000
"""Values in one IN list; SQLite and PostgreSQL take some 32,000 parameters in a statement."""

INODE = [column for column in tables.file.c if column.name != "bucket"]
VERSION = [
    column for column in tables.version.c if column.name not in ("bucket", "client", "author", "seq", "committed_ns")
]
_inode_values = attrgetter(*(column.name for column in INODE))
_version_values = attrgetter(*(column.name for column in VERSION))


def _by_ids(table: Table, columns: Sequence[Any]) -> Select[Any]:
    wanted: BindParameter[list[bytes]] = bindparam("ids", expanding=True)
    return select(*columns).where(table.c.bucket == bindparam("bucket"), table.c.id.in_(wanted))


_INODES, _VERSIONS = _by_ids(tables.file, INODE), _by_ids(tables.version, VERSION)
_ENTRIES = select(tables.entry.c.name, tables.entry.c.file, tables.entry.c.since_seq).where(
    tables.entry.c.bucket == bindparam("bucket"),
    tables.entry.c.parent == bindparam("parent"),
    tables.entry.c.until_seq == LIVE,
    tables.entry.c.name.in_(bindparam("names", expanding=True)),
)


class Rows:
    """The ``Source`` of one bucket's trees."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection = connection
        self._bucket = bucket

    def inodes(self, ids: Iterable[FileId]) -> Mapping[FileId, Inode]:
        return {row.id: Inode(*tuple(row)) for row in self._by_id(_INODES, ids)}

    def versions(self, ids: Iterable[VersionId]) -> Mapping[VersionId, Version]:
        return {row.id: Version(*tuple(row)) for row in self._by_id(_VERSIONS, ids)}

    def entries(self, places: Iterable[Place]) -> Mapping[Place, Held]:
        names = defaultdict(list)
        for parent, name in places:
            names[parent].append(name)
        found = {}
        for parent, wanted in names.items():
            for some in _slices(wanted):
                values = {"bucket": self._bucket, "parent": parent, "names": some}
                for name, file, since in self._connection.execute(_ENTRIES, values):
                    found[parent, name] = Held(file, since)
        return found

    def places(self, file: FileId) -> Mapping[Place, Held]:
        entry = tables.entry.c
        rows = self._connection.execute(
            select(entry.parent, entry.name, entry.since_seq).where(
                entry.bucket == self._bucket, entry.file == file, entry.until_seq == LIVE
            )
        )
        return {(parent, name): Held(file, since) for parent, name, since in rows}

    def last_place(self, file: FileId) -> Place | None:
        entry = tables.entry.c
        row = self._connection.execute(
            select(entry.parent, entry.name)
            .where(entry.bucket == self._bucket, entry.file == file, entry.until_seq < LIVE)
            .order_by(entry.until_seq.desc(), entry.parent, entry.name)
            .limit(1)
        ).first()
        return (row.parent, row.name) if row else None

    def _by_id(self, query: Select[Any], ids: Iterable[bytes]) -> Iterator[Row[Any]]:
        for some in _slices(ids):
            yield from self._connection.execute(query, {"bucket": self._bucket, "ids": some})


def write_back(
    connection: Connection, bucket: int, tree: Tree, *, seq: int, time_ns: int, client: bytes, author: str
) -> dict[Place, FileId | None]:
    """Store what commit ``seq`` did to ``tree``; returns the entries that changed and what they name now."""
    moved = tree.moved()
    ended = [(seq, bucket, parent, LIVE, name) for (parent, name) in moved if tree.before[parent, name]]
    begun = [(bucket, parent, LIVE, name, file, seq) for (parent, name), file in moved.items() if file is not None]
    stamp = (client, author, seq, time_ns)
    _many(connection, _END_ENTRY, ended)
    _many(connection, _INSERT_ENTRY, begun)
    _many(connection, _INSERT_FILE, [(bucket, *_inode_values(inode)) for inode in tree.created.values()])
    _many(connection, _UPDATE_FILE, [(*_inode_values(inode)[1:], bucket, inode.id) for inode in tree.changed.values()])
    _many(connection, _DELETE_VERSION, [(bucket, id_) for id_ in tree.replaced])
    written = tree.written.values()
    _many(connection, _INSERT_VERSION, [(bucket, *_version_values(version), *stamp) for version in written])
    return moved


def _key(table: Table, *names: str) -> ColumnElement[bool]:
    return and_(*(table.c[name] == bindparam(f"key_{name}") for name in names))


# Their parameters are the columns in the order of the tables; of an update the new values, then the key.
_INSERT_ENTRY, _INSERT_FILE, _INSERT_VERSION = insert(tables.entry), insert(tables.file), insert(tables.version)
_END_ENTRY = (
    update(tables.entry)
    .where(_key(tables.entry, "bucket", "parent", "until_seq", "name"))
    .values(until_seq=bindparam("until_seq"))
)
_UPDATE_FILE = (
    update(tables.file)
    .where(_key(tables.file, "bucket", "id"))
    .values({column: bindparam(column.name) for column in INODE if column.name != "id"})
)
_DELETE_VERSION = delete(tables.version).where(_key(tables.version, "bucket", "id"))


def _many(connection: Connection, statement: Insert | Update | Delete, rows: list[tuple[Any, ...]]) -> None:
    """Execute for each row. Past the compiler: checking and naming each value costs more than SQLite's work."""
    if rows:
        connection.exec_driver_sql(_text(statement, connection.dialect), rows)


@functools.cache
def _text(statement: Insert | Update | Delete, dialect: Dialect) -> str:
    return str(statement.compile(dialect=dialect))


def _slices(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, IN_LIST)):
        yield some
