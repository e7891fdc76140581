"""SQLite files that can be made anew from what they describe."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT_ONCE = 500
"""Values in one list of a statement."""


class Derived:
    """One connection to such a file, for one thread at a time."""

    VERSION: ClassVar[int]
    SCHEMA: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # The last rows may be lost with the power, never the file: what it describes tells what is missing.
            self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """The file at ``path``; an empty one when it is absent, damaged or of another version."""
        try:
            opened = cls(path)
            version = opened._version()
        except sqlite3.DatabaseError:
            version = -1
        else:
            if version == cls.VERSION:
                return opened
            opened.close()
        if version != 0:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        opened = cls(path)
        with opened._transaction():
            for statement in f"{cls.SCHEMA}PRAGMA user_version = {cls.VERSION};\n".split(";\n"):
                opened._db.execute(statement)
        return opened

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block's changes or none. Raises ``OSError``."""
        with as_oserror():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


@contextmanager
def as_oserror() -> Iterator[None]:
    """Errors of SQLite as those of the disk it is on."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, f"chunk index: {error}") from error
