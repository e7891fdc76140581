"""Chunks of which somebody met a bad or missing piece."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, delete, func, insert, select

from nodeserver.metadata import tables
from nodeserver.metadata.garbage import groups
from nodeserver.protocol.wire import ChunkId

MOST = 100_000
"""Chunks of a bucket that are remembered: with more, all of them have to be looked at anyway."""

_repair, _bucket = tables.repair.c, tables.bucket.c


def note(connection: Connection, bucket: int, chunks: Iterable[ChunkId], now_ns: int) -> None:
    """Remember chunks to be repaired, unless they are remembered, or ``MOST`` of the bucket are."""
    there = select(func.count()).select_from(tables.repair).where(_repair.bucket == bucket)
    if connection.execute(there).scalar_one() >= MOST:
        return
    for some in groups(dict.fromkeys(chunks)):
        these = (_repair.bucket == bucket, _repair.chunk.in_(some))
        known = set(connection.execute(select(_repair.chunk).where(*these)).scalars())
        rows = [{"bucket": bucket, "chunk": chunk, "since_ns": now_ns} for chunk in some if chunk not in known]
        if rows:
            connection.execute(insert(tables.repair), rows)


def note_by_id(connection: Connection, damaged: Collection[tuple[bytes, ChunkId]], now_ns: int) -> None:
    """As ``note``, of pairs of a bucket's id and a chunk; of buckets that there are not, nothing is remembered."""
    numbers = {row.id: row.bucket for row in connection.execute(select(_bucket.id, _bucket.bucket))}
    for id_ in {bucket for bucket, _ in damaged} & numbers.keys():
        note(connection, numbers[id_], [chunk for bucket, chunk in damaged if bucket == id_], now_ns)


def waiting(connection: Connection, bucket: int, limit: int) -> list[ChunkId]:
    """Chunks of a bucket to be repaired, those first that wait longest."""
    query = select(_repair.chunk).where(_repair.bucket == bucket).order_by(_repair.since_ns, _repair.chunk)
    return list(connection.execute(query.limit(limit)).scalars())


def done(connection: Connection, bucket: int, chunks: Iterable[ChunkId]) -> None:
    """Forget chunks that are repaired, or that nothing can be done for now."""
    for some in groups(chunks):
        connection.execute(delete(tables.repair).where(_repair.bucket == bucket, _repair.chunk.in_(some)))


def count(connection: Connection) -> int:
    """How many chunks wait."""
    return int(connection.execute(select(func.count()).select_from(tables.repair)).scalar_one())
