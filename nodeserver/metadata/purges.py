"""Destroying history for good, with a record in the log of who did it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.above import Above
from nodeserver.metadata.errors import Current, Held, NoBucket, NoFile
from nodeserver.metadata.garbage import Content, contents_of
from nodeserver.metadata.lineage import reach, relatives, stays
from nodeserver.metadata.lines import Family, Made, family_of, held
from nodeserver.metadata.remains import forget_traces
from nodeserver.metadata.retention import remove
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import Change, Committed, FileId, Purge, Result, VersionId, pack

SERVER = bytes(16)
"""The client of commits that the server makes."""

_bucket, _version = tables.bucket.c, tables.version.c


class Destroyed(NamedTuple):
    """What a purge did."""

    seq: int
    contents: list[Content]


def purge(connection: Connection, bucket: int, op: Purge, *, author: str, now_ns: int) -> Destroyed:
    """Delete versions of the history of a name, and append that to the log.

    Raises ``Held``, ``Current``, ``NoFile`` for a version that the history does not have, ``NoBucket``.
    """
    row = connection.execute(
        select(_bucket.seq, _bucket.time_ns).where(_bucket.bucket == bucket, _bucket.name.is_not(None))
    ).first()
    if row is None:
        raise NoBucket("the bucket was deleted")
    families, history = _history(connection, bucket, op)
    chosen = _chosen(families, history, op.versions)
    above = Above(connection, bucket)
    for family in families:
        if not chosen.keys().isdisjoint(held(family, above)):
            raise Held("what is to be purged is held")
    contents = contents_of(connection, bucket, chosen)
    for family in families:
        remove(connection, bucket, family, [made for made in chosen.values() if made.file in family.members])
        for id_, member in family.members.items():
            versions = family.versions.get(id_, ())
            if not member.nlink and versions and all(made.id in chosen for made in versions):
                forget_traces(connection, bucket, id_)
    seq, time_ns = row.seq + 1, max(now_ns, row.time_ns + 1)
    done = Purge(op.parent, op.name, list(chosen))
    files = sorted({made.file for made in chosen.values()})
    batch = new_id()
    values = {
        "bucket": bucket,
        "seq": seq,
        "time_ns": time_ns,
        "client": SERVER,
        "author": author,
        "batch": batch,
        "ops": pack({"client": SERVER, "batch": batch, "ops": [done]}),
        "answer": pack(Committed(seq, time_ns, [Result()])),
        "change": pack(Change(seq, SERVER, time_ns, [(op.parent, op.name)], files)),
    }
    connection.execute(insert(tables.commit), values)
    connection.execute(update(tables.bucket).where(_bucket.bucket == bucket).values(seq=seq, time_ns=time_ns))
    return Destroyed(seq, contents)


def _history(connection: Connection, bucket: int, op: Purge) -> tuple[list[Family], dict[VersionId, Made]]:
    """The families of the files that were at a place, and the versions of its history."""
    here = stays(connection, bucket, (op.parent, op.name))
    if not here:
        raise NoFile(f"nothing was ever called {op.name!r} there")
    bounds = reach(here, relatives(connection, bucket, [stay.file for stay in reversed(here)]))
    families: list[Family] = []
    seen: set[FileId] = set()
    for file in bounds:
        if file not in seen:
            families.append(family_of(connection, bucket, file))
            seen |= families[-1].members.keys()
    history = {
        made.id: made
        for family in families
        for file, versions in family.versions.items()
        for made in versions
        if made.seq <= bounds.get(file, -1)
    }
    return families, history


def _chosen(families: list[Family], history: dict[VersionId, Made], wanted: list[VersionId]) -> dict[VersionId, Made]:
    """What is to go: the versions that were named, or all but the content of files that exist."""
    heads = {member.version for family in families for member in family.members.values() if member.nlink}
    if not wanted:
        return {id_: made for id_, made in history.items() if id_ not in heads}
    for id_ in wanted:
        if id_ not in history:
            raise NoFile(f"the history of that name has no version {id_.hex()}")
        if id_ in heads:
            raise Current(f"version {id_.hex()} is the content of a file that exists")
    return {id_: history[id_] for id_ in wanted}
