"""Creating, finding and deleting buckets."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.checks import check_redundancy
from nodeserver.metadata.errors import BucketExists, BucketNotEmpty, HasHistory, Held, NoBucket
from nodeserver.metadata.tree import Inode
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import FileId, NewBucket

_bucket = tables.bucket.c

PURGE = 1000
"""Rows of a deleted bucket that go in one transaction."""


OWNED = (
    tables.entry,
    tables.version,
    tables.commit,
    tables.past,
    tables.retention,
    tables.hold,
    tables.condemned,
    tables.repair,
    tables.file,
)
"""The tables with rows of a bucket."""


@dataclasses.dataclass(frozen=True, slots=True)
class BucketRow:
    """A row of the ``bucket`` table."""

    bucket: int
    id: bytes
    name: str
    root: FileId
    chunk_key: bytes
    created_ns: int
    seq: int
    time_ns: int
    used_bytes: int
    used_files: int
    quota_bytes: int | None
    redundancy: str


def find(connection: Connection, name: str) -> BucketRow:
    """Raises ``NoBucket``."""
    row = connection.execute(select(tables.bucket).where(_bucket.name == name)).one_or_none()
    if row is None:
        raise NoBucket(f"there is no bucket {name!r}")
    return _of(row)


def every(connection: Connection) -> list[BucketRow]:
    """All buckets, by name."""
    rows = connection.execute(select(tables.bucket).where(_bucket.name.is_not(None)).order_by(_bucket.name))
    return [_of(row) for row in rows]


def create(connection: Connection, name: str, new: NewBucket, now_ns: int) -> BucketRow:
    """A new bucket with an empty root, or the one that the same request made before. Raises ``BucketExists``."""
    for row in connection.execute(select(tables.bucket).where((_bucket.name == name) | (_bucket.id == new.id))):
        if (row.name, row.id) != (name, new.id):
            raise BucketExists(f"the bucket {name!r} exists" if row.name == name else "the id is another bucket's")
        return _of(row)
    mode = stat.S_IFDIR | new.mode & 0o7777
    root = Inode(new_id(), mode, uid=new.uid, gid=new.gid, nlink=2, atime_ns=now_ns, mtime_ns=now_ns, ctime_ns=now_ns)
    values = {
        "id": new.id,
        "name": name,
        "root": root.id,
        "chunk_key": os.urandom(32),
        "created_ns": now_ns,
        "seq": 0,
        "time_ns": now_ns,
        "used_bytes": 0,
        "used_files": 0,
        "quota_bytes": new.quota_bytes,
        "redundancy": check_redundancy(new.redundancy),
    }
    made = connection.execute(insert(tables.bucket), values).inserted_primary_key
    assert made is not None
    connection.execute(insert(tables.file), dataclasses.asdict(root) | {"bucket": made.bucket})
    return find(connection, name)


def set_quota(connection: Connection, name: str, quota: int | None) -> BucketRow:
    """Limit a bucket to ``quota`` bytes, None for no limit. Raises ``NoBucket``."""
    connection.execute(update(tables.bucket).where(_bucket.name == name).values(quota_bytes=quota))
    return find(connection, name)


def redundancy(connection: Connection, id_: bytes) -> str:
    """The setting of the bucket with an id; empty when there is none."""
    return connection.execute(select(_bucket.redundancy).where(_bucket.id == id_)).scalar() or ""


def chunk_key(connection: Connection, id_: bytes) -> bytes:
    """The chunk key of the bucket with an id; empty when there is none."""
    return connection.execute(select(_bucket.chunk_key).where(_bucket.id == id_)).scalar() or b""


def set_redundancy(connection: Connection, name: str, redundancy: str) -> BucketRow:
    """Have a bucket's chunks kept in another way from now on. Raises ``NoBucket``."""
    connection.execute(update(tables.bucket).where(_bucket.name == name).values(redundancy=redundancy))
    return find(connection, name)


def remove(connection: Connection, name: str, *, history: bool) -> BucketRow:
    """Delete an empty bucket: its name is free at once, its rows wait for ``purge``.

    With ``history`` also one that keeps versions of deleted files. Raises ``NoBucket``, ``BucketNotEmpty``,
    ``HasHistory``, ``Held``.
    """
    found = find(connection, name)
    root = select(tables.file.c.entries).where(tables.file.c.bucket == found.bucket, tables.file.c.id == found.root)
    if connection.execute(root).scalar_one():
        raise BucketNotEmpty(f"the bucket {name!r} is not empty")
    if _has(connection, tables.hold, found.bucket):
        raise Held(f"something in the bucket {name!r} is held")
    if not history and _has(connection, tables.version, found.bucket):
        raise HasHistory(f"the bucket {name!r} would be deleted with it")
    connection.execute(update(tables.bucket).where(_bucket.bucket == found.bucket).values(name=None))
    return found


def _has(connection: Connection, table: Table, bucket: int) -> bool:
    return connection.execute(select(table.c.bucket).where(table.c.bucket == bucket).limit(1)).first() is not None


def removed(connection: Connection) -> list[tuple[int, bytes]]:
    """Number and id of the buckets that are deleted and still have rows."""
    rows = connection.execute(select(_bucket.bucket, _bucket.id).where(_bucket.name.is_(None)))
    return [(row.bucket, row.id) for row in rows]


def purge(connection: Connection, bucket: int) -> bool:
    """Delete some rows of a deleted bucket, at last its own; False when nothing is left."""
    for table in OWNED:
        key = [column for column in table.primary_key if column.name != "bucket"]
        some = connection.execute(select(*key).where(table.c.bucket == bucket).limit(PURGE)).all()
        if some:
            for row in some:
                same = (column == value for column, value in zip(key, row, strict=True))
                connection.execute(delete(table).where(table.c.bucket == bucket, *same))
            return True
    return connection.execute(delete(tables.bucket).where(_bucket.bucket == bucket)).rowcount > 0


def _of(row: Row[Any]) -> BucketRow:
    return BucketRow(*tuple(row))
