"""What old versions take, for the cap by share of the quota."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, and_, exists, select

from nodeserver.metadata import tables
from nodeserver.metadata.garbage import contents_of
from nodeserver.protocol.wire import ChunkId, Manifest, Policy, Slice, VersionId, unpack

_bucket, _file, _version, _retention = tables.bucket.c, tables.file.c, tables.version.c, tables.retention.c


class Old(NamedTuple):
    """A version that is not the content of a file that exists."""

    time_ns: int
    id: VersionId
    slices: int


def budget(connection: Connection, bucket: int) -> int | None:
    """The bytes that old versions may take; None without a limit."""
    row = connection.execute(
        select(_bucket.quota_bytes, _retention.policy)
        .join(tables.retention, and_(_retention.bucket == _bucket.bucket, _retention.directory == _bucket.root))
        .where(_bucket.bucket == bucket)
    ).first()
    share = unpack(row.policy, Policy).max_share if row else None
    return None if row is None or share is None or row.quota_bytes is None else int(share * row.quota_bytes)


def old_versions(connection: Connection, bucket: int) -> list[Old]:
    """The versions that are not the content of a file that exists, newest first."""
    head = exists().where(
        _file.bucket == bucket, _file.id == _version.file, _file.version == _version.id, _file.nlink > 0
    )
    rows = connection.execute(
        select(_version.committed_ns, _version.id, _version.slices)
        .where(_version.bucket == bucket, ~head)
        .order_by(_version.committed_ns.desc(), _version.id.desc())
    )
    return [Old(*row) for row in rows]


class Needs:
    """Which of some versions, newest first, is the newest that needs a chunk; of chunks whose ids begin with a byte
    from ``first`` on and below ``beyond``."""

    def __init__(self, first: int, beyond: int) -> None:
        self._first = first
        self._beyond = beyond
        self.newest: dict[ChunkId, tuple[int, int]] = {}
        """The version's place in the list, and the chunk's length in bytes as far as it is known."""

    def load(self, connection: Connection, bucket: int, ids: list[VersionId], start: int) -> list[tuple[int, Manifest]]:
        """Note the chunks of versions from place ``start`` on; the manifests whose slices are stored in chunks."""
        manifests = {content.version: content.manifest for content in contents_of(connection, bucket, ids)}
        indirect = []
        for place, id_ in enumerate(ids, start):
            if id_ in manifests:
                self.note(place, manifests[id_].slices)
                if manifests[id_].indirect:
                    indirect.append((place, manifests[id_]))
        return indirect

    def note(self, place: int, slices: Iterable[Slice]) -> None:
        """Note the chunks of a version."""
        for piece in slices:
            if piece.chunk and self._first <= piece.chunk[0] < self._beyond:
                known = self.newest.get(piece.chunk)
                if known is None or place < known[0]:
                    self.newest[piece.chunk] = (place, piece.offset + piece.length)
