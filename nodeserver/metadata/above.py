"""Which policy a file is under and whether it is held, by the directories it is in or was in last."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, bindparam, literal_column, select

from nodeserver.metadata import tables
from nodeserver.metadata.database import rows_of
from nodeserver.metadata.tables import LIVE
from nodeserver.metadata.thinning import DEFAULT
from nodeserver.metadata.tree import Place
from nodeserver.protocol.wire import FileId, Policy, unpack

_entry = tables.entry.c
_live: ColumnElement[int] = literal_column(str(LIVE))
_PLACES = select(_entry.parent, _entry.name).where(
    _entry.bucket == bindparam("bucket"), _entry.file == bindparam("file")
)
_NOW = _PLACES.where(_entry.until_seq == _live).order_by(_entry.parent, _entry.name)
_LAST = _PLACES.where(_entry.until_seq < _live).order_by(_entry.until_seq.desc(), _entry.parent, _entry.name).limit(1)


class Above:
    """Policies and holds of a bucket as they are in this transaction."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection = connection
        self._bucket = bucket
        self._chains: dict[FileId, tuple[FileId, ...]] = {}
        self.root: FileId = connection.execute(
            select(tables.bucket.c.root).where(tables.bucket.c.bucket == bucket)
        ).scalar_one()
        rows = connection.execute(
            select(tables.retention.c.directory, tables.retention.c.policy).where(tables.retention.c.bucket == bucket)
        )
        self.policies = {row.directory: unpack(row.policy, Policy) for row in rows}
        self.holds = set(connection.execute(select(tables.hold.c.file).where(tables.hold.c.bucket == bucket)).scalars())

    def places(self, file: FileId) -> list[Place]:
        """Where a file is; where it was last when it is gone."""
        found = rows_of(self._connection, _NOW, (self._bucket, file))
        found = found or list(self._connection.execute(_LAST, {"bucket": self._bucket, "file": file}))
        return [(parent, name) for parent, name in found]

    def chain(self, directory: FileId) -> tuple[FileId, ...]:
        """A directory and those above it."""
        if directory not in self._chains:
            chain = [directory]
            while (places := self.places(chain[-1])) and places[0][0] not in chain:
                chain.append(places[0][0])
            self._chains[directory] = tuple(chain)
        return self._chains[directory]

    def policy(self, directory: FileId) -> Policy:
        """The policy of what is in a directory."""
        if not self.policies:
            return DEFAULT
        return next((self.policies[id_] for id_ in self.chain(directory) if id_ in self.policies), DEFAULT)

    def held(self, file: FileId) -> bool:
        """Whether the history of a file or directory is held, itself or with one above it."""
        if not self.holds:
            return False
        return file in self.holds or any(self.is_held(parent) for parent, _ in self.places(file))

    def is_held(self, directory: FileId) -> bool:
        """Whether a directory, or one above it, is held."""
        return bool(self.holds) and not self.holds.isdisjoint(self.chain(directory))

    def is_below(self, file: FileId, top: FileId) -> bool:
        """Whether a file is ``top`` or somewhere below it."""
        return file == top or any(top in self.chain(parent) for parent, _ in self.places(file))
