"""Versions, by place and by id, and who had a place. Each function runs inside one snapshot."""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, literal_column, select

from nodeserver.metadata import tables
from nodeserver.metadata.above import Above
from nodeserver.metadata.errors import NoFile
from nodeserver.metadata.lineage import Relative, Stay, heirs_of, reach, relatives, stays
from nodeserver.metadata.paging import FIXED, page_of
from nodeserver.metadata.past import PAST, row_then, then
from nodeserver.metadata.reads import SHORT_MANIFEST, manifest_of, newest_seq
from nodeserver.metadata.rows import slices
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Place
from nodeserver.protocol.privacy import Access, restrict
from nodeserver.protocol.wire import (
    MAX_VERSIONS,
    FileId,
    Occupant,
    Occupants,
    PastName,
    PastNames,
    Version,
    VersionAnswer,
    VersionId,
    Versions,
)

_file, _entry, _version = tables.file.c, tables.entry.c, tables.version.c

LOADED = 200
"""Versions loaded in one go."""
SCAN = 1000
"""Names looked at in one go for those that have content."""


class Mark(NamedTuple):
    """A version, as far as it takes to order and to count. Sorts as histories do."""

    seq: int
    number: int
    id: VersionId
    file: FileId
    content: tuple[bytes, int]
    committed_ns: int


_MARKS: Select[Any] = select(
    _version.seq, _version.number, _version.id, _version.file, _version.hash, _version.size, _version.committed_ns
).where(_version.bucket == bindparam("bucket"), _version.file.in_(bindparam("files", expanding=True)))


def _full(manifest: ColumnElement[Any]) -> Select[Any]:
    """Versions in the order of the fields of ``Version``, then their manifests; readable as their files were then."""
    mine = and_(_file.bucket == _version.bucket, _file.id == _version.file)
    own = ("id", "file", "number", "size", "hash", "mtime_ns", "seq", "committed_ns")
    columns = [*(_version[name] for name in own), *(then(name) for name in Access._fields)]
    return (
        select(*columns, _version.base, _version.client, _version.author, manifest)
        .select_from(tables.version.join(tables.file, mine).outerjoin(PAST, row_then(_version.seq)))
        .where(_version.bucket == bindparam("bucket"), _version.id.in_(bindparam("ids", expanding=True)))
    )


_WHOLE, _SHORT = _full(_version.manifest), _full(SHORT_MANIFEST)
_NAMES = [
    select(_entry.name)
    .where(_entry.bucket == bindparam("bucket"), _entry.parent == bindparam("parent"), ended)
    .where(_entry.name > bindparam("after"))
    .distinct()
    .order_by(_entry.name)
    .limit(bindparam("limit"))
    for ended in (_entry.until_seq == literal_column(str(LIVE)), _entry.until_seq < literal_column(str(LIVE)))
]
_SPANS = [
    select(_entry.name, _entry.file, _entry.since_seq, _entry.until_seq).where(
        _entry.bucket == bindparam("bucket"),
        _entry.parent == bindparam("parent"),
        _entry.name > bindparam("after"),
        _entry.name <= bindparam("last"),
        ended,
    )
    for ended in (_entry.until_seq == literal_column(str(LIVE)), _entry.until_seq < literal_column(str(LIVE)))
]
_TIMES = select(tables.commit.c.seq, tables.commit.c.time_ns).where(
    tables.commit.c.bucket == bindparam("bucket"), tables.commit.c.seq.in_(bindparam("seqs", expanding=True))
)
_KIND = select(_file.mode).where(_file.bucket == bindparam("bucket"), _file.id == bindparam("id"))


def versions(
    connection: Connection, bucket: int, directory: FileId, name: bytes, after: VersionId, limit: int
) -> Versions:
    """A page of the history of a name, oldest first. Raises ``NoFile`` for no directory, or an ``after`` not in it."""
    seq = _check_directory(connection, bucket, directory)
    spans = stays(connection, bucket, (directory, name))
    known = relatives(connection, bucket, [stay.file for stay in reversed(spans)])
    marks = _history(reach(spans, known), _marks(connection, bucket, known))
    ids = [mark.id for mark in marks]
    if after and after not in ids:
        raise NoFile(f"there is no version {after.hex()} of that name")
    start = ids.index(after) + 1 if after else 0
    loaded = (
        version
        for some in range(start, len(ids), LOADED)
        for version in _loaded(connection, bucket, _SHORT, ids[some : some + LOADED])
    )
    page, more = page_of(loaded, limit, _weight)
    head = known[spans[-1].file].version if spans and spans[-1].until_seq == LIVE else b""
    _complete(connection, bucket, page, known, (directory, name), head)
    return Versions(seq, page, more)


def _weight(version: Version) -> int:
    """Bytes that a version takes in an answer, about."""
    return FIXED + len(version.author) + 48 * len(version.manifest.slices if version.manifest else ())


def version(connection: Connection, bucket: int, id_: VersionId) -> VersionAnswer:
    """A version with its whole manifest. Raises ``NoFile``."""
    newest_seq(connection, bucket)
    page = _loaded(connection, bucket, _WHOLE, [id_])
    if not page:
        raise NoFile(f"there is no version {id_.hex()}")
    known = relatives(connection, bucket, [page[0].file])
    mine = known[page[0].file]
    _complete(connection, bucket, page, known, None, mine.version if mine.nlink else b"")
    return VersionAnswer(page[0])


def names(connection: Connection, bucket: int, directory: FileId, after: bytes, limit: int) -> PastNames:
    """A page of the names that have or had content in a directory. Raises ``NoFile``."""
    seq = _check_directory(connection, bucket, directory)
    found: list[PastName] = []
    more = True
    while more and len(found) <= limit:
        values = {"bucket": bucket, "parent": directory, "after": after}
        candidates = sorted({name for half in _NAMES for name in connection.scalars(half, values | {"limit": SCAN})})
        more, candidates = len(candidates) >= SCAN, candidates[:SCAN]
        if candidates:
            found += _past_names(connection, bucket, directory, after, candidates[-1])
            after = candidates[-1]
    page, more = page_of(found, limit, lambda it: FIXED + len(it.name))
    return PastNames(seq, page, more)


def occupants(
    connection: Connection, bucket: int, directory: FileId, name: bytes, after: int = 0, limit: int = MAX_VERSIONS
) -> Occupants:
    """A page of who had a name, oldest first, until commits behind ``after``. Raises ``NoFile``."""
    seq = _check_directory(connection, bucket, directory)
    spans = [stay for stay in stays(connection, bucket, (directory, name)) if stay.until_seq > after]
    more, spans = len(spans) > limit, spans[:limit]
    known = relatives(connection, bucket, [stay.file for stay in reversed(spans)])
    times = {LIVE: 0}
    seqs = sorted({seq for stay in spans for seq in (stay.since_seq, stay.until_seq)})
    for some in slices(seqs):
        times |= {row.seq: row.time_ns for row in connection.execute(_TIMES, {"bucket": bucket, "seqs": some})}
    return Occupants(
        seq,
        [
            Occupant(
                stay.file,
                known[stay.file].access.mode,
                stay.since_seq,
                times.get(stay.since_seq, 0),
                stay.until_seq % LIVE,
                times.get(stay.until_seq, 0),
            )
            for stay in spans
            if stay.file in known
        ],
        more,
    )


def _check_directory(connection: Connection, bucket: int, id_: FileId) -> int:
    """The newest commit. Raises ``NoFile`` when there never was such a directory."""
    seq = newest_seq(connection, bucket)
    mode = connection.scalar(_KIND, {"bucket": bucket, "id": id_})
    if mode is None or not stat.S_ISDIR(mode):
        raise NoFile(f"there is no directory {id_.hex()}")
    return seq


def _marks(connection: Connection, bucket: int, files: Iterable[FileId]) -> dict[FileId, list[Mark]]:
    """The versions of files, without what they hold."""
    marks: dict[FileId, list[Mark]] = defaultdict(list)
    for some in slices(files):
        rows = connection.execute(_MARKS, {"bucket": bucket, "files": some}).all()
        for seq, number, id_, file, hash_, size, committed_ns in rows:
            marks[file].append(Mark(seq, number, id_, file, (hash_, size), committed_ns))
    return marks


def _history(bounds: Mapping[FileId, int], marks: Mapping[FileId, list[Mark]]) -> list[Mark]:
    """The versions that a history is made of, oldest first; of those with the same content in a row the last."""
    found = sorted(mark for file, bound in bounds.items() for mark in marks.get(file, ()) if mark.seq <= bound)
    return [mark for mark, after in zip_longest(found, found[1:]) if after is None or after.content != mark.content]


def _past_names(connection: Connection, bucket: int, directory: FileId, after: bytes, last: bytes) -> list[PastName]:
    """The names with content after one and up to another."""
    spans = defaultdict(list)
    values = {"bucket": bucket, "parent": directory, "after": after, "last": last}
    for half in _SPANS:
        for name, file, since, until in connection.execute(half, values).all():
            spans[name].append(Stay(file, since, until))
    known = relatives(connection, bucket, [stay.file for stays in spans.values() for stay in reversed(stays)])
    marks = _marks(connection, bucket, known)
    found = []
    for name in sorted(spans):
        if history := _history(reach(spans[name], known), marks):
            live = any(stay.until_seq == LIVE and known[stay.file].is_regular for stay in spans[name])
            found.append(PastName(name, len(history), live, history[-1].committed_ns))
    return found


def _loaded(connection: Connection, bucket: int, statement: Select[Any], ids: Sequence[VersionId]) -> list[Version]:
    """Versions in the order of ``ids``, as they were readable when they were made."""
    found = {}
    for some in slices(ids):
        for *fields, manifest in connection.execute(statement, {"bucket": bucket, "ids": some}).all():
            found[fields[0]] = made = Version(*fields)
            made.manifest = manifest_of(manifest) if manifest else None
    return [found[id_] for id_ in ids if id_ in found]


def _complete(
    connection: Connection,
    bucket: int,
    page: Sequence[Version],
    known: Mapping[FileId, Relative],
    place: Place | None,
    head: VersionId,
) -> None:
    """Restrict who may read versions, and note which are held and which is current."""
    gone = {it.file: (it.file, it.mode, place) for it in page if not known[it.file].nlink}
    heirs = heirs_of(connection, bucket, list(gone.values()))
    above = Above(connection, bucket)
    all_held = place is not None and above.is_held(place[0])
    held = {file: all_held or above.held(file) for file in {it.file for it in page}}
    for it in page:
        access = Access(it.mode, it.uid, it.gid)
        for now in (known[it.file].access, *heirs.get(it.file, ())):
            if now != access:
                access = restrict(access, now)
        it.mode, it.uid, it.gid = access
        it.current = it.id == head
        it.held = held[it.file]
