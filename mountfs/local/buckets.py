"""The buckets this mount has seen."""

from __future__ import annotations

import dataclasses

import trio

from mountfs.local.database import Database
from nodeserver.protocol import wire


@dataclasses.dataclass
class BucketState:
    """A row of the table ``bucket``, kept in memory too."""

    id: int
    uuid: bytes
    name: str
    root: int
    """Inode number of its root directory."""
    chunk_key: bytes
    seq: int
    """Every change up to this place in the bucket's log is in the local database."""
    usage: wire.Usage
    known: int = 0
    """The newest place in the log we heard of; an answer that is older may lack what we did since."""
    known_ns: int = 0
    """The time of the commit there, which tells it from another of that number; 0 when it was not told."""
    redundancy: str = ""
    """The bucket's setting, as far as it was heard of since the start."""


class Buckets:
    """All of them, by row id."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._advanced = trio.Event()
        self.by_id: dict[int, BucketState] = {}
        for row in db.execute("SELECT id, uuid, name, root, chunk_key, seq, usage, known, known_ns FROM bucket"):
            id_, uuid, name, root, chunk_key, seq, usage, known, known_ns = row
            usage = wire.unpack(usage, wire.Usage)
            self.by_id[id_] = BucketState(id_, uuid, name, root, chunk_key, seq, usage, known, known_ns)

    def by_name(self, name: str) -> BucketState | None:
        return next((bucket for bucket in self.by_id.values() if bucket.name == name), None)

    def add(self, info: wire.Bucket, root: int) -> BucketState:
        """Take over a bucket as the server describes it, inside the caller's transaction."""
        values = (info.id, info.name, root, info.chunk_key, info.seq, wire.pack(info.usage))
        columns = "uuid, name, root, chunk_key, seq, usage, known"
        self._db.execute(f"INSERT INTO bucket ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, info.seq))  # noqa: S608
        row_id = self._db.connection.last_insert_rowid()
        state = BucketState(
            row_id, info.id, info.name, root, info.chunk_key, info.seq, info.usage, info.seq, redundancy=info.redundancy
        )
        self.by_id[row_id] = state
        return state

    def remove(self, bucket: BucketState) -> None:
        """The bucket is gone, with all that is known of it; inside the caller's transaction."""
        for query in (
            "DELETE FROM dentry WHERE parent IN (SELECT ino FROM inode WHERE bucket = ?)",
            "DELETE FROM staged WHERE ino IN (SELECT ino FROM inode WHERE bucket = ?)",
            "DELETE FROM inode WHERE bucket = ?",
            "DELETE FROM journal WHERE bucket = ?",
            "DELETE FROM batch WHERE bucket = ?",
            "DELETE FROM bucket WHERE id = ?",
        ):
            self._db.execute(query, (bucket.id,))
        self._db.execute("DELETE FROM dentry WHERE ino = ?", (bucket.root,))
        self.by_id.pop(bucket.id, None)

    def heard(self, bucket: BucketState, seq: int, time_ns: int = 0) -> None:
        """The bucket's log holds commit ``seq``, made at ``time_ns`` unless 0; stored at the next :meth:`save`."""
        if seq > bucket.known or (seq == bucket.known and time_ns):
            bucket.known, bucket.known_ns = seq, time_ns

    def save(self, bucket: BucketState) -> None:
        """Store what was heard, inside the caller's transaction."""
        values = (bucket.seq, wire.pack(bucket.usage), bucket.known, bucket.known_ns, bucket.id)
        self._db.execute("UPDATE bucket SET seq = ?, usage = ?, known = ?, known_ns = ? WHERE id = ?", values)

    def advance(self, bucket: BucketState, seq: int, usage: wire.Usage, time_ns: int = 0) -> None:
        """Changes up to ``seq`` are in the database; inside the caller's transaction."""
        bucket.seq, bucket.usage = seq, usage
        self.heard(bucket, seq, time_ns)
        self.save(bucket)
        event, self._advanced = self._advanced, trio.Event()
        event.set()

    async def advanced(self) -> None:
        """Return when a bucket has advanced."""
        await self._advanced.wait()
