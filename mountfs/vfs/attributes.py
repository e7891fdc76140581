"""Attributes: mode, owner, times, size, extended attributes."""

from __future__ import annotations

import errno
import stat
import time
from typing import NamedTuple

import trio

from mountfs.local.inodes import Inode, pack_xattrs
from mountfs.local.journal import Field, Op
from mountfs.sync.engine import Engine
from mountfs.sync.errors import deadline, os_error
from mountfs.vfs.files import Files
from mountfs.vfs.tree import Tree, failure
from nodeserver.client import ClientError, Refused
from nodeserver.protocol.errors import Code
from nodeserver.protocol.names import XATTR_LIST_MAX, XATTR_MAX, XATTR_VALUE_MAX, xattrs_size

XATTR_NAME_MAX = 255
"""As Linux has it."""
XATTR_OF_VERSIONS = b"user.mountfs."
"""Versions have them, and a copy of a version shall not take them along."""
XATTR_DURABILITY = b"user.mountfs.durability"
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")

PERMISSIONS = 0o7777
TIME_MIN, TIME_MAX = -(1 << 63), (1 << 63) - 1
"""Nanoseconds since 1970 of the times that can be stored: the years 1677 to 2262."""


LET_GO = 0.5
"""Seconds that the kernel may take to forget a file."""
TIMES = {"atime", "mtime", "ctime"}


class Changes(NamedTuple):
    """What setattr shall change; None leaves it. Times in nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None


class Attributes:
    """Changes of attributes, each one local transaction."""

    def __init__(self, engine: Engine, tree: Tree, files: Files) -> None:
        self._context = engine.context
        self._db = engine.context.db
        self._inodes = engine.context.inodes
        self._journal = engine.context.journal
        self._tree = tree
        self._files = files

    async def set(self, ino: int, changes: Changes) -> Inode:
        """Apply changes; the size first, so that explicit times win."""
        inode = await self._tree.inode(ino)
        if not inode.bucket:
            raise failure(errno.EPERM)
        if changes.size is not None:
            if inode.is_dir:
                raise failure(errno.EISDIR)
            if not inode.is_file:
                raise failure(errno.EINVAL)
            await self._files.truncate(ino, changes.size)
            inode = await self._tree.inode(ino)
        values, mask = self._values(inode, changes)
        if values:
            if (
                mask == Field.MTIME
                and (Op.WRITE, ino) in self._journal.open
                and self._inodes.near(ino, values["mtime"])
            ):
                # The kernel tells the time of writes it collected. It goes along with the content.
                self._inodes.hold_times(ino, values["mtime"], values["ctime"])
                return await self._tree.inode(ino)
            with self._db.transaction():
                self._inodes.update(ino, **values)
                if mask:
                    last = inode.is_dir and bool(mask & Field.MTIME)
                    self._journal.add_attr(inode.bucket, ino, time.time_ns(), mask, last=last)
            if any(getattr(changes, name) not in (None, values.get(name)) for name in TIMES):
                await self._forgotten(ino)
        return await self._tree.inode(ino)

    def _values(self, inode: Inode, changes: Changes) -> tuple[dict[str, int], Field]:
        values: dict[str, int] = {}
        mask = Field(0)
        mode = changes.mode
        if changes.uid is not None or changes.gid is not None:
            mode = _without_setid(inode, mode)
        if mode is not None:
            values["mode"] = stat.S_IFMT(inode.mode) | mode & PERMISSIONS
            mask |= Field.MODE
        for name, field in (("uid", Field.UID), ("gid", Field.GID), ("atime", Field.ATIME), ("mtime", Field.MTIME)):
            value = getattr(changes, name)
            if value is not None:
                values[name] = value
                mask |= field
        if mask or changes.ctime is not None:
            values["ctime"] = changes.ctime if changes.ctime is not None else time.time_ns()
        for name in TIMES & values.keys():
            values[name] = min(max(values[name], TIME_MIN), TIME_MAX)
        return values, mask

    async def _forgotten(self, ino: int) -> None:
        """Return when the kernel has let go of a file: with write-back, it believes its own times of those it knows.

        Not longer than ``LET_GO``: somebody may hold the directory who waits for the caller.
        """
        for parent, name in self._inodes.names(ino):
            self._context.kernel.entry(parent, name)
        with trio.move_on_after(LET_GO):
            await self._context.kernel.settled()

    # Extended attributes

    async def get_xattr(self, ino: int, name: bytes) -> bytes:
        """A value. Raises OSError(ENODATA)."""
        _check_xattr_name(name)
        inode = await self._tree.inode(ino)
        if name == XATTR_DURABILITY and inode.is_file:
            return (await self._durability(inode)).encode()
        value = inode.xattr_map().get(name) if inode.xattrs else None
        if value is None:
            raise failure(errno.ENODATA)
        return value

    async def _durability(self, inode: Inode) -> str:
        """How safe a file is: ``journal`` while something of it is not sent; else of its worst chunk, the pieces there
        are of those there should be; ``metadata`` when it has no chunks. Raises OSError when no server says."""
        if self._context.pending(inode.ino):
            return "journal"
        chunks = await self._files.chunks(inode)
        if not chunks:
            return "metadata"
        bucket = self._context.buckets.by_id[inode.bucket]
        try:
            with deadline(self._context.config.metadata_deadline):
                found = await self._context.client.where(bucket.name, chunks)
        except ClientError as error:
            if isinstance(error, Refused) and error.code is Code.NO_ROUTE:
                raise failure(errno.ENODATA) from error  # a store of its own has them
            raise os_error(error) from error
        worst = min(found, key=lambda chunk: chunk.have - chunk.wanted)
        return f"{'ec ' if worst.scheme.startswith('erasure') else ''}{worst.have}/{worst.wanted}"

    async def list_xattrs(self, ino: int) -> list[bytes]:
        return list((await self._tree.inode(ino)).xattr_map())

    async def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set a value. Raises OSError: EOPNOTSUPP for namespaces of the system and ours, ERANGE, E2BIG, ENOSPC."""
        _check_xattr_name(name)
        if name.startswith(XATTR_OF_VERSIONS):
            raise failure(errno.EOPNOTSUPP)
        if len(value) > XATTR_VALUE_MAX:
            raise failure(errno.E2BIG)
        inode = await self._tree.inode(ino)
        xattrs = inode.xattr_map() | {name: value}
        if sum(len(key) + 1 for key in xattrs) > XATTR_LIST_MAX:
            raise failure(errno.ENOSPC)
        self._store_xattrs(inode, xattrs)

    async def remove_xattr(self, ino: int, name: bytes) -> None:
        """Remove a value. Raises OSError(ENODATA)."""
        _check_xattr_name(name)
        inode = await self._tree.inode(ino)
        xattrs = inode.xattr_map()
        if xattrs.pop(name, None) is None:
            raise failure(errno.ENODATA)
        self._store_xattrs(inode, xattrs)

    def _store_xattrs(self, inode: Inode, xattrs: dict[bytes, bytes]) -> None:
        if not inode.bucket:
            raise failure(errno.EPERM)
        if xattrs_size(xattrs) > XATTR_MAX:  # the server would refuse it, whenever it is sent
            raise failure(errno.ENOSPC)
        now = time.time_ns()
        with self._db.transaction():
            self._inodes.update(inode.ino, xattrs=pack_xattrs(xattrs), ctime=now)
            self._journal.add_attr(inode.bucket, inode.ino, now, Field.XATTRS, last=False)


def _check_xattr_name(name: bytes) -> None:
    """Only names of the namespaces that files can have. Raises OSError as Linux does."""
    if len(name) > XATTR_NAME_MAX:
        raise failure(errno.ERANGE)
    if not name.startswith(XATTR_NAMESPACES):
        raise failure(errno.EOPNOTSUPP)
    if name in XATTR_NAMESPACES:
        raise failure(errno.EINVAL)


def _without_setid(inode: Inode, mode: int | None) -> int | None:
    """A new owner must not inherit set-user-ID and set-group-ID of a program."""
    if mode is not None or not inode.is_file or not inode.mode & (stat.S_ISUID | stat.S_ISGID):
        return mode
    kept = inode.mode & PERMISSIONS & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if inode.mode & stat.S_IXGRP else kept
