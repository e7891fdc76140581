"""Where each packed chunk lies: a SQLite file that can be rebuilt from the packs at any time."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from nodeserver.chunks.record import PACK_HEADER, RECORD_HEADER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from nodeserver.chunks.pack import Appended

VERSION = 2

_AT_ONCE = 500

_SCHEMA = f"""
CREATE TABLE chunk (
    bucket BLOB NOT NULL, id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (bucket, id)
) WITHOUT ROWID;
CREATE TABLE pack (
    bucket BLOB NOT NULL, number INTEGER NOT NULL, indexed INTEGER NOT NULL, dead INTEGER NOT NULL,
    PRIMARY KEY (bucket, number)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


class Place(NamedTuple):
    """A stored chunk's pack, and its place there in bytes."""

    pack: int
    offset: int
    length: int


class Index:
    """One connection to the index, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # The last rows may be lost with the power, never the file: packs tell what is missing.
            self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open(cls, path: Path) -> Index:
        """The index at ``path``; an empty one when it is absent, damaged or of another version."""
        try:
            index = cls(path)
            version = index._version()
        except sqlite3.DatabaseError:
            version = -1
        else:
            if version == VERSION:
                return index
            index.close()
        if version != 0:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        index = cls(path)
        with index._transaction():
            for statement in _SCHEMA.split(";\n"):
                index._db.execute(statement)
        return index

    def find(self, bucket: bytes, ids: Collection[bytes]) -> dict[bytes, Place]:
        """Where those of ``ids`` lie that are in packs. Raises ``OSError``."""
        found: dict[bytes, Place] = {}
        rest = iter(ids)
        with _as_oserror():
            while some := list(islice(rest, _AT_ONCE)):
                marks = ",".join("?" * len(some))
                query = f"SELECT id, pack, offset, length FROM chunk WHERE bucket = ? AND id IN ({marks})"  # noqa: S608
                for chunk, *place in self._db.execute(query, (bucket, *some)):
                    found[chunk] = Place(*place)
        return found

    def add(self, bucket: bytes, new: Appended) -> None:
        """Enter what was appended to a pack. Raises ``OSError``; nothing is entered then."""
        places = {record.id: record for record in new.records}  # of several with one id the last counts
        now = time.time_ns()
        rows = [(bucket, record.id, new.number, record.offset, record.length, now) for record in places.values()]
        live = sum(RECORD_HEADER + record.length for record in places.values())
        with self._transaction():
            self._bury(bucket, places)
            self._db.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?)", rows)
            query = "SELECT indexed, dead FROM pack WHERE bucket = ? AND number = ?"
            start, dead = self._db.execute(query, (bucket, new.number)).fetchone() or (PACK_HEADER, 0)
            dead += new.end - start - live
            self._db.execute("INSERT OR REPLACE INTO pack VALUES (?, ?, ?, ?)", (bucket, new.number, new.end, dead))

    def remove(self, bucket: bytes, ids: Collection[bytes]) -> None:
        """Forget chunks. Raises ``OSError``; none is forgotten then."""
        with self._transaction():
            self._bury(bucket, ids)
            self._db.executemany("DELETE FROM chunk WHERE bucket = ? AND id = ?", [(bucket, chunk) for chunk in ids])

    def count(self, bucket: bytes) -> int:
        """How many chunks of a bucket are in packs. Raises ``OSError``."""
        with _as_oserror():
            return int(self._db.execute("SELECT count(*) FROM chunk WHERE bucket = ?", (bucket,)).fetchone()[0])

    def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> list[bytes]:
        """The chunks whose ids begin with a byte from ``first`` on and below ``beyond`` that came before a moment.

        Raises ``OSError``.
        """
        query = "SELECT id FROM chunk WHERE bucket = ? AND id >= ? AND id < ? AND stored_ns < ?"
        end = bytes([beyond]) if beyond < 256 else b"\xff" * 33
        with _as_oserror():
            return [row[0] for row in self._db.execute(query, (bucket, bytes([first]), end, before_ns))]

    def packs(self) -> dict[tuple[bytes, int], int]:
        """How many bytes of each (bucket, pack) are in the index."""
        rows = self._db.execute("SELECT bucket, number, indexed FROM pack")
        return {(bucket, number): end for bucket, number, end in rows}

    def wasteful(self, bucket: bytes, share: float) -> list[tuple[int, int]]:
        """The packs of which at least ``share`` is dead, records of what is not there any more, with those bytes.

        Raises ``OSError``.
        """
        query = "SELECT number, dead FROM pack WHERE bucket = ? AND dead > 0 AND dead >= ? * (indexed - ?)"
        with _as_oserror():
            return sorted(self._db.execute(query, (bucket, share, PACK_HEADER)))

    def retire(self, bucket: bytes, number: int) -> bool:
        """Forget a pack, durably, if all of it is dead. Raises ``OSError``."""
        with _as_oserror():
            # What was moved elsewhere must not be looked for in a pack that is gone.
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                with self._transaction():
                    query = "DELETE FROM pack WHERE bucket = ? AND number = ? AND dead >= indexed - ?"
                    return self._db.execute(query, (bucket, number, PACK_HEADER)).rowcount > 0
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def cut(self, bucket: bytes, number: int, end: int) -> int:
        """Forget the chunks of a pack that reach beyond byte ``end``; how many there were."""
        with self._transaction():
            gone = self._db.execute(
                "DELETE FROM chunk WHERE bucket = ? AND pack = ? AND offset + length > ?", (bucket, number, end)
            ).rowcount
            if end:
                query = "SELECT total(? + length) FROM chunk WHERE bucket = ? AND pack = ?"
                live = int(self._db.execute(query, (RECORD_HEADER, bucket, number)).fetchone()[0])
                self._db.execute(
                    "UPDATE pack SET indexed = ?, dead = ? WHERE bucket = ? AND number = ?",
                    (end, max(0, end - PACK_HEADER - live), bucket, number),
                )
            else:
                self._db.execute("DELETE FROM pack WHERE bucket = ? AND number = ?", (bucket, number))
        return gone

    def drop(self, bucket: bytes) -> None:
        """Forget a bucket."""
        with self._transaction():
            self._db.execute("DELETE FROM chunk WHERE bucket = ?", (bucket,))
            self._db.execute("DELETE FROM pack WHERE bucket = ?", (bucket,))

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _bury(self, bucket: bytes, ids: Collection[bytes]) -> None:
        """Count the records that chunks have now as dead."""
        dead = Counter[int]()
        for place in self.find(bucket, ids).values():
            dead[place.pack] += RECORD_HEADER + place.length
        rows = [(size, bucket, number) for number, size in dead.items()]
        self._db.executemany("UPDATE pack SET dead = dead + ? WHERE bucket = ? AND number = ?", rows)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block's changes or none. Raises ``OSError``."""
        with _as_oserror():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


@contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, f"chunk index: {error}") from error
