"""Where each packed chunk lies: a SQLite file that can be rebuilt from the packs at any time."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from nodeserver.chunks.pack import Appended

VERSION = 1

_AT_ONCE = 500

_SCHEMA = f"""
CREATE TABLE chunk (
    bucket BLOB NOT NULL, id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (bucket, id)
) WITHOUT ROWID;
CREATE TABLE pack (
    bucket BLOB NOT NULL, number INTEGER NOT NULL, indexed INTEGER NOT NULL,
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
        rows = [(bucket, record.id, new.number, record.offset, record.length) for record in new.records]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO pack VALUES (?, ?, ?)", (bucket, new.number, new.end))

    def packs(self) -> dict[tuple[bytes, int], int]:
        """How many bytes of each (bucket, pack) are in the index."""
        return {(bucket, number): end for bucket, number, end in self._db.execute("SELECT * FROM pack")}

    def cut(self, bucket: bytes, number: int, end: int) -> int:
        """Forget the chunks of a pack that reach beyond byte ``end``; how many there were."""
        with self._transaction():
            gone = self._db.execute(
                "DELETE FROM chunk WHERE bucket = ? AND pack = ? AND offset + length > ?", (bucket, number, end)
            ).rowcount
            if end:
                self._db.execute("UPDATE pack SET indexed = ? WHERE bucket = ? AND number = ?", (end, bucket, number))
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
