"""Queries behind the reading half of the API, each inside one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, FromClause, and_, bindparam, case, literal, select

from nodeserver.metadata import tables
from nodeserver.metadata.errors import HistoryGone, NoBucket, NoFile
from nodeserver.metadata.paging import onwards, page_of, weight_of_row
from nodeserver.metadata.tables import LIVE
from nodeserver.protocol.wire import (
    INLINE_SLICES,
    Change,
    Entry,
    File,
    FileAnswer,
    FileId,
    Listing,
    Manifest,
    unpack,
)

_bucket, _file, _entry, _version = tables.bucket.c, tables.file.c, tables.entry.c, tables.version.c

LARGE = 4
"""Rows of the log fetched at a time: each may have a few MB."""
FILE = [column for column in tables.file.c if column.name in File.__struct_fields__]
SHORT_MANIFEST = case((_version.slices <= INLINE_SLICES, _version.manifest), else_=literal(None)).label("manifest")
_HEAD = and_(_version.bucket == _file.bucket, _version.id == _file.version)
manifest_of = msgspec.msgpack.Decoder(Manifest).decode
_xattrs = msgspec.msgpack.Decoder(dict[bytes, bytes])


def _here(table: FromClause) -> Any:
    return table.c.bucket == bindparam("bucket")


_FILE_BY_ID = (
    select(*FILE, _version.manifest)
    .outerjoin_from(tables.file, tables.version, _HEAD)
    .where(_here(tables.file), _file.id == bindparam("id"))
)
_ENTRIES = (
    select(_entry.name, *FILE, SHORT_MANIFEST)
    .select_from(
        tables.entry.join(tables.file, and_(_file.bucket == _entry.bucket, _file.id == _entry.file)).outerjoin(
            tables.version, _HEAD
        )
    )
    .where(_here(tables.entry), _entry.parent == bindparam("parent"), _entry.until_seq == LIVE)
)
_LOOKUP = _ENTRIES.where(_entry.name == bindparam("name"))
_PAGE = _ENTRIES.where(_entry.name > bindparam("after")).order_by(_entry.name).limit(bindparam("limit"))
_SEQ = select(_bucket.seq).where(_here(tables.bucket), _bucket.name.is_not(None))
_TIME = select(tables.commit.c.time_ns).where(_here(tables.commit), tables.commit.c.seq == bindparam("seq"))
_LOG = (
    select(tables.commit.c.seq, tables.commit.c.change)
    .where(_here(tables.commit), tables.commit.c.seq > bindparam("since"))
    .order_by(tables.commit.c.seq)
    .limit(bindparam("limit"))
)


def file(connection: Connection, bucket: int, id_: FileId) -> FileAnswer:
    """A file with its whole manifest; one that is gone has ``nlink`` 0. Raises ``NoFile``."""
    seq = newest_seq(connection, bucket)
    row = connection.execute(_FILE_BY_ID, {"bucket": bucket, "id": id_}).one_or_none()
    if row is None:
        raise NoFile(f"there is no file {id_.hex()}")
    return FileAnswer(seq, file_of(row))


def lookup(connection: Connection, bucket: int, directory: FileId, name: bytes) -> FileAnswer:
    """What ``name`` is in a directory. Raises ``NoFile`` when there is no such directory."""
    seq = newest_seq(connection, bucket)
    row = connection.execute(_LOOKUP, {"bucket": bucket, "parent": directory, "name": name}).one_or_none()
    if row is None:
        _directory(connection, bucket, directory)
    return FileAnswer(seq, file_of(row[1:]) if row else None)


def entries(connection: Connection, bucket: int, directory: FileId, after: bytes, limit: int) -> Listing:
    """A page of a directory. Raises ``NoFile``."""
    seq = newest_seq(connection, bucket)
    itself = _directory(connection, bucket, directory)
    wanted = {"bucket": bucket, "parent": directory, "after": after, "limit": limit + 1}
    page, more = page_of(onwards(connection, _PAGE, wanted, "after", 0), limit, weight_of_row)
    return Listing(seq, itself, [Entry(row[0], file_of(row[1:])) for row in page], more)


def changes(
    connection: Connection, bucket: int, since: int, limit: int, known: int = 0, known_ns: int = 0
) -> tuple[int, int, list[Change]]:
    """The newest commit that the answer reaches, its time, and the commits after ``since``.

    Raises ``HistoryGone`` when ``since`` was not made yet, and as ``check_known``.
    """
    newest = newest_seq(connection, bucket)
    check_known(connection, bucket, newest, max(since, known), known_ns if known >= since else 0)
    wanted = {"bucket": bucket, "since": since, "limit": limit}
    page, _ = page_of(onwards(connection, _LOG, wanted, "since", 0), limit, weight_of_row)
    commits = [unpack(row.change, Change) for row in page]
    if commits:
        return commits[-1].seq, commits[-1].time_ns, commits
    return newest, time_of(connection, bucket, newest), commits


def check_known(connection: Connection, bucket: int, newest: int, known: int, known_ns: int) -> None:
    """Raise ``HistoryGone`` unless the log, which reaches to ``newest``, holds the commit somebody heard of.

    ``known_ns`` is its time in nanoseconds, 0 when it was not told. Times tell commits of one number apart: after a
    server came back from a backup, the next commits have the numbers of lost ones, and times of their own.
    """
    if known > newest:
        raise HistoryGone(f"commit {known} was not made yet, the newest is {newest}")
    if known_ns and time_of(connection, bucket, known) not in (known_ns, 0):
        raise HistoryGone(f"commit {known} is another than the one that was known")


def time_of(connection: Connection, bucket: int, seq: int) -> int:
    """The time of a commit in nanoseconds, 0 when the log does not have it."""
    return connection.execute(_TIME, {"bucket": bucket, "seq": seq}).scalar() or 0


def newest_seq(connection: Connection, bucket: int) -> int:
    """The newest commit of a bucket. Raises ``NoBucket``."""
    seq: int | None = connection.execute(_SEQ, {"bucket": bucket}).scalar()
    if seq is None:
        raise NoBucket("the bucket was deleted")
    return seq


def newest_seqs(connection: Connection) -> dict[int, int]:
    """The newest commit of each bucket."""
    rows = connection.execute(select(_bucket.bucket, _bucket.seq).where(_bucket.name.is_not(None)))
    return {row.bucket: row.seq for row in rows}


def _directory(connection: Connection, bucket: int, id_: FileId) -> File:
    row = connection.execute(_FILE_BY_ID, {"bucket": bucket, "id": id_}).one_or_none()
    directory = file_of(row) if row else None
    if directory is None or directory.mode & 0o170000 != 0o040000 or not directory.nlink:
        raise NoFile(f"there is no directory {id_.hex()}")
    return directory


def file_of(row: Sequence[Any]) -> File:
    """A file from the columns of ``FILE`` and its manifest."""
    (id_, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, target, xattrs, version, manifest) = row
    return File(
        id_, mode, uid, gid, rdev, nlink, size, atime, mtime, ctime, target,
        _xattrs.decode(xattrs) if xattrs else {},
        version,
        manifest_of(manifest) if manifest else None,
    )  # fmt: skip
