"""The tree as of a commit, inside one snapshot."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
)

from nodeserver.metadata import tables
from nodeserver.metadata.errors import HistoryGone, NoFile
from nodeserver.metadata.lineage import Stay, heirs_of, reach, relatives
from nodeserver.metadata.paging import onwards, page_of, weight_of_entry, weight_of_row
from nodeserver.metadata.reads import FILE, SHORT_MANIFEST, file_of, manifest_of, newest_seq
from nodeserver.metadata.rows import slices
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Place
from nodeserver.protocol.privacy import Access, restrict
from nodeserver.protocol.wire import MAX_ANSWER, Entry, File, FileAnswer, FileId, Listing, Moment, TreeListing

_file, _entry, _version, _log = tables.file.c, tables.entry.c, tables.version.c, tables.commit.c
PAST, _earlier = tables.past.alias("then"), tables.past.alias("earlier").c
_at = bindparam("at", type_=BigInteger)

PAGE = 1000
"""Names of a directory that a walk loads at a time,"""
PAGE_BYTES = 256 * 1024
"""of about so many bytes: it keeps them of each directory that it is in."""


def row_then(at: ColumnElement[int]) -> ColumnElement[bool]:
    """Joins ``tables.file`` to the row it had as of ``at``; to none when that is the present one."""
    mine = and_(_earlier.bucket == _file.bucket, _earlier.file == _file.id)
    began = select(func.max(_earlier.since_seq)).where(mine, _earlier.since_seq <= at).scalar_subquery()
    oldest = select(func.min(_earlier.since_seq)).where(mine).scalar_subquery()  # when all before were thinned out
    since = case((_file.since_seq > at, func.coalesce(began, oldest)))
    return and_(PAST.c.bucket == _file.bucket, PAST.c.file == _file.id, PAST.c.since_seq == since)


def then(name: str) -> ColumnElement[Any]:
    """A column of ``tables.file`` as of the time that ``row_then`` was told."""
    return func.coalesce(PAST.c[name], _file[name]) if name in PAST.c else _file[name]


SHOWN = len(FILE) + 1
"""Columns of a row that ``file_of`` takes; behind them come others."""
FOUND, MODE, UID, GID, NLINK, SINCE = range(SHOWN, SHOWN + 6)
"""The version of then if it was kept, the file as it is now, and when the row of then began."""


def _row(manifest: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    shown = [then(column.name) for column in FILE]
    now = [_file.mode, _file.uid, _file.gid, _file.nlink]
    return [*shown, manifest, _version.id, *now, func.coalesce(PAST.c.since_seq, _file.since_seq)]


_CONTENT = and_(_version.bucket == _file.bucket, _version.id == then("version"), _version.seq <= _at)
_FILE_BY_ID = (
    select(*_row(_version.manifest))
    .select_from(tables.file.outerjoin(PAST, row_then(_at)).outerjoin(tables.version, _CONTENT))
    .where(_file.bucket == bindparam("bucket"), _file.id == bindparam("id"))
)
_ENTRIES = (
    select(*_row(SHORT_MANIFEST), _entry.name)
    .select_from(
        tables.entry.join(tables.file, and_(_file.bucket == _entry.bucket, _file.id == _entry.file))
        .outerjoin(PAST, row_then(_at))
        .outerjoin(tables.version, _CONTENT)
    )
    .where(_entry.bucket == bindparam("bucket"), _entry.parent == bindparam("parent"), _entry.since_seq <= _at)
)
_LIVE: ColumnElement[int] = literal_column(str(LIVE))
_BEFORE = bindparam("before", LIVE, type_=BigInteger)
# The names of then that are live still, and those that ended since: each has an order that an index knows.
_HALVES = [
    _ENTRIES.where(ended)
    for ended in (_entry.until_seq == _LIVE, and_(_entry.until_seq > _at, _entry.until_seq < _BEFORE))
]
_LOOKUPS = [half.where(_entry.name == bindparam("name")) for half in _HALVES]
_PAGES = [
    half.where(_entry.name > bindparam("after")).order_by(_entry.name).limit(bindparam("limit")) for half in _HALVES
]
_OF_FILE = and_(_entry.bucket == bindparam("bucket"), _entry.file == bindparam("id"))
_FIRST_NAMED = select(func.min(_entry.since_seq)).where(_OF_FILE)
_IS_ROOT = select(tables.bucket.c.root).where(
    tables.bucket.c.bucket == bindparam("bucket"), tables.bucket.c.root == bindparam("id")
)
_NAMED = select(_entry.name).where(_OF_FILE, _entry.until_seq > _at, _entry.since_seq <= _at)
_KEPT, _KEPT_SHORT = (
    select(_version.id, _version.size, manifest)
    .where(_version.bucket == bindparam("bucket"), _version.file == bindparam("id"), _version.seq <= _at)
    .order_by(_version.number.desc())
    .limit(1)
    for manifest in (_version.manifest, SHORT_MANIFEST)
)
_SEQS = select(_version.file, _version.seq, _version.number, _version.id).where(
    _version.bucket == bindparam("bucket"), _version.file.in_(bindparam("files", expanding=True)), _version.seq <= _at
)
_VERSION, _VERSION_SHORT = (
    select(_version.id, _version.size, manifest).where(
        _version.bucket == bindparam("bucket"), _version.id == bindparam("id")
    )
    for manifest in (_version.manifest, SHORT_MANIFEST)
)
_MOMENT = (
    select(_log.seq, _log.time_ns)
    .where(_log.bucket == bindparam("bucket"), _log.time_ns <= bindparam("time_ns", type_=BigInteger))
    .order_by(_log.time_ns.desc())
    .limit(1)
)


class AsOf:
    """A bucket as of commit ``at``. Raises ``NoBucket``, and ``HistoryGone`` when it was not made yet."""

    def __init__(self, connection: Connection, bucket: int, at: int) -> None:
        newest = newest_seq(connection, bucket)
        if at > newest:
            raise HistoryGone(f"commit {at} was not made yet, the newest is {newest}")
        self._connection = connection
        self._bucket = bucket
        self._at = at

    def file(self, id_: FileId) -> File:
        """A file with its whole manifest. Raises ``NoFile``, also when its content was not kept."""
        row = self._one(id_)
        if row is None:
            raise NoFile(f"there was no file {id_.hex()}")
        [file] = self._files([row], [None])
        if file is None:
            raise NoFile(f"the content of {id_.hex()} was not kept")
        return file

    def directory(self, id_: FileId) -> File:
        """Raises ``NoFile``."""
        row = self._one(id_)
        file = self._files([row], [None])[0] if row else None
        if file is None or not stat.S_ISDIR(file.mode) or not file.nlink:
            raise NoFile(f"there was no directory {id_.hex()}")
        return file

    def lookup(self, directory: FileId, name: bytes) -> File | None:
        """What was under a name, None when nothing was, or nothing that was kept."""
        rows = [row for half in _LOOKUPS for row in self._rows(half, parent=directory, name=name)]
        return self._files(rows[:1], [(directory, name)])[0] if rows else None

    def entries(
        self, directory: FileId, after: bytes, limit: int, budget: int = MAX_ANSWER
    ) -> tuple[list[Entry], bool]:
        """The first names after ``after``, up to ``limit`` and about ``budget`` bytes, and whether there are more."""
        more = True
        while more:
            values = {"bucket": self._bucket, "at": self._at, "parent": directory, "after": after, "limit": limit + 1}
            halves = [onwards(self._connection, half, values, "after", -1) for half in _PAGES]
            page, more = page_of(merge(*halves, key=itemgetter(-1)), limit, weight_of_row, budget)
            names = [row[-1] for row in page]
            files = self._files(page, [(directory, name) for name in names])
            if found := [Entry(name, file) for name, file in zip(names, files, strict=True) if file]:
                # Whoever goes on from the last of them looks again at those behind it that were not kept.
                return found, more
            after = names[-1] if names else after
        return [], False

    def walk(self, directory: FileId, after: bytes) -> Iterator[Entry]:
        """All that was below a directory and follows the path ``after``; parents first, names in byte order."""
        levels = []
        here: File | None = self.directory(directory)
        components = after.split(b"/")
        for depth, name in enumerate(components):
            if here is None or not stat.S_ISDIR(here.mode):
                break
            levels.append(_Level(here.id, b"".join(above + b"/" for above in components[:depth]), name))
            here = self.lookup(here.id, name)
        if here is not None and stat.S_ISDIR(here.mode):
            levels.append(_Level(here.id, after + b"/"))
        while levels:
            level = levels[-1]
            if not level.page and level.more:
                page, level.more = self.entries(level.directory, level.after, PAGE, PAGE_BYTES)
                level.page = page[::-1]
            if not level.page:
                levels.pop()
                continue
            entry = level.page.pop()
            level.after, path = entry.name, level.path + entry.name
            yield Entry(path, entry.file)
            if stat.S_ISDIR(entry.file.mode):
                levels.append(_Level(entry.file.id, path + b"/"))

    def _one(self, id_: FileId) -> Sequence[Any] | None:
        """The row of a file that was there by then."""
        row = next(iter(self._rows(_FILE_BY_ID, id=id_)), None)
        if row is not None and row[SINCE] > self._at:  # what came first was thinned out; did it have a name?
            [(first,)] = self._rows(_FIRST_NAMED, id=id_)
            return row if self._rows(_IS_ROOT, id=id_) or (first is not None and first <= self._at) else None
        return row

    def _rows(self, statement: Select[Any], **values: Any) -> Sequence[Sequence[Any]]:
        return self._connection.execute(statement, {"bucket": self._bucket, "at": self._at, **values}).all()

    def _files(self, rows: Sequence[Sequence[Any]], places: Sequence[Place | None]) -> list[File | None]:
        """The files of rows, None where the content was not kept."""
        gone = [(row[0], row[1], place) for row, place in zip(rows, places, strict=True) if not row[NLINK]]
        heirs = heirs_of(self._connection, self._bucket, gone)
        files = [self._file(row, heirs, place) for row, place in zip(rows, places, strict=True)]
        for file, place in zip(files, places, strict=True):
            if file and not file.nlink and (place or self._rows(_NAMED, id=file.id)):
                file.nlink = 2 if stat.S_ISDIR(file.mode) else 1  # the row of then, which knew, was not kept
        return files

    def _inherited(self, id_: FileId, place: Place | None) -> Sequence[Any] | None:
        """What stands in for a file of which nothing was kept: the newest version of those it continues."""
        bounds = reach([Stay(id_, 0, self._at + 1)], relatives(self._connection, self._bucket, [id_]))
        rows = [row for some in slices(bounds) for row in self._rows(_SEQS, files=some)]
        kept = [(seq, number, version) for file, seq, number, version in rows if seq <= bounds[file]]
        return self._rows(_VERSION_SHORT if place else _VERSION, id=max(kept)[-1])[0] if kept else None

    def _file(self, row: Sequence[Any], heirs: Mapping[FileId, Sequence[Access]], place: Place | None) -> File | None:
        file = file_of(row[:SHOWN])
        if row[FOUND] is None and file.version:
            kept = next(iter(self._rows(_KEPT_SHORT if place else _KEPT, id=file.id)), None)
            if kept is None and file.size and (kept := self._inherited(file.id, place)) is None:
                return None
            file.version, file.size, manifest = kept or (b"", 0, None)
            file.manifest = manifest_of(manifest) if manifest else None
        if not row[NLINK] or file.mode != row[MODE] or file.uid != row[UID] or file.gid != row[GID]:
            access = Access(file.mode, file.uid, file.gid)
            for now in (Access(*row[MODE : GID + 1]), *heirs.get(file.id, ())):
                access = restrict(access, now)
            file.mode, file.uid, file.gid = access
        file.gone = not row[NLINK]
        return file


@dataclasses.dataclass(slots=True)
class _Level:
    """A directory that a walk is in."""

    directory: FileId
    path: bytes
    """With a slash at its end, but for the top."""
    after: bytes = b""
    page: list[Entry] = dataclasses.field(default_factory=list)
    """What was loaded, the next at the end."""
    more: bool = True


def file(connection: Connection, bucket: int, id_: FileId, at: int) -> FileAnswer:
    """A file with its whole manifest. Raises ``NoFile``, also when its content was not kept."""
    return FileAnswer(at, AsOf(connection, bucket, at).file(id_))


def lookup(connection: Connection, bucket: int, directory: FileId, name: bytes, at: int) -> FileAnswer:
    """What ``name`` was in a directory. Raises ``NoFile`` when there was no such directory."""
    then = AsOf(connection, bucket, at)
    found = then.lookup(directory, name)
    if found is None:
        then.directory(directory)
    return FileAnswer(at, found)


def entries(connection: Connection, bucket: int, directory: FileId, after: bytes, limit: int, at: int) -> Listing:
    """A page of a directory. Raises ``NoFile``."""
    then = AsOf(connection, bucket, at)
    itself = then.directory(directory)
    page, more = then.entries(directory, after, limit)
    return Listing(at, itself, page, more)


def tree(
    connection: Connection, bucket: int, directory: FileId, after: bytes, limit: int, at: int | None
) -> TreeListing:
    """A page of all below a directory, now if ``at`` is None. Raises ``NoFile``."""
    at = newest_seq(connection, bucket) if at is None else at
    then = AsOf(connection, bucket, at)
    itself = then.directory(directory)
    page, more = page_of(then.walk(directory, after), limit, weight_of_entry)
    return TreeListing(at, itself, page, more)


def moment(connection: Connection, bucket: int, time_ns: int) -> Moment:
    """The newest commit not after a time."""
    newest_seq(connection, bucket)
    found = connection.execute(_MOMENT, {"bucket": bucket, "time_ns": time_ns}).one_or_none()
    return Moment(*found) if found else Moment(0, 0)
