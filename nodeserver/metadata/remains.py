"""What versions leave behind when they have gone: rows that tell what files and names were."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, ScalarSelect, and_, delete, exists, func, or_, select

from nodeserver.metadata import tables
from nodeserver.metadata.above import Above
from nodeserver.metadata.lines import time_of
from nodeserver.metadata.retention import bypass
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.thinning import DAY, Item, end_of, going
from nodeserver.protocol.wire import FileId, Policy

SECOND = 1_000_000_000
PAGE = 100
"""Files, or directories, looked at in one transaction."""
LATE = 30 * DAY
"""Seconds for which a deleted file is known at least, so that a late write to it brings it back."""

_file, _entry, _past, _version = tables.file.c, tables.entry.c, tables.past.c, tables.version.c
_log = tables.commit.c


def changed_files(connection: Connection, bucket: int, after: FileId, now_ns: int) -> tuple[FileId, list[FileId]]:
    """The files of a page whose past can be thinned, and the last of the page; empty at the end."""
    above = Above(connection, bucket)
    query = (
        select(_past.file)
        .where(_past.bucket == bucket, _past.file > after)
        .group_by(_past.file)
        .having(or_(func.count() > 1, func.min(_past.until_seq) <= _seq_at(bucket, now_ns - LATE * SECOND)))
        .order_by(_past.file)
        .limit(PAGE)
    )
    files = list(connection.execute(query).scalars())
    found = [file for file in files if _going_past(connection, bucket, file, above, now_ns)]
    return (files[-1] if len(files) == PAGE else b""), found


def thin_past(connection: Connection, bucket: int, files: Iterable[FileId], now_ns: int) -> int:
    """Thin what files were, by the slots of their policies; how many rows went."""
    above = Above(connection, bucket)
    gone = 0
    for file in files:
        for since in _going_past(connection, bucket, file, above, now_ns):
            these = (_past.bucket == bucket, _past.file == file, _past.since_seq == since)
            gone += connection.execute(delete(tables.past).where(*these)).rowcount
    return gone


def end_entries(connection: Connection, bucket: int, after: FileId, now_ns: int) -> tuple[FileId, int]:
    """Forget names of a page of directories that ended before their policies' end; where files that are gone were
    last is forgotten with them. Returns the last of the directories, and how many rows went."""
    above = Above(connection, bucket)
    query = (
        select(_entry.parent)
        .where(_entry.bucket == bucket, _entry.parent > after, _entry.until_seq < LIVE)
        .distinct()
        .order_by(_entry.parent)
        .limit(PAGE)
    )
    parents = list(connection.execute(query).scalars())
    gone = 0
    for parent in parents:
        end = end_of(above.policy(parent))
        if end is None or above.is_held(parent):
            continue
        newest = _seq_at(bucket, now_ns - end * SECOND)
        living = exists().where(_file.bucket == bucket, _file.id == _entry.file, _file.nlink > 0)
        old = and_(_entry.bucket == bucket, _entry.parent == parent, _entry.until_seq <= newest)
        gone += connection.execute(delete(tables.entry).where(old, living)).rowcount
    return (parents[-1] if len(parents) == PAGE else b""), gone


def forget_files(connection: Connection, bucket: int, after: FileId, now_ns: int) -> tuple[FileId, int]:
    """Forget files of a page that are gone and of which nothing is left; the last of the page, and how many."""
    above = Above(connection, bucket)
    query = select(_file.id, _file.since_seq).where(
        _file.bucket == bucket,
        _file.id > after,
        _file.nlink == 0,
        _file.since_seq <= _seq_at(bucket, now_ns - LATE * SECOND),
        ~exists().where(_version.bucket == bucket, _version.file == _file.id),
        ~exists().where(_entry.bucket == bucket, _entry.parent == _file.id),
    )
    files = list(connection.execute(query.order_by(_file.id).limit(PAGE)))
    gone = 0
    for file, since in files:
        end = end_of(_policy(above, file))
        if end is None or now_ns - time_of(connection, bucket, since) < end * SECOND or above.held(file):
            continue
        bypass(connection, bucket, file)
        forget_traces(connection, bucket, file)
        connection.execute(delete(tables.file).where(_file.bucket == bucket, _file.id == file))
        gone += 1
    return (files[-1].id if len(files) == PAGE else b""), gone


def forget_traces(connection: Connection, bucket: int, file: FileId) -> None:
    """Forget what a file was and what names it had."""
    connection.execute(delete(tables.past).where(_past.bucket == bucket, _past.file == file))
    connection.execute(
        delete(tables.entry).where(_entry.bucket == bucket, _entry.file == file, _entry.until_seq < LIVE)
    )


def _going_past(connection: Connection, bucket: int, file: FileId, above: Above, now_ns: int) -> list[int]:
    if above.held(file):
        return []
    rows = connection.execute(
        select(_past.since_seq, _log.time_ns)
        .outerjoin_from(tables.past, tables.commit, and_(_log.bucket == _past.bucket, _log.seq == _past.since_seq))
        .where(_past.bucket == bucket, _past.file == file)
        .order_by(_past.since_seq)
    )
    line = [Item(row.since_seq.to_bytes(8, "big"), row.time_ns or 0) for row in rows]
    since = connection.execute(select(_file.since_seq).where(_file.bucket == bucket, _file.id == file)).scalar()
    # Caps and globs are about versions.
    policy = msgspec.structs.replace(_policy(above, file), max_versions=None)
    goes = going(policy, line, now_ns, ended_ns=time_of(connection, bucket, since or 0))
    return [int.from_bytes(id_, "big") for id_ in goes]


def _seq_at(bucket: int, time_ns: int) -> ScalarSelect[int]:
    """The newest commit by then."""
    # Not max(seq), for which SQLite would read the log from its end back to that time. Times grow with the numbers.
    query = select(_log.seq).where(_log.bucket == bucket, _log.time_ns <= time_ns)
    return query.order_by(_log.time_ns.desc()).limit(1).scalar_subquery()


def _policy(above: Above, file: FileId) -> Policy:
    if file in above.policies:
        return above.policies[file]
    return next((above.policy(parent) for parent, _ in above.places(file)), above.policy(above.root))
