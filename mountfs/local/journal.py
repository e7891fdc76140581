"""The journal: what this mount did that the server has not acknowledged.

A row names a kind of change, the file and the names concerned. What is sent (attributes, content)
is read when the batch is made, so ten changes of one file cost one operation. An inode or name with
a row here is *pending*: what the server says of it is older than what we know, and is ignored.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import trio

from mountfs.local.database import Database


class Op(enum.IntEnum):
    """Kinds of journal rows. Values are stored: never renumber."""

    CREATE = 1
    LINK = 2
    UNLINK = 3
    RENAME = 4
    EXCHANGE = 5
    ATTR = 6
    WRITE = 7


class Field(enum.IntFlag):
    """Attributes that an ATTR row says have changed. Values are stored: never renumber."""

    MODE = 1
    UID = 2
    GID = 4
    ATIME = 8
    MTIME = 16
    XATTRS = 32


class Row(NamedTuple):
    """A row of the table ``journal``."""

    id: int
    bucket: int
    op: int
    ino: int
    parent: int
    name: bytes
    ino2: int
    """RENAME: the file replaced, 0 for none. EXCHANGE: the other file."""
    parent2: int
    name2: bytes
    time: int
    mask: int

    def names(self) -> Iterable[tuple[int, bytes]]:
        """The names concerned."""
        if self.parent:
            yield self.parent, self.name
        if self.parent2:
            yield self.parent2, self.name2

    def inos(self) -> Iterable[int]:
        """The inodes concerned."""
        yield self.ino
        if self.ino2:
            yield self.ino2


class Sent(msgspec.Struct, array_like=True):
    """Which journal rows a commit answers, kept beside it. Stored: only append fields."""

    rows: list[int]
    writes: list[tuple[int, int, int]]
    """(operation, inode, generation) of each write in the commit."""


_COLUMNS = ", ".join(Row._fields)


class Journal:
    """The table ``journal`` and, in memory, what is pending."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.inos: Counter[int] = Counter()
        self.names: Counter[tuple[int, bytes]] = Counter()
        self.count = 0
        self.open: dict[tuple[Op, int], int] = {}
        """Rows by kind and inode that nobody has taken, so that a further change can ride on them."""
        self.held: set[int] = set()
        """Inodes that are being written: their WRITE rows wait until they are sealed."""
        self.taken: set[int] = set()
        """Rows on their way to the server."""
        self._added = trio.Event()
        self._acknowledged = trio.Event()
        self.reload()
        db.after_rollback.append(self.reload)

    def reload(self) -> None:
        """Learn from the table what is pending."""
        self.inos.clear()
        self.names.clear()
        self.open.clear()
        self.count = 0
        for row in self.rows():
            self._count(row, 1)
            if row.id not in self.taken:
                self.open[Op(row.op), row.ino] = row.id

    def _count(self, row: Row, step: int) -> None:
        self.count += step
        for ino in row.inos():
            self.inos[ino] += step
            if not self.inos[ino]:
                del self.inos[ino]
        for name in row.names():
            self.names[name] += step
            if not self.names[name]:
                del self.names[name]

    def add(
        self,
        bucket: int,
        op: Op,
        ino: int,
        time: int,
        *,
        parent: int = 0,
        name: bytes = b"",
        ino2: int = 0,
        parent2: int = 0,
        name2: bytes = b"",
        mask: int = 0,
        row_id: int | None = None,
    ) -> None:
        """Append a row, inside the caller's transaction; or put it where the row ``row_id`` was."""
        self._db.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row_id, bucket, op, ino, parent, name, ino2, parent2, name2, time, mask),
        )
        row_id = self._db.connection.last_insert_rowid()
        self._count(Row(row_id, bucket, op, ino, parent, name, ino2, parent2, name2, time, mask), 1)
        self.open[op, ino] = row_id
        self._announce_added()

    def _announce_added(self) -> None:
        if self._added.statistics().tasks_waiting:
            event, self._added = self._added, trio.Event()
            event.set()

    def add_attr(self, bucket: int, ino: int, time: int, mask: Field, *, last: bool) -> None:
        """Attributes of an inode changed: a row of its own only when no row will carry them anyway.

        With ``last`` they must come after all that is there: the time of a directory, which every
        name made in it changes too.
        """
        if last:
            self.add(bucket, Op.ATTR, ino, time, mask=mask)
            return
        if (Op.CREATE, ino) in self.open:
            return
        row_id = self.open.get((Op.ATTR, ino))
        if row_id is not None:
            self._db.execute("UPDATE journal SET mask = mask | ? WHERE id = ?", (mask, row_id))
        else:
            self.add(bucket, Op.ATTR, ino, time, mask=mask)

    def add_write(self, bucket: int, ino: int, time: int) -> None:
        """The content of an inode is to be sent, once it is sealed, as it will be when its row's turn comes."""
        if (Op.WRITE, ino) not in self.open:
            self.held.add(ino)
            self.add(bucket, Op.WRITE, ino, time)

    def waits(self, row: Row) -> bool:
        """Whether the row's content is still being written."""
        return row.op == Op.WRITE and row.ino in self.held

    def seal(self, ino: int) -> None:
        """The content of an inode may go."""
        if ino in self.held:
            self.held.discard(ino)
            self._announce_added()

    def take(self, row: Row) -> None:
        """From now on the row is on its way: later changes need a row of their own."""
        self.taken.add(row.id)
        if self.open.get((Op(row.op), row.ino)) == row.id:
            del self.open[Op(row.op), row.ino]

    def give_back(self, row: Row) -> None:
        """The row did not go after all."""
        self.taken.discard(row.id)
        self.open.setdefault((Op(row.op), row.ino), row.id)

    def remove(self, rows: Iterable[Row]) -> None:
        """These are acknowledged (or cancel out): forget them, inside the caller's transaction."""
        for row in rows:
            self._db.execute("DELETE FROM journal WHERE id = ?", (row.id,))
            self.take(row)
            self.taken.discard(row.id)
            self._count(row, -1)

    def announce(self) -> None:
        """Wake those in :meth:`acknowledged`. After the transaction that removed rows."""
        event, self._acknowledged = self._acknowledged, trio.Event()
        event.set()

    def rows(self, bucket: int | None = None, after: int = 0, limit: int = -1) -> list[Row]:
        """Rows in order, of one bucket or all."""
        query = f"SELECT {_COLUMNS} FROM journal WHERE id > ? AND bucket = ifnull(?, bucket) ORDER BY id LIMIT ?"  # noqa: S608
        return [Row._make(row) for row in self._db.execute(query, (after, bucket, limit))]

    def of_ino(self, ino: int) -> list[Row]:
        """Rows that concern an inode. Scans the journal: not for the hot path."""
        query = f"SELECT {_COLUMNS} FROM journal WHERE ino = ? OR ino2 = ? ORDER BY id"  # noqa: S608
        return [Row._make(row) for row in self._db.execute(query, (ino, ino))]

    def last(self) -> int:
        """The id of the newest row, 0 for an empty journal."""
        return int(self._db.execute("SELECT ifnull(max(id), 0) FROM journal").get)

    def oldest(self) -> int | None:
        """When the oldest row was written (ns), None for an empty journal."""
        row = self._db.execute("SELECT time FROM journal ORDER BY id LIMIT 1").fetchone()
        return row[0] if row else None

    def left(self, up_to: int, ino: int | None = None) -> bool:
        """Whether a row up to the id ``up_to`` is here that need not wait: of any, or concerning ``ino``."""
        where = "id <= ?" if ino is None else "id <= ? AND ? IN (ino, ino2, parent, parent2)"
        values = (up_to,) if ino is None else (up_to, ino)
        query = f"SELECT op, ino FROM journal WHERE {where} LIMIT ?"  # noqa: S608
        rows = self._db.execute(query, (*values, len(self.held) + 1))
        return any(op != Op.WRITE or row_ino not in self.held for op, row_ino in rows)

    async def added(self) -> None:
        """Return when a row is added, or may go."""
        await self._added.wait()

    async def acknowledged(self) -> None:
        """Return when rows have gone."""
        await self._acknowledged.wait()
