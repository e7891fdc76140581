"""Trees from and to the tables. All of it runs inside the caller's transaction."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Insert,
    Select,
    Table,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
    values,
)

from nodeserver.metadata import tables
from nodeserver.metadata.database import for_each, rows_of
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Held, Inode, Left, Place, Tree, Version
from nodeserver.protocol.wire import FileId, VersionId

T = TypeVar("T")

IN_LIST = 512
"""Values in one IN list: a statement is made for each power of two up to it, and long ones take long to make."""

INODE = [column for column in tables.file.c if column.name != "bucket"]
VERSION = [
    column for column in tables.version.c if column.name not in ("bucket", "client", "author", "seq", "committed_ns")
]
_inode_values = attrgetter(*(column.name for column in INODE))
_version_values = attrgetter(*(column.name for column in VERSION))


@functools.cache
def _by_ids(table: Table, count: int) -> Select[Any]:
    columns = INODE if table is tables.file else VERSION
    return select(*columns).where(table.c.bucket == bindparam("bucket"), table.c.id.in_(_placeholders(count)))


@functools.cache
def _entries(count: int) -> Select[Any]:
    entry = tables.entry.c
    return select(entry.name, entry.file, entry.since_seq).where(
        entry.bucket == bindparam("bucket"),
        entry.parent == bindparam("parent"),
        entry.until_seq == literal_column(str(LIVE)),
        entry.name.in_(_placeholders(count)),
    )


def _placeholders(count: int) -> list[BindParameter[bytes]]:
    return [bindparam(f"value_{number}", type_=tables.Bytes()) for number in range(count)]


@functools.cache
def _left(count: int) -> Select[Any]:
    entry, earlier = tables.entry.c, tables.entry.alias("earlier").c
    names = values(column("name", tables.Bytes()), name="wanted").data([(name,) for name in _placeholders(count)])
    wanted = names.cte("wanted")
    last = select(func.max(earlier.until_seq)).where(
        earlier.bucket == bindparam("bucket"),
        earlier.parent == bindparam("parent"),
        earlier.name == wanted.c.name,
        earlier.until_seq < literal_column(str(LIVE)),
    )
    return (
        select(entry.name, entry.file, entry.until_seq)
        .select_from(wanted)
        .join(tables.entry, and_(entry.name == wanted.c.name, entry.until_seq == last.scalar_subquery()))
        .where(entry.bucket == bindparam("bucket"), entry.parent == bindparam("parent"))
    )


@functools.cache
def _places_left(count: int) -> Select[Any]:
    entry = tables.entry.c
    return select(entry.file, entry.parent, entry.name, entry.until_seq).where(
        entry.bucket == bindparam("bucket"),
        entry.file.in_(_placeholders(count)),
        entry.until_seq < literal_column(str(LIVE)),
    )


@functools.cache
def _keep_past(count: int) -> Insert:
    then = [column.name for column in tables.past.c if column.name not in ("bucket", "file", "until_seq")]
    file = tables.file.c
    return insert(tables.past).from_select(
        ["bucket", "file", "until_seq", *then],
        select(file.bucket, file.id, bindparam("seq", type_=BigInteger), *(file[name] for name in then)).where(
            file.bucket == bindparam("bucket"), file.id.in_(_placeholders(count))
        ),
    )


class Rows:
    """The ``Source`` of one bucket's trees."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection = connection
        self._bucket = bucket

    def inodes(self, ids: Iterable[FileId]) -> Mapping[FileId, Inode]:
        return {row[0]: Inode(*row) for row in self._by_id(tables.file, ids)}

    def versions(self, ids: Iterable[VersionId]) -> Mapping[VersionId, Version]:
        return {row[0]: Version(*row) for row in self._by_id(tables.version, ids)}

    def entries(self, places: Iterable[Place]) -> Mapping[Place, Held]:
        found = {}
        for parent, wanted in _by_parent(places):
            for some in slices(wanted):
                key = (self._bucket, parent, *some)
                for name, file, since in rows_of(self._connection, _entries(len(some)), key):
                    found[parent, name] = Held(file, since)
        return found

    def left(self, places: Iterable[Place]) -> Mapping[Place, Left]:
        found = {}
        for parent, wanted in _by_parent(places):
            for some in slices(wanted):
                key = (*some, self._bucket, parent, self._bucket, parent)
                for name, file, until in rows_of(self._connection, _left(len(some)), key):
                    found[parent, name] = Left(file, until)
        return found

    def places_left(self, files: Iterable[FileId]) -> Iterable[tuple[FileId, Place, int]]:
        for some in slices(files):
            for file, parent, name, until in rows_of(self._connection, _places_left(len(some)), (self._bucket, *some)):
                yield file, (parent, name), until

    def begun(self, file: FileId, seq: int) -> list[Place]:
        return [(parent, name) for parent, name in rows_of(self._connection, _BEGUN, (self._bucket, file, seq))]

    def oldest_number(self, file: FileId) -> int | None:
        [(number,)] = rows_of(self._connection, _OLDEST, (self._bucket, file))
        oldest: int | None = number
        return oldest

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

    def _by_id(self, table: Table, ids: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        for some in slices(ids):
            yield from rows_of(self._connection, _by_ids(table, len(some)), (self._bucket, *some))


def write_back(
    connection: Connection, bucket: int, tree: Tree, *, seq: int, time_ns: int, client: bytes, author: str
) -> dict[Place, FileId | None]:
    """Store what commit ``seq`` did to ``tree``; returns the entries that changed and what they name now."""
    moved = tree.moved()
    for inode in (*tree.created.values(), *tree.changed.values()):
        inode.since_seq = seq
    ended = [(seq, bucket, parent, LIVE, name) for (parent, name) in moved if tree.before[parent, name]]
    begun = [(bucket, parent, LIVE, name, file, seq) for (parent, name), file in moved.items() if file is not None]
    stamp = (client, author, seq, time_ns)
    for_each(connection, _END_ENTRY, ended)
    for_each(connection, _INSERT_ENTRY, begun)
    for_each(connection, _INSERT_FILE, [(bucket, *_inode_values(inode)) for inode in tree.created.values()])
    for some in slices(tree.changed):
        rows_of(connection, _keep_past(len(some)), (seq, bucket, *some))
    for_each(
        connection, _UPDATE_FILE, [(*_inode_values(inode)[1:], bucket, inode.id) for inode in tree.changed.values()]
    )
    for_each(connection, _DELETE_VERSION, [(bucket, id_) for id_ in tree.replaced])
    for_each(connection, _RAISE_NUMBERS, [(by, bucket, file) for file, by in tree.raised.items()])
    written = tree.written.values()
    for_each(connection, _INSERT_VERSION, [(bucket, *_version_values(version), *stamp) for version in written])
    return moved


def _by_parent(places: Iterable[Place]) -> Iterable[tuple[FileId, list[bytes]]]:
    names = defaultdict(list)
    for parent, name in places:
        names[parent].append(name)
    return names.items()


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
_BEGUN = select(tables.entry.c.parent, tables.entry.c.name).where(
    _key(tables.entry, "bucket", "file", "since_seq"),
    tables.entry.c.until_seq > literal_column("0"),  # always, but makes SQLite take the right index
)
_OLDEST = select(func.min(tables.version.c.number)).where(_key(tables.version, "bucket", "file"))
_RAISE_NUMBERS = (
    update(tables.version)
    .where(_key(tables.version, "bucket", "file"))
    .values(number=tables.version.c.number + bindparam("by"))
)
_DELETE_VERSION = delete(tables.version).where(_key(tables.version, "bucket", "id"))


def slices(values: Iterable[T]) -> Iterator[list[T]]:
    """The values, the last repeated up to a power of two: few different statements then do for all."""
    rest = iter(values)
    while some := list(islice(rest, IN_LIST)):
        yield some + some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
