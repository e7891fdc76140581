"""Whose history a file, and a place, continues.

The history of a file up to a commit is its versions until then and, if it was linked by then, the history of the file
it follows up to the commit of the link. The history of a place is that of all files that were there.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Select, and_, bindparam, literal_column, select, union_all

from nodeserver.metadata import tables
from nodeserver.metadata.rows import Rows, slices
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.tree import Place
from nodeserver.protocol.privacy import Access
from nodeserver.protocol.wire import FileId, VersionId

_file, _entry = tables.file.c, tables.entry.c


@dataclasses.dataclass(slots=True, frozen=True)
class Stay:
    """A file was at a place from one commit until another, ``LIVE`` when it still is."""

    file: FileId
    since_seq: int
    until_seq: int


@dataclasses.dataclass(slots=True, frozen=True)
class Relative:
    """What a row of ``file`` says about its lineage, and who may read it now."""

    id: FileId
    follows: FileId
    follows_seq: int
    nlink: int
    version: VersionId
    access: Access

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.access.mode)


_RELATIVE = (_file.id, _file.follows, _file.follows_seq, _file.nlink, _file.version, _file.mode, _file.uid, _file.gid)
_STAYS = union_all(
    *(
        select(_entry.name, _entry.file, _entry.since_seq, _entry.until_seq).where(
            _entry.bucket == bindparam("bucket"),
            _entry.parent == bindparam("parent"),
            _entry.name == bindparam("name"),
            ended,
        )
        for ended in (_entry.until_seq == literal_column(str(LIVE)), _entry.until_seq < literal_column(str(LIVE)))
    )
)


def closure(columns: Sequence[Column[Any]], *, forward: bool) -> Select[Any]:
    """Columns of the files given as ``ids`` and of all that they follow, or that follow them.

    ``columns`` of the table ``file``; ``id`` and ``follows`` must be among them.
    """
    here = _file.bucket == bindparam("bucket")
    first = select(*columns).where(here, _file.id.in_(bindparam("ids", expanding=True)))
    found = first.cte("found", recursive=True)
    if forward:
        # As its index has it. Without the range SQLite, which has no statistics, takes the primary key and reads the
        # bucket; without the equality PostgreSQL reads the index.
        same = and_(_file.follows == found.c.id, _file.follows.between(found.c.id, found.c.id))
        link = and_(same, _file.follows_seq > literal_column("0"))
    else:
        link = _file.id == found.c.follows
    further = select(*columns).join_from(found, tables.file, and_(here, link))
    return select(*found.union(further).c)


_BACK, _FORWARD = closure(_RELATIVE, forward=False), closure(_RELATIVE, forward=True)


def stays(connection: Connection, bucket: int, place: Place) -> list[Stay]:
    """Who was at a place, oldest first."""
    rows = connection.execute(_STAYS, {"bucket": bucket, "parent": place[0], "name": place[1]}).all()
    return sorted((Stay(file, since, until) for _, file, since, until in rows), key=lambda stay: stay.until_seq)


def relatives(connection: Connection, bucket: int, files: Iterable[FileId]) -> dict[FileId, Relative]:
    """Files and all whose history they continue. Give the newest first: what it leads to is not asked for again."""
    found: dict[FileId, Relative] = {}
    wanted = list(dict.fromkeys(files))
    for some in (wanted[:1], *slices(wanted[1:])):
        if ids := [id_ for id_ in some if id_ not in found]:
            found |= _closed(connection, _BACK, bucket, ids)
    return found


def reach(stays: Iterable[Stay], relatives: Mapping[FileId, Relative]) -> dict[FileId, int]:
    """The files that the history of a place is made of, and up to which commit.

    A file was at a place as of the commits before the one that ended it; a link counts from the commit that made it.
    """
    bounds: dict[FileId, int] = {}
    for stay in sorted(stays, key=lambda stay: -stay.until_seq):
        id_, bound = stay.file, stay.until_seq - 1
        while id_ in relatives and bound > bounds.get(id_, -1):
            bounds[id_] = bound
            relative = relatives[id_]
            if relative.follows_seq > bound:
                break
            id_, bound = relative.follows, relative.follows_seq
    return bounds


def heirs_of(
    connection: Connection, bucket: int, gone: Collection[tuple[FileId, int, Place | None]]
) -> dict[FileId, list[Access]]:
    """Who continues files that have no name: whoever has their place and is of their kind, and what follows them.

    ``gone`` are ids, modes, and the places that are asked about, None for the last.
    """
    if not gone:
        return {}
    rows = Rows(connection, bucket)
    places = {id_: place or rows.last_place(id_) for id_, _, place in gone}
    held = rows.entries(dict.fromkeys(place for place in places.values() if place))
    holders = rows.inodes({entry.file for entry in held.values()})
    heirs = _followers(connection, bucket, list(places))
    for id_, mode, _ in gone:
        place = places[id_]
        holder = holders.get(held[place].file) if place and place in held else None
        if holder and stat.S_IFMT(holder.mode) == stat.S_IFMT(mode):
            heirs[id_].append(Access(holder.mode, holder.uid, holder.gid))
    return heirs


def _followers(connection: Connection, bucket: int, files: Sequence[FileId]) -> dict[FileId, list[Access]]:
    """The access of the files with a name that continue the history of each of ``files``."""
    found: dict[FileId, Relative] = {}
    for some in slices(files):
        if ids := [id_ for id_ in some if id_ not in found]:
            found |= _closed(connection, _FORWARD, bucket, ids)
    followers: dict[FileId, list[Access]] = {id_: [] for id_ in files}
    for last in found.values():
        seen, id_ = {last.id}, last.follows
        while last.nlink and id_ in found and id_ not in seen:
            seen.add(id_)
            if id_ in followers:
                followers[id_].append(last.access)
            id_ = found[id_].follows
    return followers


def _closed(connection: Connection, statement: Select[Any], bucket: int, ids: list[FileId]) -> dict[FileId, Relative]:
    rows = connection.execute(statement, {"bucket": bucket, "ids": ids}).all()
    return {
        id_: Relative(id_, follows, follows_seq, nlink, version, Access(mode, uid, gid))
        for id_, follows, follows_seq, nlink, version, mode, uid, gid in rows
    }
