"""Policies, and taking out the versions that they do not keep."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Set
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, delete, func, insert, literal_column, or_, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.above import Above
from nodeserver.metadata.errors import NoFile
from nodeserver.metadata.garbage import groups
from nodeserver.metadata.lines import Family, Made, family_of, thinned
from nodeserver.metadata.thinning import DEFAULT
from nodeserver.protocol.wire import FileId, Policy, Retention, VersionId, pack, unpack

PAGE = 200
"""Files looked at in one transaction."""
AT_ONCE = 2000
"""Versions that are deleted in one transaction, or found in one look."""

_retention, _file, _version = tables.retention.c, tables.file.c, tables.version.c


class Thinned(NamedTuple):
    """What a step of retention looked at and found."""

    last: FileId
    """The file that the next step goes on after; empty when all was looked at."""
    versions: list[VersionId]
    files: set[FileId]
    seen: set[FileId]
    """Files that were looked at with another of their family."""


def policies(connection: Connection, bucket: int) -> Retention:
    """The policies that are set in a bucket."""
    rows = connection.execute(
        select(_retention.directory, _retention.policy)
        .where(_retention.bucket == bucket)
        .order_by(_retention.directory)
    )
    return Retention([(row.directory, unpack(row.policy, Policy)) for row in rows], DEFAULT)


def set_policy(connection: Connection, bucket: int, directory: FileId, policy: Policy | None) -> Retention:
    """Set the policy of a directory that exists, or with None take it away. Raises ``NoFile``."""
    connection.execute(delete(tables.retention).where(_retention.bucket == bucket, _retention.directory == directory))
    if policy is not None:
        row = connection.execute(
            select(_file.mode, _file.nlink).where(_file.bucket == bucket, _file.id == directory)
        ).first()
        if row is None or not row.nlink or not stat.S_ISDIR(row.mode):
            raise NoFile(f"there is no directory {directory.hex()}")
        values = {"bucket": bucket, "directory": directory, "policy": pack(policy)}
        connection.execute(insert(tables.retention), values)
    return policies(connection, bucket)


def look(
    connection: Connection,
    bucket: int,
    after: FileId,
    now_ns: int,
    *,
    beyond_ns: int = 0,
    under: FileId = b"",
    done: Set[FileId] = frozenset(),
) -> Thinned:
    """What goes of some files from ``after`` on, without taking it out, but for the files ``done``."""
    above = Above(connection, bucket)
    versions: list[VersionId] = []
    files: set[FileId] = set()
    seen: set[FileId] = set()
    candidates = _candidates(connection, bucket, after)
    for file in candidates:
        if file in done or file in seen:
            continue
        family = family_of(connection, bucket, file)
        if len(family.members) > 1:
            seen.update(family.members)
        for made in _going(connection, bucket, family, above, now_ns, beyond_ns, under):
            versions.append(made.id)
            files.add(made.file)
        if len(versions) >= AT_ONCE:
            return Thinned(file, versions, files, seen)
    return Thinned(candidates[-1] if len(candidates) == PAGE else b"", versions, files, seen)


def take_out(
    connection: Connection,
    bucket: int,
    files: Iterable[FileId],
    now_ns: int,
    *,
    beyond_ns: int = 0,
    under: FileId = b"",
) -> list[VersionId]:
    """Delete what goes of the families of ``files`` as they are now, the oldest first; the versions that went.

    With ``AT_ONCE`` of them there may be more.
    """
    above = Above(connection, bucket)
    gone: list[VersionId] = []
    done: set[FileId] = set()
    for file in files:
        if file not in done and len(gone) < AT_ONCE:
            family = family_of(connection, bucket, file)
            done.update(family.members)
            made = _going(connection, bucket, family, above, now_ns, beyond_ns, under)
            made = sorted(made, key=lambda one: one.seq)[: AT_ONCE - len(gone)]
            remove(connection, bucket, family, made)
            gone += (one.id for one in made)
    return gone


def remove(connection: Connection, bucket: int, family: Family, going: Iterable[Made]) -> None:
    """Delete versions of a family."""
    gone = {made.id for made in going}
    for some in groups(gone):
        connection.execute(delete(tables.version).where(_version.bucket == bucket, _version.id.in_(some)))
        # A file that comes back, by a late link, must not have content that is not there.
        connection.execute(
            update(tables.file)
            .where(_file.bucket == bucket, _file.id.in_(list(family.members)), _file.version.in_(some))
            .values(version=b"", size=0)
        )
    for id_, member in family.members.items():
        versions = family.versions.get(id_, [])
        if not member.nlink and versions and all(made.id in gone for made in versions):
            bypass(connection, bucket, id_)


def bypass(connection: Connection, bucket: int, file: FileId) -> None:
    """Let those that continue the history of a file without versions continue what it continues."""
    row = connection.execute(
        select(_file.follows, _file.follows_seq).where(_file.bucket == bucket, _file.id == file)
    ).one()
    # As the index of followers has it; see ``lineage.closure``.
    followers = and_(_file.bucket == bucket, _file.follows.between(file, file), _file.follows_seq > literal_column("0"))
    bound = case((_file.follows_seq < row.follows_seq, _file.follows_seq), else_=row.follows_seq)
    connection.execute(update(tables.file).where(followers).values(follows=row.follows, follows_seq=bound))
    # Two that were exchanged continue each other.
    itself = and_(_file.bucket == bucket, _file.id == row.follows, _file.follows == row.follows)
    connection.execute(update(tables.file).where(itself).values(follows=b"", follows_seq=0))


def _candidates(connection: Connection, bucket: int, after: FileId) -> list[FileId]:
    """A page of the files of which versions could go: not those that exist and ever had but one content."""
    query = (
        select(_version.file)
        .join(tables.file, and_(_file.bucket == _version.bucket, _file.id == _version.file))
        .where(_version.bucket == bucket, _version.file > after, _file.id > after)
        .group_by(_version.file)
        .having(or_(func.count() > 1, func.max(_file.nlink) == 0, func.max(_file.follows_seq) > 0))
        .order_by(_version.file)
        .limit(PAGE)
    )
    return list(connection.execute(query).scalars())


def _going(
    connection: Connection,
    bucket: int,
    family: Family,
    above: Above,
    now_ns: int,
    beyond_ns: int,
    under: FileId,
) -> list[Made]:
    if under not in (b"", above.root) and not any(above.is_below(id_, under) for id_ in family.members):
        return []
    return thinned(connection, bucket, family, above, now_ns, beyond_ns)
