"""Inodes and names in the local database. Plain queries; what they mean is decided in ``vfs``."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from mountfs.local.database import Database
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol.ids import ROOT_INO, ino_of
from nodeserver.protocol.wire import File, Slice

UNKNOWN = 0
"""In place of an inode number in a name: ask the server."""


class Inode(NamedTuple):
    """A row of the table ``inode``, but for its content."""

    ino: int
    bucket: int
    file_id: bytes
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    holes: int
    atime: int
    mtime: int
    ctime: int
    parent: int
    complete: int
    stale: int
    version: bytes
    target: bytes
    xattrs: bytes | None

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def xattr_map(self) -> dict[bytes, bytes]:
        """The extended attributes, decoded."""
        return unpack_xattrs(self.xattrs)


COLUMNS = ", ".join(Inode._fields)
_JOINED = ", ".join(f"inode.{field}" for field in Inode._fields)
VARIABLES = 500
"""Values bound in one query."""
KNOWN = 4096
"""Rows kept in memory."""
NEAR_NS = 10_000_000
"""Times that differ by less need not be kept apart over a crash."""
TIMES_HELD = 1024
"""Times not yet written to their rows."""
_INSERT = f"INSERT OR REPLACE INTO inode ({COLUMNS}, content) VALUES ({', '.join('?' * (len(Inode._fields) + 1))})"  # noqa: S608
_GET = f"SELECT {COLUMNS} FROM inode WHERE ino = ?"  # noqa: S608
_LIST = (
    f"SELECT dentry.name, {_JOINED} FROM dentry JOIN inode USING (ino)"  # noqa: S608
    " WHERE dentry.parent = ? AND dentry.name > ? ORDER BY dentry.name LIMIT ?"
)


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes | None:
    """As the column ``xattrs`` has it."""
    return msgspec.msgpack.encode(xattrs) if xattrs else None


def unpack_xattrs(packed: bytes | None) -> dict[bytes, bytes]:
    """The inverse of :func:`pack_xattrs`."""
    return msgspec.msgpack.decode(packed, type=dict[bytes, bytes]) if packed else {}


def holes_in(slices: Iterable[Slice]) -> int:
    """Bytes of a version that take no room."""
    return sum(piece.length for piece in slices if not piece.chunk)


class Inodes:
    """Queries on ``inode`` and ``dentry``."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._execute = db.execute
        self.root_file: bytes | None = None
        """The file that is the root of the mount, when a single bucket is mounted."""
        self._known: dict[int, Inode] = {}
        db.after_rollback.append(self.forget)
        self._times: dict[int, tuple[int, int]] = {}
        """mtime and ctime by inode, newer than in the row: they change with every write and name, and are not
        worth a page of the log each. The journal's rows tell them well enough after a crash."""

    def ino(self, file_id: bytes) -> int:
        """The inode number of a file."""
        return ROOT_INO if file_id == self.root_file else ino_of(file_id)

    def get(self, ino: int) -> Inode | None:
        inode = self._known.get(ino)
        if inode is None:
            row = self._execute(_GET, (ino,)).fetchone()
            if row is None:
                return None
            if len(self._known) >= KNOWN:
                self._known.clear()
            inode = self._known[ino] = Inode._make(row)
        return self._timed(inode)

    def many(self, inos: Sequence[int]) -> dict[int, Inode]:
        """Those of up to ``VARIABLES`` inodes that are known, by number."""
        query = f"SELECT {COLUMNS} FROM inode WHERE ino IN ({', '.join('?' * len(inos))})"  # noqa: S608
        return {row[0]: self._timed(Inode._make(row)) for row in self._execute(query, inos)}

    def _timed(self, inode: Inode) -> Inode:
        times = self._times.get(inode.ino)
        return inode._replace(mtime=times[0], ctime=times[1]) if times else inode

    def hold_times(self, ino: int, mtime: int, ctime: int) -> None:
        """New times of an inode, to be written to its row later."""
        self._times[ino] = (mtime, ctime)
        if len(self._times) >= TIMES_HELD:
            self.write_times()

    def write_times(self) -> None:
        """Write the times held to their rows."""
        if self._times:
            values = [(mtime, ctime, ino) for ino, (mtime, ctime) in self._times.items()]
            self._times.clear()
            self._known.clear()
            with self._db.transaction():
                self._db.executemany("UPDATE inode SET mtime = ?, ctime = ? WHERE ino = ?", values)

    def near(self, ino: int, mtime: int) -> bool:
        """Whether an inode's row has about this mtime already."""
        known = self._known.get(ino)
        return known is not None and abs(known.mtime - mtime) < NEAR_NS

    def forget(self) -> None:
        """Rows were changed otherwise than through here: read them again."""
        self._known.clear()

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode behind a name; None when the name is not known (or known to be UNKNOWN)."""
        ino = self.target(parent, name)
        return self.get(ino) if ino else None

    def target(self, parent: int, name: bytes) -> int | None:
        """The inode number a name has, UNKNOWN included; None without such a name."""
        row = self._execute("SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)).fetchone()
        return row[0] if row else None

    def page(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """Up to ``limit`` names after ``after`` in byte order, with their inodes."""
        rows = self._execute(_LIST, (parent, after, limit)).fetchall()
        return [(row[0], self._timed(Inode._make(row[1:]))) for row in rows]

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """(directory, name) pairs that lead to an inode, in the directory its row knows of.

        Scans that directory: not for the hot path.
        """
        query = "SELECT parent, name FROM dentry WHERE parent = (SELECT parent FROM inode WHERE ino = ?1) AND ino = ?1"
        return list(self._execute(query, (ino,)))

    def unknown_names(self, parent: int, limit: int) -> list[bytes]:
        """Names in a directory that the server has to be asked about."""
        rows = self._execute("SELECT name FROM dentry WHERE parent = ? AND ino = 0 LIMIT ?", (parent, limit))
        return [row[0] for row in rows]

    def names_between(self, parent: int, after: bytes, last: bytes | None) -> list[bytes]:
        """The names in a directory behind ``after``, up to ``last`` if given."""
        query = "SELECT name FROM dentry WHERE parent = ? AND name > ? AND (?3 IS NULL OR name <= ?3)"
        return [row[0] for row in self._execute(query, (parent, after, last))]

    def has_names(self, parent: int) -> bool:
        """Whether a directory has any name in it."""
        return self._execute("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)).fetchone() is not None

    def insert(self, inode: Inode, content: bytes | None) -> None:
        """Write a whole row."""
        self._times.pop(inode.ino, None)
        self._known[inode.ino] = inode
        self._execute(_INSERT, (*inode, content))

    def update(self, ino: int, **values: int | bytes | None) -> None:
        """Set the columns named."""
        times = self._times.pop(ino, None)
        self._known.pop(ino, None)
        if times:
            values.setdefault("mtime", times[0])
            values.setdefault("ctime", times[1])
        columns = ", ".join(f"{column} = ?" for column in values)
        self._execute(f"UPDATE inode SET {columns} WHERE ino = ?", (*values.values(), ino))  # noqa: S608

    def resize(self, ino: int, size: int, holes: int) -> None:
        """A file has another size now, ``holes`` bytes of which take no room."""
        now = time.time_ns()
        known = self._known.get(ino)
        if known is not None:
            self._known[ino] = known._replace(size=size, holes=holes, mtime=now, ctime=now)
        query = "UPDATE inode SET size = ?, holes = ?, mtime = ?, ctime = ? WHERE ino = ?"
        self._execute(query, (size, holes, now, now, ino))

    def touch(self, ino: int, time_ns: int, links: int = 0) -> None:
        """A directory's names changed: mtime and ctime, and ``links`` sub-directories more."""
        self.hold_times(ino, time_ns, time_ns)
        if links:
            self._known.pop(ino, None)
            self._execute("UPDATE inode SET nlink = nlink + ? WHERE ino = ?", (links, ino))

    def delete(self, ino: int) -> None:
        self._times.pop(ino, None)
        self._known.pop(ino, None)
        self._execute("DELETE FROM inode WHERE ino = ?", (ino,))

    def enter(self, parent: int, name: bytes, ino: int) -> None:
        """Give an inode a name, whatever the name stood for before."""
        self._execute("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", (parent, name, ino))

    def enter_all(self, parent: int, names: Iterable[tuple[bytes, int]]) -> None:
        """As :meth:`enter`, for many."""
        values = [(parent, name, ino) for name, ino in names]
        self._db.executemany("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", values)

    def leave(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def content(self, ino: int) -> bytes | None:
        """The packed slices of the file's version, None when they have to be asked for."""
        row = self._execute("SELECT content FROM inode WHERE ino = ?", (ino,)).fetchone()
        return row[0] if row else None

    def contents_from(self, ino: int, most: int, limit: int) -> list[bytes]:
        """The packed slices of files in the directory of ``ino``, from its name on, of up to ``most`` bytes each."""
        names = self.names(ino)
        if not names:
            return []
        query = (
            "SELECT content FROM inode WHERE size BETWEEN 1 AND ? AND content IS NOT NULL AND ino IN"
            " (SELECT ino FROM dentry WHERE parent = ? AND name >= ? ORDER BY name LIMIT ?)"
        )
        return [row[0] for row in self._execute(query, (most, *names[0], limit))]

    def orphans(self) -> list[int]:
        """Files without a name."""
        return [row[0] for row in self._execute("SELECT ino FROM inode WHERE nlink = 0")]

    def path(self, ino: int) -> str:
        """A path from the root of the mount, for people. Empty for the root."""
        parts: list[str] = []
        while ino != ROOT_INO and len(parts) < 4096:
            found = self.names(ino)
            if not found:
                parts.append(f"(deleted, inode {ino})")
                break
            ino, name = found[0]
            parts.append(name.decode(errors="backslashreplace"))
        return "/".join(reversed(parts))

    def store(self, bucket: int, files: Sequence[File], parent: int) -> list[int]:
        """Take over what the server says of files with a name in ``parent``.

        Returns the inode numbers of those whose content it knew otherwise. Raises OSError(EIO) when
        another file has the inode number of one.
        """
        known = self._versions([self.ino(file.id) for file in files])
        rows = []
        changed = []
        for file in files:
            ino = self.ino(file.id)
            file_id, complete, version, content = known.get(ino, (file.id, 0, file.version, None))
            if file_id != file.id:
                raise OSError(5, f"inode number {ino} belongs to two files: {file_id.hex()} and {file.id.hex()}")
            if version != file.version:
                changed.append(ino)
                content = None
            slices = file.manifest.slices if file.manifest and not file.manifest.indirect else None
            if slices is not None:
                content = pack_slices(slices)
            elif file.size == 0 or not stat.S_ISREG(file.mode):
                content = pack_slices([])
            self._times.pop(ino, None)
            self._known.pop(ino, None)
            row = Inode(
                ino, bucket, file.id, file.mode, file.uid, file.gid, file.rdev, file.nlink, file.size,
                holes_in(slices or ()), file.atime_ns, file.mtime_ns, file.ctime_ns, parent, complete, 0,
                file.version, file.target, pack_xattrs(file.xattrs),
            )  # fmt: skip
            rows.append((*row, content))
        self._db.executemany(_INSERT, rows)
        return changed

    def _versions(self, inos: list[int]) -> dict[int, tuple[bytes, int, bytes, bytes | None]]:
        """File id, completeness, version and content of the inodes that are known, by number."""
        found = {}
        for start in range(0, len(inos), VARIABLES):
            some = inos[start : start + VARIABLES]
            marks = ", ".join("?" * len(some))
            query = f"SELECT ino, file_id, complete, version, content FROM inode WHERE ino IN ({marks})"  # noqa: S608
            for ino, *rest in self._execute(query, some):
                found[ino] = tuple(rest)
        return found

    def mark_stale(self, inos: Iterable[int]) -> None:
        """The server has something newer of these."""
        self._known.clear()
        self._db.executemany("UPDATE inode SET stale = 1 WHERE ino = ?", [(ino,) for ino in inos])
