"""The log of a bucket, as far as it is about a file or what is below a directory."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, and_, bindparam, select, union

from nodeserver.metadata import tables
from nodeserver.metadata.database import rows_of
from nodeserver.metadata.errors import NoFile
from nodeserver.metadata.lineage import Stay, reach, relatives
from nodeserver.metadata.paging import FIXED, stream
from nodeserver.metadata.purges import SERVER
from nodeserver.metadata.reads import LARGE, newest_seq
from nodeserver.metadata.replay import Logged, Names, replay
from nodeserver.metadata.rows import Rows, slices
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Place
from nodeserver.protocol.wire import MAX_ANSWER, Change, Committed, Event, Events, FileId

_bucket, _file, _entry, _log = tables.bucket.c, tables.file.c, tables.entry.c, tables.commit.c

BUDGET = 20_000
"""Operations that are looked at for one page."""
AT_ONCE = 64
"""Commits that are loaded at a time."""

_COMMITS: Select[Any] = select(_log.seq, _log.time_ns, _log.client, _log.author, _log.ops, _log.answer, _log.change)
_BEFORE = (
    _COMMITS.where(_log.bucket == bindparam("bucket"), _log.seq < bindparam("before"))
    .order_by(_log.seq.desc())
    .limit(AT_ONCE)
)
_THESE = _COMMITS.where(_log.bucket == bindparam("bucket"), _log.seq.in_(bindparam("seqs", expanding=True))).order_by(
    _log.seq.desc()
)
_ROOT = select(_bucket.root).where(_bucket.bucket == bindparam("bucket"))
_PLACES = select(_entry.parent, _entry.name).where(
    _entry.bucket == bindparam("bucket"),
    _entry.file == bindparam("file"),
    _entry.until_seq >= bindparam("seq"),
    _entry.since_seq < bindparam("seq"),
)
_PURGES = select(_log.seq).where(_log.bucket == bindparam("bucket"), _log.client == SERVER)
_decode_ops = msgspec.msgpack.Decoder(Logged).decode
_decode_answer = msgspec.msgpack.Decoder(Committed).decode
_decode_change = msgspec.msgpack.Decoder(Change).decode


def _touching() -> Select[Any]:
    """The commits that rows about some files tell of."""
    past, version = tables.past, tables.version
    sources = (
        (_file, "since_seq"),
        (past.c, "since_seq"),
        (past.c, "until_seq"),
        (_entry, "until_seq"),
        (version.c, "seq"),
    )
    parts = [
        select(columns[name]).where(
            columns.bucket == bindparam("bucket"),
            (columns.id if columns is _file else columns.file).in_(bindparam("files", expanding=True)),
        )
        for columns, name in sources
    ]
    # Not ``==``: without statistics SQLite then takes the primary key, and reads the bucket.
    named = and_(_entry.bucket == _file.bucket, _entry.file.between(_file.id, _file.id))
    begun = select(_entry.since_seq).join_from(tables.file, tables.entry, named)
    begun = begun.where(_file.bucket == bindparam("bucket"), _file.id.in_(bindparam("files", expanding=True)))
    return select(union(*parts, begun).subquery())


_TOUCHING = _touching()


def log(connection: Connection, bucket: int, id_: FileId, before: int, limit: int) -> Events:
    """A page of what happened, newest first, in commits before ``before``. Raises ``NoFile``."""
    newest = newest_seq(connection, bucket)
    before = before or newest + 1
    known = relatives(connection, bucket, [id_])
    if id_ not in known:
        raise NoFile(f"there is no file {id_.hex()}")
    bounds: dict[FileId, int] | None = None
    commits = _all_before(connection, bucket, before)
    if not stat.S_ISDIR(known[id_].access.mode):
        bounds = reach([Stay(id_, 0, LIVE)], known)
        commits = _about(connection, bucket, bounds, before)
    found: list[Event] = []
    looked_at = size = 0
    for row in commits:
        if looked_at >= BUDGET:
            break
        logged = _decode_ops(row.ops)
        looked_at += len(logged.ops)
        events = _events(connection, bucket, row, logged, id_, bounds)
        size += sum(FIXED + len(event.path) + len(event.new_path) for event in events)
        if found and (len(found) + len(events) > limit or size > MAX_ANSWER):
            break
        found += events
        before = row.seq
    else:
        before = 0
    modes = {id_: inode.mode for id_, inode in Rows(connection, bucket).inodes({it.file for it in found}).items()}
    for event in found:
        event.mode = modes.get(event.file, stat.S_IFREG)
    return Events(found, before)


def _events(
    connection: Connection, bucket: int, row: Row[Any], logged: Logged, top: FileId, bounds: dict[FileId, int] | None
) -> list[Event]:
    """The events of a commit that are wanted, newest first: of files up to their bounds, or below ``top``."""

    def before(file: FileId) -> list[Place]:
        return [(parent, name) for parent, name in rows_of(connection, _PLACES, (bucket, file, row.seq, row.seq))]

    names = Names(connection.execute(_ROOT, {"bucket": bucket}).scalar_one(), before)
    found = []
    for event, places, files in replay(logged, _decode_answer(row.answer).results, names):
        if not event.file:  # a purge
            files = _decode_change(row.change).files
            event.file = min(files, default=top)
        if bounds is None:
            wanted = top in files or any(names.is_below(place, top) for place in places)
        else:
            wanted = any(row.seq <= bounds.get(file, -1) for file in files)
        if wanted:
            event.seq, event.time_ns = row.seq, row.time_ns
            event.author, event.client, event.client_name = row.author, row.client, logged.client_name
            found.append(event)
    return found[::-1]


def _all_before(connection: Connection, bucket: int, before: int) -> Iterator[Row[Any]]:
    last = None
    while last != before:
        last = before
        for row in stream(connection, _BEFORE, {"bucket": bucket, "before": before}, LARGE):
            yield row
            before = row.seq


def _about(connection: Connection, bucket: int, files: Iterable[FileId], before: int) -> Iterator[Row[Any]]:
    seqs = set(connection.scalars(_PURGES, {"bucket": bucket}))
    for some in slices(files):
        seqs.update(connection.scalars(_TOUCHING, {"bucket": bucket, "files": some}))
    wanted = sorted((seq for seq in seqs if 0 < seq < before), reverse=True)
    for start in range(0, len(wanted), AT_ONCE):
        yield from stream(connection, _THESE, {"bucket": bucket, "seqs": wanted[start : start + AT_ONCE]}, LARGE)
