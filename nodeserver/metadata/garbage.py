"""Chunks that no version refers to, on their way out: see ``workers.collector`` for the order of things."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.errors import Doomed
from nodeserver.protocol.wire import ChunkId, Manifest, VersionId

PAGE = 500
"""Versions looked at in one transaction."""

IN_LIST = 500

CONDEMNED, GOING, GONE = 0, 1, 2
"""A commit may take the chunk back; it is being deleted; it was deleted, and other servers may not know of it."""

T = TypeVar("T")

_version, _condemned = tables.version.c, tables.condemned.c
_manifest = msgspec.msgpack.Decoder(Manifest)


class Content(NamedTuple):
    """What a version refers to."""

    version: VersionId
    manifest: Manifest


def references(
    connection: Connection, bucket: int, after: VersionId, without: Collection[VersionId]
) -> tuple[VersionId, set[ChunkId], list[Manifest]]:
    """What a page of versions refers to, but for those ``without``.

    Returns the last of the page, empty at the end, the chunks, and the manifests whose slices are stored in chunks.
    """
    rows = connection.execute(
        select(_version.id, _version.manifest)
        .where(_version.bucket == bucket, _version.id > after)
        .order_by(_version.id)
        .limit(PAGE)
    )
    chunks: set[ChunkId] = set()
    indirect: list[Manifest] = []
    last = b""
    for last, packed in rows:
        if last not in without:
            manifest = _manifest.decode(packed)
            chunks.update(piece.chunk for piece in manifest.slices if piece.chunk)
            if manifest.indirect:
                indirect.append(manifest)
    return last, chunks, indirect


def contents_of(connection: Connection, bucket: int, ids: Iterable[VersionId]) -> list[Content]:
    """Those of some versions that exist."""
    found = []
    for some in groups(ids):
        rows = connection.execute(
            select(_version.id, _version.manifest).where(_version.bucket == bucket, _version.id.in_(some))
        )
        found += [Content(row.id, _manifest.decode(row.manifest)) for row in rows]
    return found


def take_back(
    connection: Connection, bucket: int, chunks: Collection[ChunkId], anew: Mapping[ChunkId, int] | None = None
) -> None:
    """A commit refers to ``chunks``: none of them goes.

    ``anew`` are those that were looked for, and found, since they were deleted, with the times that an earlier
    ``Doomed`` gave. Raises ``Doomed`` when others are being deleted, or were.
    """
    if not chunks:
        return
    if not connection.execute(select(_condemned.chunk).where(_condemned.bucket == bucket).limit(1)).all():
        return
    going: list[ChunkId] = []
    gone: dict[ChunkId, int] = {}
    for some in groups(chunks):
        these = (_condemned.bucket == bucket, _condemned.chunk.in_(some))
        for row in connection.execute(select(tables.condemned).where(*these, _condemned.doomed != CONDEMNED)):
            if row.doomed == GOING:
                going.append(row.chunk)
            elif (anew or {}).get(row.chunk) != row.time_ns:
                gone[row.chunk] = row.time_ns
        connection.execute(delete(tables.condemned).where(*these))
    if going or gone:
        raise Doomed([*going, *gone], gone=gone if not going else {})


def condemned(connection: Connection, bucket: int, first: int, beyond: int) -> tuple[dict[ChunkId, int], set[ChunkId]]:
    """The condemned chunks whose ids begin with a byte from ``first`` on and below ``beyond``, with the times since
    when they are, and those that are doomed already."""
    query = select(_condemned.chunk, _condemned.time_ns, _condemned.doomed).where(
        _condemned.bucket == bucket, _condemned.chunk >= bytes([first])
    )
    if beyond < 256:
        query = query.where(_condemned.chunk < bytes([beyond]))
    rows = connection.execute(query).all()
    return {row.chunk: row.time_ns for row in rows if row.doomed == CONDEMNED}, {
        row.chunk for row in rows if row.doomed != CONDEMNED
    }


def condemn(connection: Connection, bucket: int, chunks: Collection[ChunkId], now_ns: int) -> None:
    """Note chunks as no longer needed, unless they are noted or the bucket was deleted."""
    if connection.execute(select(tables.bucket.c.name).where(tables.bucket.c.bucket == bucket)).scalar() is None:
        return
    for some in groups(chunks):
        these = (_condemned.bucket == bucket, _condemned.chunk.in_(some))
        known = set(connection.execute(select(_condemned.chunk).where(*these)).scalars())
        new = [chunk for chunk in some if chunk not in known]
        rows = [{"bucket": bucket, "chunk": chunk, "time_ns": now_ns, "doomed": CONDEMNED} for chunk in new]
        if rows:
            connection.execute(insert(tables.condemned), rows)


def acquit(connection: Connection, bucket: int, chunks: Iterable[ChunkId]) -> None:
    """Forget that chunks were condemned: they are needed, or they are gone."""
    for some in groups(chunks):
        these = (_condemned.bucket == bucket, _condemned.chunk.in_(some))
        connection.execute(delete(tables.condemned).where(*these))


def doom(connection: Connection, bucket: int, chunks: Iterable[ChunkId], before_ns: int, now_ns: int) -> list[ChunkId]:
    """Those of ``chunks`` that were condemned before a moment and not taken back: no commit can have them now."""
    doomed: list[ChunkId] = []
    for some in groups(chunks):
        these = (
            _condemned.bucket == bucket,
            _condemned.chunk.in_(some),
            _condemned.time_ns < before_ns,
            _condemned.doomed == CONDEMNED,
        )
        found = list(connection.execute(select(_condemned.chunk).where(*these)).scalars())
        connection.execute(
            update(tables.condemned)
            .where(_condemned.bucket == bucket, _condemned.chunk.in_(found))
            .values(doomed=GOING, time_ns=now_ns)
        )
        doomed += found
    return doomed


def settle(connection: Connection, bucket: int, chunks: Iterable[ChunkId]) -> None:
    """Chunks that were doomed are deleted: who finds one from now on finds one that was stored since."""
    for some in groups(chunks):
        these = (_condemned.bucket == bucket, _condemned.chunk.in_(some), _condemned.doomed == GOING)
        connection.execute(update(tables.condemned).where(*these).values(doomed=GONE))


def reprieve(connection: Connection) -> None:
    """For chunks whose deletion this server broke off: commits may take back those that are still stored."""
    connection.execute(update(tables.condemned).where(_condemned.doomed != CONDEMNED).values(doomed=CONDEMNED))


def expire(connection: Connection, before_ns: int) -> None:
    """Forget chunks that were doomed before a moment: commits may have them again if they are stored."""
    connection.execute(delete(tables.condemned).where(_condemned.doomed != CONDEMNED, _condemned.time_ns < before_ns))


def oldest(connection: Connection) -> int | None:
    """Since when the chunk is condemned that is longest; None when none is."""
    living = select(tables.bucket.c.bucket).where(tables.bucket.c.name.is_not(None))
    query = select(func.min(_condemned.time_ns)).where(_condemned.bucket.in_(living), _condemned.doomed == CONDEMNED)
    found: int | None = connection.execute(query).scalar()
    return found


def groups(values: Iterable[T], size: int = IN_LIST) -> Iterator[list[T]]:
    """The values in lists of ``size``; the default fits in a statement."""
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some
