"""Inodes and names in the local database. Plain queries; what they mean is decided in ``vfs``."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from mountfs.local.database import Database
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol.ids import ROOT_INO, ino_of
from nodeserver.protocol.wire import File

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
    atime: int
    mtime: int
    ctime: int
    parent: int
    complete: int
    stale: int
    dirty: int
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
_INSERT = f"INSERT OR REPLACE INTO inode ({COLUMNS}, content) VALUES ({', '.join('?' * (len(Inode._fields) + 1))})"  # noqa: S608
_GET = f"SELECT {COLUMNS} FROM inode WHERE ino = ?"  # noqa: S608
_LOOKUP = f"SELECT {_JOINED} FROM dentry JOIN inode USING (ino) WHERE dentry.parent = ? AND dentry.name = ?"  # noqa: S608
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


class Inodes:
    """Queries on ``inode`` and ``dentry``."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._execute = db.execute
        self.root_file: bytes | None = None
        """The file that is the root of the mount, when a single bucket is mounted."""

    def ino(self, file_id: bytes) -> int:
        """The inode number of a file."""
        return ROOT_INO if file_id == self.root_file else ino_of(file_id)

    def get(self, ino: int) -> Inode | None:
        row = self._execute(_GET, (ino,)).fetchone()
        return Inode._make(row) if row else None

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode behind a name; None when the name is not known (or known to be UNKNOWN)."""
        row = self._execute(_LOOKUP, (parent, name)).fetchone()
        return Inode._make(row) if row else None

    def target(self, parent: int, name: bytes) -> int | None:
        """The inode number a name has, UNKNOWN included; None without such a name."""
        row = self._execute("SELECT ino FROM dentry WHERE parent = ? AND name = ?", (parent, name)).fetchone()
        return row[0] if row else None

    def page(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """Up to ``limit`` names after ``after`` in byte order, with their inodes."""
        rows = self._execute(_LIST, (parent, after, limit)).fetchall()
        return [(row[0], Inode._make(row[1:])) for row in rows]

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """(directory, name) pairs that lead to an inode."""
        return list(self._execute("SELECT parent, name FROM dentry WHERE ino = ?", (ino,)))

    def unknown_names(self, parent: int, limit: int) -> list[bytes]:
        """Names in a directory that the server has to be asked about."""
        rows = self._execute("SELECT name FROM dentry WHERE parent = ? AND ino = 0 LIMIT ?", (parent, limit))
        return [row[0] for row in rows]

    def all_names(self, parent: int) -> Iterator[bytes]:
        for (name,) in self._execute("SELECT name FROM dentry WHERE parent = ?", (parent,)).fetchall():
            yield name

    def has_names(self, parent: int) -> bool:
        """Whether a directory has any name in it."""
        return self._execute("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", (parent,)).fetchone() is not None

    def insert(self, inode: Inode, content: bytes | None) -> None:
        """Write a whole row."""
        self._execute(_INSERT, (*inode, content))

    def update(self, ino: int, **values: int | bytes | None) -> None:
        """Set the columns named."""
        columns = ", ".join(f"{column} = ?" for column in values)
        self._execute(f"UPDATE inode SET {columns} WHERE ino = ?", (*values.values(), ino))  # noqa: S608

    def touch(self, ino: int, time_ns: int, links: int = 0) -> None:
        """A directory's names changed: mtime and ctime, and ``links`` sub-directories more."""
        self._execute(
            "UPDATE inode SET mtime = ?, ctime = ?, nlink = nlink + ? WHERE ino = ?", (time_ns, time_ns, links, ino)
        )

    def delete(self, ino: int) -> None:
        self._execute("DELETE FROM inode WHERE ino = ?", (ino,))

    def enter(self, parent: int, name: bytes, ino: int) -> None:
        """Give an inode a name, whatever the name stood for before."""
        self._execute("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", (parent, name, ino))

    def leave(self, parent: int, name: bytes) -> None:
        self._execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))

    def content(self, ino: int) -> bytes | None:
        """The packed slices of the file's version, None when they have to be asked for."""
        row = self._execute("SELECT content FROM inode WHERE ino = ?", (ino,)).fetchone()
        return row[0] if row else None

    def orphans(self) -> list[int]:
        """Files without a name."""
        return [row[0] for row in self._execute("SELECT ino FROM inode WHERE nlink = 0")]

    def path(self, ino: int) -> str:
        """A path from the root of the mount, for people. Empty for the root."""
        parts: list[str] = []
        while ino != ROOT_INO and len(parts) < 4096:
            found = self._execute("SELECT parent, name FROM dentry WHERE ino = ? LIMIT 1", (ino,)).fetchone()
            if found is None:
                parts.append(f"(deleted, inode {ino})")
                break
            ino, name = found
            parts.append(name.decode(errors="backslashreplace"))
        return "/".join(reversed(parts))

    def store(self, bucket: int, file: File, parent: int) -> int:
        """Take over what the server says of a file; returns its inode number.

        Raises OSError(EIO) when another file has the same inode number.
        """
        ino = self.ino(file.id)
        known = self._execute("SELECT file_id, complete, version, content FROM inode WHERE ino = ?", (ino,)).fetchone()
        complete, content = 0, None
        if known:
            if known[0] != file.id:
                raise OSError(5, f"inode number {ino} belongs to two files: {known[0].hex()} and {file.id.hex()}")
            complete = known[1]
            if known[2] == file.version:
                content = known[3]
        if file.manifest is not None and not file.manifest.indirect:
            content = pack_slices(file.manifest.slices)
        elif file.size == 0 or not stat.S_ISREG(file.mode):
            content = pack_slices([])
        is_dir = stat.S_ISDIR(file.mode)
        row = Inode(
            ino, bucket, file.id, file.mode, file.uid, file.gid, file.rdev, file.nlink, file.size,
            file.atime_ns, file.mtime_ns, file.ctime_ns, parent if is_dir else 0, complete, 0, 0,
            file.version, file.target, pack_xattrs(file.xattrs),
        )  # fmt: skip
        self._execute(_INSERT, (*row, content))
        return ino

    def mark_stale(self, inos: Iterable[int]) -> None:
        self._db.executemany("UPDATE inode SET stale = 1 WHERE ino = ?", [(ino,) for ino in inos])
