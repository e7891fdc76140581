"""What the server refuses for good is set aside, with what needs it, so that it holds up nothing else.

A refused row of the journal stays there, and so does what was done here: it can be read, and what the server says of
it is ignored. It is tried again when its file changes again or somebody says so, and goes when its file does.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

from mountfs.local.database import Database
from mountfs.local.inodes import Inodes
from mountfs.local.journal import Journal, Op, Row

NAMING = (Op.LINK, Op.UNLINK, Op.RENAME, Op.EXCHANGE)


class Refusal(NamedTuple):
    """A row of the table ``aside``."""

    row: int
    time: int
    reason: str
    last: int
    """The newest row of the journal then: what is newer may make it worth another try."""


class Needs:
    """Goes through the journal in order; says which rows need something that was left out."""

    def __init__(self) -> None:
        self.unborn: set[int] = set()
        """Files that the server does not have."""
        self._moved: set[int] = set()
        """Files whose names are not what they should be by now."""
        self._taken: set[tuple[int, bytes]] = set()
        """Names that should be free by now."""

    def wants(self, row: Row) -> bool:
        """Whether the row cannot be sent before what was left out."""
        if {row.ino, row.parent, row.parent2} & self.unborn or not self._taken.isdisjoint(row.names()):
            return True
        if row.op in NAMING and not self._moved.isdisjoint(row.inos()):
            return True
        return row.op == Op.UNLINK and any(parent == row.ino for parent, _ in self._taken)

    def leave_out(self, row: Row) -> None:
        """The row is not sent."""
        if row.op == Op.CREATE:
            self.unborn.add(row.ino)
        if row.op not in NAMING:
            return
        there = [ino for ino in row.inos() if ino not in self.unborn]
        self._moved.update(there)
        if row.op != Op.LINK and row.ino in there:
            self._taken.add((row.parent, row.name))
        if row.ino2 in there:
            self._taken.add((row.parent2, row.name2))


class Aside:
    """The table ``aside``, and in memory which rows are not to be sent because of it."""

    def __init__(self, db: Database, inodes: Inodes, journal: Journal) -> None:
        self._db = db
        self._inodes = inodes
        self._journal = journal
        self.refused: dict[int, Refusal] = {}
        """By row."""
        self.rows: set[int] = set()
        """The refused rows and those that need them."""
        self._needs = Needs()
        self._seen = 0
        """The newest row looked at."""
        self._load()
        db.after_rollback.append(self._load)

    def _load(self) -> None:
        found = self._db.execute("SELECT row, time, reason, last FROM aside WHERE row IN (SELECT id FROM journal)")
        self.refused = {it.row: it for it in map(Refusal._make, found)}
        for row in self._journal.some(self.refused):
            self._journal.take(row)
        self._start_over()

    def _start_over(self) -> None:
        self.rows.clear()
        self._needs = Needs()
        self._seen = min(self.refused, default=1) - 1

    def add(self, row: Row, reason: str) -> None:
        """The server refuses this row, and would again."""
        refusal = Refusal(row.id, time.time_ns(), reason, self._journal.last())
        with self._db.transaction():
            self._db.execute("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", refusal)
        self.refused[row.id] = refusal
        self._journal.take(row)
        self._start_over()

    def look(self) -> None:
        """Follow the journal: what is to be tried again, what has become void, what needs what is left."""
        while self.refused and (new := self._journal.rows(after=self._seen)):
            changed = {ino: row.id for row in new for ino in row.inos()}
            for row in new:
                self._seen = row.id
                if row.id in self.refused or self._needs.wants(row):
                    self._needs.leave_out(row)
                    self.rows.add(row.id)
            if not (self._end_void() or self._try_changed(changed)):
                break

    def _try_changed(self, changed: dict[int, int]) -> bool:
        """Try rows again whose files have changed since: ``changed`` has the newest row of each."""
        again = [
            row.id for row in self._journal.some(self.refused) if changed.get(row.ino, 0) > self.refused[row.id].last
        ]
        if again:
            self.retry(again)
        return bool(again)

    def _end_void(self) -> bool:
        """Forget the rows that came to nothing because their files are gone."""
        rows, unborn = self._journal.some(self.rows), self._needs.unborn
        needed = {parent for row in rows if not self._gone(row.ino) for parent, _ in row.names()}
        void = []
        for row in rows:
            never = row.ino in unborn and row.ino not in needed
            if self._gone(row.ino) and (never or (row.id in self.refused and row.op in (Op.ATTR, Op.WRITE))):
                void.append(row)
        if void:
            with self._db.transaction():
                self.forget(void)
                for row in void:
                    if row.op == Op.RENAME and row.ino2 and row.ino2 not in unborn:
                        # What it was moved onto has ended all the same.
                        self._journal.add(
                            row.bucket, Op.UNLINK, row.ino2, row.time, parent=row.parent2, name=row.name2, row_id=row.id
                        )
            self._start_over()
            self._journal.announce()
        return bool(void)

    def _gone(self, ino: int) -> bool:
        inode = self._inodes.get(ino)
        return inode is None or not inode.nlink

    def forget(self, rows: Collection[Row]) -> None:
        """These rows are not to be done any more; inside the caller's transaction."""
        self._db.executemany("DELETE FROM aside WHERE row = ?", [(row.id,) for row in rows])
        self._journal.remove(rows)
        for row in rows:
            self.refused.pop(row.id, None)
        self._start_over()

    def retry(self, ids: Iterable[int]) -> None:
        """Let refused rows be sent again."""
        rows = self._journal.some(ids)
        with self._db.transaction():
            self._db.executemany("DELETE FROM aside WHERE row = ?", [(row.id,) for row in rows])
        for row in rows:
            del self.refused[row.id]
            self._journal.give_back(row)
        self._start_over()

    def with_needs(self, ids: Collection[int]) -> tuple[list[Row], set[int]]:
        """These refused rows and all that need them, in order, and the files among them that the server lacks."""
        needs, found = Needs(), []
        for row in self._journal.rows(after=min(ids, default=1) - 1):
            if row.id in ids or needs.wants(row):
                needs.leave_out(row)
                found.append(row)
        return found, needs.unborn

    def concerning(self, ino: int, up_to: int) -> Row | None:
        """The first row set aside, up to a row of the journal, that concerns a file or a name in a directory."""
        rows = self._journal.some(row for row in self.rows if row <= up_to)
        return next((row for row in rows if ino in (row.ino, row.ino2, row.parent, row.parent2)), None)
