"""Trees from and to the tables. All of it runs inside the caller's transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Table, and_, bindparam, delete, insert, select, update

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


class Rows:
    """The ``Source`` of one bucket's trees."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection = connection
        self._bucket = bucket

    def inodes(self, ids: Iterable[FileId]) -> Mapping[FileId, Inode]:
        return {row.id: Inode(*tuple(row)) for row in self._by_id(tables.file, INODE, ids)}

    def versions(self, ids: Iterable[VersionId]) -> Mapping[VersionId, Version]:
        return {row.id: Version(*tuple(row)) for row in self._by_id(tables.version, VERSION, ids)}

    def entries(self, places: Iterable[Place]) -> Mapping[Place, Held]:
        names = defaultdict(list)
        for parent, name in places:
            names[parent].append(name)
        entry, found = tables.entry.c, {}
        for parent, wanted in names.items():
            here = and_(entry.bucket == self._bucket, entry.parent == parent, entry.until_seq == LIVE)
            for some in _slices(wanted):
                query = select(entry.name, entry.file, entry.since_seq).where(here, entry.name.in_(some))
                for name, file, since in self._connection.execute(query):
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

    def _by_id(self, table: Table, columns: Sequence[Any], ids: Iterable[bytes]) -> Iterator[Row[Any]]:
        for some in _slices(ids):
            query = select(*columns).where(table.c.bucket == self._bucket, table.c.id.in_(some))
            yield from self._connection.execute(query)


def write_back(
    connection: Connection, bucket: int, tree: Tree, *, seq: int, time_ns: int, client: bytes, author: str
) -> dict[Place, FileId | None]:
    """Store what commit ``seq`` did to ``tree``; returns the entries that changed and what they name now."""
    moved = tree.moved()
    ended = [
        {"b_bucket": bucket, "b_parent": parent, "b_name": name, "b_until": LIVE, "until_seq": seq}
        for parent, name in moved
        if tree.before[parent, name]
    ]
    begun = [
        {"bucket": bucket, "parent": place[0], "until_seq": LIVE, "name": place[1], "file": file, "since_seq": seq}
        for place, file in moved.items()
        if file is not None
    ]
    stamp = {"bucket": bucket, "seq": seq, "committed_ns": time_ns, "client": client, "author": author}
    versions = [_named(VERSION, _version_values(version)) | stamp for version in tree.written.values()]
    _many(connection, _END_ENTRY, ended)
    _many(connection, insert(tables.entry), begun)
    _many(connection, insert(tables.file), _inode_rows(bucket, tree.created.values()))
    _many(connection, _UPDATE_FILE, [_as_key(row) for row in _inode_rows(bucket, tree.changed.values())])
    _many(connection, _DELETE_VERSION, [{"b_bucket": bucket, "b_id": id_} for id_ in tree.replaced])
    _many(connection, insert(tables.version), versions)
    return moved


_END_ENTRY = update(tables.entry).where(
    tables.entry.c.bucket == bindparam("b_bucket"),
    tables.entry.c.parent == bindparam("b_parent"),
    tables.entry.c.until_seq == bindparam("b_until"),
    tables.entry.c.name == bindparam("b_name"),
)
_UPDATE_FILE = update(tables.file).where(
    tables.file.c.bucket == bindparam("b_bucket"), tables.file.c.id == bindparam("b_id")
)
_DELETE_VERSION = delete(tables.version).where(
    tables.version.c.bucket == bindparam("b_bucket"), tables.version.c.id == bindparam("b_id")
)


def _many(connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, rows)


def _inode_rows(bucket: int, inodes: Iterable[Inode]) -> list[dict[str, Any]]:
    return [_named(INODE, _inode_values(inode)) | {"bucket": bucket} for inode in inodes]


def _as_key(row: dict[str, Any]) -> dict[str, Any]:
    row["b_bucket"], row["b_id"] = row.pop("bucket"), row.pop("id")
    return row


def _named(columns: Sequence[Any], values: Iterable[Any]) -> dict[str, Any]:
    return dict(zip((column.name for column in columns), values, strict=True))


def _slices(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, IN_LIST)):
        yield some
