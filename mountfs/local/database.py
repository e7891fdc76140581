"""The workstation's SQLite database: connection, transactions, schema and its migrations.

One connection, used from the FUSE thread only, without a thread hop: a lookup costs microseconds.
**No ``await`` inside a transaction**: that is the rule that makes every change atomic towards the
other tasks of the thread. A second connection, in a thread of its own, moves the write-ahead log
back into the database, off the hot path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import apsw

from mountfs.errors import MountError

FORMAT = 2
"""Version of the schema below, kept in ``PRAGMA user_version``."""

CHECKPOINT_PAGES = 4000
"""Pages that the write-ahead log grows by before the checkpoint thread is woken again."""
WAL_LIMIT_PAGES = 16_000
"""Pages at which the FUSE thread itself waits for a checkpoint, so that the log begins anew."""

SCHEMA = """
-- Facts about this state directory: client (16 bytes, our identity towards the server), server
-- (16 bytes, whose data this is), boot (the kernel's boot id when it was last opened).
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;

-- Buckets seen. seq: the place in the bucket's log up to which this database knows every change.
CREATE TABLE bucket (
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    root INTEGER NOT NULL,          -- inode of its root directory
    chunk_key BLOB NOT NULL,
    seq INTEGER NOT NULL,
    usage BLOB NOT NULL             -- MessagePack of wire.Usage
);

-- Files known. Times in nanoseconds. A row with nlink 0 is an open or unsent file without a name.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,
    bucket INTEGER NOT NULL,        -- 0: the root above all buckets
    file_id BLOB NOT NULL,
    mode INTEGER NOT NULL,          -- st_mode with type bits
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    size INTEGER NOT NULL,
    holes INTEGER NOT NULL,         -- bytes of size that are known to take no room
    atime INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL,
    parent INTEGER NOT NULL,        -- a directory it has a name in; 0 for the root
    complete INTEGER NOT NULL,      -- directory: every name it has is in dentry
    stale INTEGER NOT NULL,         -- the server has newer attributes or content
    version BLOB NOT NULL,          -- head version the content below is, or was made from
    target BLOB NOT NULL,           -- of a symbolic link
    xattrs BLOB,                    -- MessagePack of a map, NULL for none
    content BLOB                    -- packed slices of `version`, NULL when not known
);

-- Names. ino 0: something changed there, ask the server.
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;

-- Content that lies over `inode.content`: a range of a slab, of a chunk, or (neither) zeros.
CREATE TABLE staged (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    slab INTEGER NOT NULL,          -- 0: not in a slab
    position INTEGER NOT NULL,      -- in the slab or chunk
    gen INTEGER NOT NULL,           -- of the writing; see staging.py
    chunk BLOB NOT NULL,            -- empty: not in a chunk
    PRIMARY KEY (ino, offset)
) WITHOUT ROWID;

-- What the server has not acknowledged, oldest first. Values are bound when a batch is made: a row
-- says only what kind of change concerns which file and name.
CREATE TABLE journal (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    bucket INTEGER NOT NULL,
    op INTEGER NOT NULL,            -- journal.Op
    ino INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino2 INTEGER NOT NULL,
    parent2 INTEGER NOT NULL,
    name2 BLOB NOT NULL,
    time INTEGER NOT NULL,
    mask INTEGER NOT NULL           -- journal.Field, for attribute changes
);

-- The commit on its way, kept as sent so that a retry after a restart is the same batch.
CREATE TABLE batch (
    bucket INTEGER PRIMARY KEY,
    body BLOB NOT NULL,             -- MessagePack of wire.Commit
    rows BLOB NOT NULL              -- MessagePack of batches.Sent: which journal rows it answers
);

-- The chunk cache: plaintext of chunks, in slabs. stamp orders eviction, oldest first.
CREATE TABLE chunk (
    id BLOB PRIMARY KEY,
    slab INTEGER NOT NULL,
    position INTEGER NOT NULL,
    length INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    checked INTEGER NOT NULL DEFAULT 0  -- 0: compare the bytes with the id before they are used
) WITHOUT ROWID;

-- Chunks that were cached here and were not what their ids say.
CREATE TABLE damaged (
    id BLOB PRIMARY KEY,
    time INTEGER NOT NULL           -- when it was seen, ns
) WITHOUT ROWID;
CREATE INDEX chunk_stamp ON chunk (stamp);
CREATE INDEX chunk_place ON chunk (slab, position, length);
CREATE INDEX staged_place ON staged (slab, position, length) WHERE slab > 0;
"""

MIGRATIONS: dict[int, str] = {
    # Cached chunks could be written over: none is believed, and of those that overlap none is kept.
    1: """
DROP INDEX chunk_slab;
ALTER TABLE chunk ADD COLUMN checked INTEGER NOT NULL DEFAULT 0;
CREATE TABLE damaged (
    id BLOB PRIMARY KEY,
    time INTEGER NOT NULL           -- when it was seen, ns
) WITHOUT ROWID;
INSERT OR IGNORE INTO damaged SELECT id, unixepoch() * 1000000000 FROM (
    SELECT id, position < max(position + length) OVER before OR position + length > min(position) OVER after AS overlaps
    FROM (SELECT id, slab, position, length FROM chunk
        UNION ALL SELECT NULL, slab, position, length FROM staged WHERE slab > 0)
    WINDOW before AS (PARTITION BY slab ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        after AS (PARTITION BY slab ORDER BY position ROWS BETWEEN 1 FOLLOWING AND 1 FOLLOWING)
) WHERE overlaps AND id IS NOT NULL;
DELETE FROM chunk WHERE id IN (SELECT id FROM damaged);
CREATE INDEX chunk_place ON chunk (slab, position, length);
CREATE INDEX staged_place ON staged (slab, position, length) WHERE slab > 0;
""",
}
"""SQL that takes a database from the version given to the next one."""


class Database:
    """The open database of a state directory, locked against a second daemon."""

    def __init__(self, state: Path) -> None:
        """Open or create ``state/mount.db``.

        Raises MountError when another daemon holds the directory, or when it was written by a newer
        version of this program.
        """
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state = state
        self._lock = _lock(state / "lock")
        path = str(state / "mount.db")
        self.connection = apsw.Connection(path, statementcachesize=256)
        self.execute: Callable[..., Any] = self.connection.execute
        self.executemany: Callable[..., Any] = self.connection.executemany
        self.after_rollback: list[Callable[[], None]] = []
        self.execute("PRAGMA page_size = 4096")
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = NORMAL")
        self.execute("PRAGMA cache_size = -49152")
        self.execute("PRAGMA temp_store = MEMORY")
        self.connection.set_busy_timeout(5000)
        self._migrate()
        self._copied = 0
        """Pages in the log when the checkpoint thread was last woken."""
        self._checkpoints = _Checkpoints(path)
        self.connection.set_wal_hook(self._on_wal)

    def _migrate(self) -> None:
        version: int = self.execute("PRAGMA user_version").get
        if version > FORMAT:
            raise MountError(
                f"{self.state} has format {version}, this mountfs knows up to {FORMAT}: use the newer mountfs"
            )
        with self.transaction():
            if version == 0:
                self.execute(SCHEMA)
            else:
                for step in range(version, FORMAT):
                    self.execute(MIGRATIONS[step])
            self.execute(f"PRAGMA user_version = {FORMAT}")

    def transaction(self) -> Transaction:
        """``with db.transaction():`` everything inside happens, or nothing; one inside another is a part of that."""
        return Transaction(self)

    def get_meta(self, key: str) -> bytes | None:
        """A fact from ``meta``, None when it was never set."""
        row = self.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: bytes) -> None:
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _on_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        if pages < self._copied:
            self._copied = 0
        if pages > WAL_LIMIT_PAGES and self._checkpoints.idle:
            # The transaction is through: what is raised here would make it look as if it was not.
            with contextlib.suppress(apsw.BusyError):
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        elif pages > self._copied + CHECKPOINT_PAGES:
            self._copied = pages
            self._checkpoints.wake()
        return apsw.SQLITE_OK

    def close(self) -> None:
        """Fold the log into the database and let go of the directory."""
        self._checkpoints.close()
        self.connection.close()
        os.close(self._lock)


class Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when an exception leaves the block. Inside another it is a savepoint.

    Raises OSError(ENOSPC) when the disk is full.
    """

    __slots__ = ("_db", "_inner")

    def __init__(self, db: Database) -> None:
        self._db = db
        self._inner = False

    def __enter__(self) -> None:
        self._inner = self._db.connection.in_transaction
        self._db.execute("SAVEPOINT part" if self._inner else "BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._db.execute("RELEASE part" if self._inner else "COMMIT")
            except apsw.Error as failure:
                self._rollback()
                raise _os_error(failure) from failure
        else:
            self._rollback()
            if isinstance(error, apsw.Error):
                raise _os_error(error) from error

    def _rollback(self) -> None:
        if self._db.connection.in_transaction:  # else SQLite has rolled back everything
            self._db.execute("ROLLBACK TO part; RELEASE part" if self._inner else "ROLLBACK")
        for callback in self._db.after_rollback:
            callback()


def _os_error(error: apsw.Error) -> Exception:
    """What a full or broken disk is to everyone else; other errors of SQLite are ours, and stay."""
    if isinstance(error, apsw.FullError):
        return OSError(errno.ENOSPC, "the disk of the state directory is full")
    if isinstance(error, apsw.IOError):
        return OSError(errno.EIO, f"the database of the state directory: {error}")
    return error


class _Checkpoints:
    """A thread that copies the write-ahead log into the database whenever it is woken."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.idle = True
        """Nothing is being copied: another checkpoint would not have to wait."""
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self.idle = False
        self._wake.set()

    def close(self) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        connection = apsw.Connection(self._path)
        connection.set_busy_timeout(1000)
        # A connection that has read nothing does not know of the log.
        connection.execute("SELECT count(*) FROM meta").fetchall()
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stop:
                break
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self.idle = True
        connection.close()


def _lock(path: Path) -> int:
    """Take the lock file of a state directory; it names the daemon that holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise MountError(f"{path.parent} is in use by process {owner or '?'}") from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
