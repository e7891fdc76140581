"""The versions of files that belong together, because some continue the history of others, and which of them go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select

from nodeserver.metadata import tables
from nodeserver.metadata.above import Above
from nodeserver.metadata.database import rows_of
from nodeserver.metadata.garbage import groups
from nodeserver.metadata.lineage import closure
from nodeserver.metadata.thinning import Item, excludes, going
from nodeserver.protocol.wire import FileId, VersionId

_file, _version, _log = tables.file.c, tables.version.c, tables.commit.c


_LINKS = (_file.id, _file.follows)
_BACK, _FORWARD = closure(_LINKS, forward=False), closure(_LINKS, forward=True)
_TIME = select(_log.time_ns).where(_log.bucket == bindparam("bucket"), _log.seq == bindparam("seq"))


class Member(NamedTuple):
    """A file of a family."""

    id: FileId
    follows: FileId
    follows_seq: int
    nlink: int
    version: VersionId
    since_seq: int


class Made(NamedTuple):
    """A version, as far as it matters here."""

    id: VersionId
    file: FileId
    seq: int
    number: int
    time_ns: int


@dataclasses.dataclass
class Family:
    """Files linked by whose history they continue, with their versions."""

    members: dict[FileId, Member]
    versions: dict[FileId, list[Made]]

    def line(self, file: FileId) -> list[Made]:
        """The history of a file: its versions and, up to the commit of each link, those it continues; oldest first."""
        found: list[Made] = []
        bound, seen = tables.LIVE, set[FileId]()
        while file in self.members and file not in seen:
            seen.add(file)
            found += [made for made in self.versions.get(file, ()) if made.seq <= bound]
            bound, file = min(bound, self.members[file].follows_seq), self.members[file].follows
        return sorted(found, key=lambda made: (made.seq, made.number))

    def tips(self) -> dict[FileId, list[Made]]:
        """The lines that hold all versions: of files that exist, and of those that no other continues whole."""
        continued = {
            member.follows
            for member in self.members.values()
            if all(made.seq <= member.follows_seq for made in self.versions.get(member.follows, ()))
        }
        tips = {id_: self.line(id_) for id_, member in self.members.items() if member.nlink or id_ not in continued}
        reached = {made.id for line in tips.values() for made in line}
        for id_, versions in self.versions.items():
            if any(made.id not in reached for made in versions):
                tips[id_] = self.line(id_)
        return tips


def family_of(connection: Connection, bucket: int, file: FileId) -> Family:
    """The family of a file."""
    ids, known = {file}, set[FileId]()
    while new := ids - known:
        known = set(ids)
        for some in groups(new):
            for direction in (_BACK, _FORWARD):
                ids.update(row.id for row in connection.execute(direction, {"bucket": bucket, "ids": some}))
    members = {member.id: member for member in _members(connection, bucket, ids)}
    versions: dict[FileId, list[Made]] = {}
    for some in groups(members):
        rows = connection.execute(
            select(_version.id, _version.file, _version.seq, _version.number, _version.committed_ns).where(
                _version.bucket == bucket, _version.file.in_(some)
            )
        )
        for row in rows:
            versions.setdefault(row.file, []).append(Made(*row))
    return Family(members, versions)


def thinned(
    connection: Connection, bucket: int, family: Family, above: Above, now_ns: int, beyond_ns: int = 0
) -> list[Made]:
    """The versions of a family that no policy keeps: of each line it belongs to, as of each place its file has."""
    held_files = {id_ for id_ in family.members if above.held(id_)}
    stay: set[VersionId] = set()
    for file, line in family.tips().items():
        member = family.members[file]
        if file in held_files:
            stay.update(made.id for made in line)
            continue
        ended = None if member.nlink else time_of(connection, bucket, member.since_seq)
        items = [Item(made.id, made.time_ns, made.file in held_files) for made in line]
        for parent, name in above.places(file) or [(above.root, b"")]:
            policy = above.policy(parent)
            out = excludes(policy, name)
            goes = going(policy, items, now_ns, ended_ns=ended, excluded=out, beyond_ns=beyond_ns)
            stay.update(made.id for made in line if made.id not in goes)
    stay.update(member.version for member in family.members.values() if member.nlink)
    return [made for versions in family.versions.values() for made in versions if made.id not in stay]


def held(family: Family, above: Above) -> set[VersionId]:
    """The versions of a family that are held, of held files or on the line of one."""
    held_files = {id_ for id_ in family.members if above.held(id_)}
    return {made.id for id_ in held_files for made in family.line(id_)}


def time_of(connection: Connection, bucket: int, seq: int) -> int:
    """When a commit was made, in nanoseconds since the epoch; 0 before the first."""
    found = rows_of(connection, _TIME, (bucket, seq))
    return int(found[0][0]) if found else 0


def _members(connection: Connection, bucket: int, ids: Iterable[FileId]) -> list[Member]:
    columns = (_file.id, _file.follows, _file.follows_seq, _file.nlink, _file.version, _file.since_seq)
    found: list[Member] = []
    for some in groups(ids):
        rows = connection.execute(select(*columns).where(_file.bucket == bucket, _file.id.in_(some)))
        found += [Member(*row) for row in rows]
    return found
