"""Inodes and names in the local database. Plain queries; what they mean is decided in ``vfs``."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
MOST = 2**63 - 1
"""The largest number that the database and the kernel know."""
KNOWN = 4096
"""Rows kept in memory."""
NEAR_NS = 10_000_000
"""Times that differ by less need not be kept apart over a crash."""
TIMES_HELD = 1024
"""Times not yet written to their rows."""
_NUMBERS = {"inode": ("ino", "parent"), "dentry": ("parent", "ino"), "journal": ("ino", "parent", "ino2", "parent2")}
"""Columns with the inode numbers of directories."""
_INSERT = f"INSERT OR REPLACE INTO inode ({COLUMNS}, content) VALUES ({', '.join('?' * (len(Inode._fields) + 1))})"  # noqa: S608
_GET = f"SELECT {COLUMNS} FROM inode WHERE ino = ?"  # noqa: S608
_LIST = (
    f"SELECT dentry.name, {_JOINED} FROM dentry LEFT JOIN inode USING (ino)"  # noqa: S608
    " WHERE dentry.parent = ? AND dentry.name"
)
_PAGE = f"{_LIST} > ? ORDER BY dentry.name LIMIT ?"


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes | None:
    """As the column ``xattrs`` has it."""
    return msgspec.msgpack.encode(xattrs) if xattrs else None


def unpack_xattrs(packed: bytes | None) -> dict[bytes, bytes]:
    """The inverse of :func:`pack_xattrs`."""
    return msgspec.msgpack.decode(packed, type=dict[bytes, bytes]) if packed else {}


def holes_in(slices: Iterable[Slice]) -> int:
    """Bytes of a version that take no room."""
    return sum(piece.length for piece in slices if not piece.chunk)


class NumberTaken(OSError):
    """Two files have one inode number: the second is not taken."""

    def __init__(self, ino: int, one: bytes, other: bytes) -> None:
        super().__init__(errno.EIO, f"inode number {ino} belongs to two files: {one.hex()} and {other.hex()}")


class Inodes:
    """Queries on ``inode`` and ``dentry``."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._execute = db.execute
        self.root_file: bytes | None = None
        """The file that is the root of the mount, when a single bucket is mounted."""
        self._known: dict[int, Inode] = {}
        self._settle_aliases()
        self._aliases: dict[bytes, int] = {}
        """Inode numbers of directories that have others than by their ids."""
        db.after_rollback.append(self.forget)
        db.after_rollback.append(self._load_aliases)
        self._times: dict[int, tuple[int, int]] = {}
        """mtime and ctime by inode, newer than in the row: they change with every write and name, and are not
        worth a page of the log each. The journal's rows tell them well enough after a crash."""

    def ino(self, file_id: bytes) -> int:
        """The inode number of a file."""
        if file_id == self.root_file:
            return ROOT_INO
        return (self._aliases and self._aliases.get(file_id)) or ino_of(file_id)

    def become(self, ino: int, file_id: bytes) -> int:
        """A directory is the one that the server has under that id; inside the caller's transaction.

        Returns the number that this has here already, to be dropped by :meth:`drop_double`; 0 when it is not known.
        """
        double = self.ino(file_id)
        self.update(ino, file_id=file_id, stale=1, complete=0)
        self._execute("UPDATE inode SET parent = ? WHERE parent = ?", (ino, double))
        self._execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?)", (file_id, ino, ino_of(file_id)))
        self._aliases[file_id] = ino
        self._known.clear()
        return double if double != ino and self.get(double) is not None else 0

    def drop_double(self, double: int) -> None:
        """Forget a directory that has another number now; inside the caller's transaction."""
        self._execute("DELETE FROM dentry WHERE parent = ?", (double,))
        self.delete(double)

    def _load_aliases(self) -> None:
        self._aliases = dict(self._execute("SELECT file_id, ino FROM alias"))

    def _settle_aliases(self) -> None:
        """Give directories that became others the numbers of these: the kernel knows none yet."""
        if not self._execute("SELECT EXISTS (SELECT 1 FROM alias)").get:
            return
        with self._db.transaction():
            # What is not sent of one that was known by its own number is not among the names of the other.
            double = "SELECT ino FROM alias WHERE own IN (SELECT ino FROM inode)"
            self._execute(f"UPDATE inode SET complete = 0 WHERE ino IN ({double})")  # noqa: S608
            for table, columns in _NUMBERS.items():
                for column in columns:
                    own = f"SELECT own FROM alias WHERE alias.ino = {table}.{column}"  # noqa: S608
                    where = f"{column} IN (SELECT ino FROM alias)"  # noqa: S608
                    self._execute(f"UPDATE OR REPLACE {table} SET {column} = ({own}) WHERE {where}")  # noqa: S608
            self._execute("DELETE FROM alias")

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

    def targets(self, parent: int) -> list[tuple[bytes, int]]:
        """All names known in a directory with the inode numbers they have, UNKNOWN included."""
        return list(self._execute("SELECT name, ino FROM dentry WHERE parent = ? ORDER BY name", (parent,)))

    def page(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Inode | None]]:
        """Up to ``limit`` names after ``after`` in byte order, with their inodes; None: the server has to be asked."""
        rows = self._execute(_PAGE, (parent, after, limit)).fetchall()
        return [(row[0], self._joined(row)) for row in rows]

    def named(self, parent: int, names: Sequence[bytes]) -> dict[bytes, Inode | None]:
        """Those of up to ``VARIABLES`` names that there are, as :meth:`page`."""
        query = f"{_LIST} IN ({', '.join('?' * len(names))})"
        return {row[0]: self._joined(row) for row in self._execute(query, (parent, *names)).fetchall()}

    def _joined(self, row: Sequence[Any]) -> Inode | None:
        return None if row[1] is None else self._timed(Inode._make(row[1:]))

    def before(self, parent: int, name: bytes) -> bytes:
        """The last name before another, empty when that is the first."""
        query = "SELECT max(name) FROM dentry WHERE parent = ? AND name < ?"
        return self._execute(query, (parent, name)).get or b""

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """(directory, name) pairs that lead to an inode, in the directory its row knows of.

        Scans that directory: not for the hot path.
        """
        query = "SELECT parent, name FROM dentry WHERE parent = (SELECT parent FROM inode WHERE ino = ?1) AND ino = ?1"
        return list(self._execute(query, (ino,)))

    def unknown_name(self, parent: int) -> bytes | None:
        """The first name in a directory that the server has to be asked about."""
        query = "SELECT name FROM dentry LEFT JOIN inode USING (ino) WHERE dentry.parent = ? AND inode.ino IS NULL"
        row = self._execute(f"{query} ORDER BY name LIMIT 1", (parent,)).fetchone()
        return row[0] if row else None

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

        Returns the inode numbers of those whose content it knew otherwise. Raises NumberTaken.
        """
        known = self._versions([self.ino(file.id) for file in files])
        self._distinct(files, known)
        rows = []
        changed = []
        for file in files:
            ino = self.ino(file.id)
            _, complete, version, content = known.get(ino, (file.id, 0, file.version, None))
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
            numbers = (
                file.mode, file.uid, file.gid, file.rdev, file.nlink, file.size, holes_in(slices or ()),
                file.atime_ns, file.mtime_ns, file.ctime_ns,
            )  # fmt: skip
            if max(numbers) > MOST or min(numbers) < -MOST:  # nothing of ours; SQLite would refuse the whole listing
                numbers = tuple(max(-MOST, min(MOST, number)) for number in numbers)  # type: ignore[assignment]
            row = Inode(
                ino, bucket, file.id, *numbers, parent, complete, 0, file.version, file.target,
                pack_xattrs(file.xattrs),
            )  # fmt: skip
            rows.append((*row, content))
        self._db.executemany(_INSERT, rows)
        return changed

    def check(self, files: Sequence[File]) -> None:
        """Raises NumberTaken when another file has the inode number of one."""
        self._distinct(files, self._versions([self.ino(file.id) for file in files]))

    def _distinct(self, files: Sequence[File], known: Mapping[int, tuple[bytes, int, bytes, bytes | None]]) -> None:
        """As :meth:`check`, with the inodes that are ``known``; also among the files themselves."""
        ids = {ino: row[0] for ino, row in known.items()}
        for file in files:
            ino = self.ino(file.id)
            if (other := ids.setdefault(ino, file.id)) != file.id:
                raise NumberTaken(ino, other, file.id)

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

    def distrust(self, bucket: int, besides: Container[int] = ()) -> None:
        """All of a bucket has to be asked for again, ``besides`` some; inside the caller's transaction."""
        rows = self._execute("SELECT ino FROM inode WHERE bucket = ?", (bucket,)).fetchall()
        self._known.clear()
        stale = [row for row in rows if row[0] not in besides]
        self._db.executemany("UPDATE inode SET stale = 1, complete = 0 WHERE ino = ?", stale)

    def mark_stale(self, inos: Iterable[int]) -> None:
        """The server has something newer of these."""
        self._known.clear()
        self._db.executemany("UPDATE inode SET stale = 1 WHERE ino = ?", [(ino,) for ino in inos])
