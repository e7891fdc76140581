"""What Linux does above a file system, in Python, on ``mountfs.vfs`` instead of FUSE.

`Walker` resolves paths and makes the checks the kernel makes before it asks a file system, so that programs, here
the model test, get the same errnos.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TypeVar

from mountfs.local.inodes import Inode
from mountfs.vfs.attributes import Changes
from mountfs.vfs.caller import Caller
from mountfs.vfs.filesystem import FileSystem
from tests.mount.posix import RENAME_EXCHANGE, RENAME_NOREPLACE

MAX_LINKS = 40
UMASK = 0o022
ROOT_USER = Caller(0, 0)

T = TypeVar("T")


def error(number: int) -> OSError:
    """An OSError for an errno."""
    return OSError(number, os.strerror(number))


class Place(NamedTuple):
    """Where a path leads."""

    parent: int
    name: bytes
    """Empty for the root of the walk."""
    inode: Inode | None


class Opened(NamedTuple):
    """An open file."""

    ino: int
    flags: int
    handle: int = -1
    """Of the file system; -1 for what the kernel reads and writes itself."""
    real: int = -1
    """A descriptor of a fifo of the same kind, which does what the kernel does with fifos."""


class Walker:
    """System calls on paths below a directory, as a process of root makes them."""

    def __init__(self, fs: FileSystem, root: int) -> None:
        self._fs = fs
        self._root = root
        self._fifos = Path(tempfile.mkdtemp())
        self._opened: dict[int, Opened] = {}
        self._last = 0

    async def _find(self, path: bytes, *, follow: bool) -> Place:
        """Raises OSError, but for a last component that does not exist."""
        return await self._step(self._root, [part for part in path.split(b"/") if part], follow, 0)

    async def _step(self, at: int, parts: list[bytes], follow: bool, links: int) -> Place:
        place = Place(at, b"", await self._fs.tree.inode(at))
        above: dict[int, int] = {}
        while parts:
            part, *parts = parts
            directory = place.inode
            if directory is None:
                raise error(errno.ENOENT)
            if not directory.is_dir:
                raise error(errno.ENOTDIR)
            if part == b".." and directory.ino == self._root:
                raise error(errno.ENOENT)  # the model's links do not leave its directory
            try:
                inode: Inode | None = await self._fs.lookup(directory.ino, part)
            except FileNotFoundError:
                inode = None
            place = Place(directory.ino, part, inode)
            if inode is not None and stat.S_ISLNK(inode.mode) and (parts or follow):
                if links == MAX_LINKS:
                    raise error(errno.ELOOP)
                target = [piece for piece in (await self._fs.readlink(inode.ino)).split(b"/") if piece]
                return await self._step(directory.ino, target + parts, follow, links + 1)
            above[directory.ino] = place.parent
        return place

    async def _existing(self, path: bytes, *, follow: bool) -> Inode:
        inode = (await self._find(path, follow=follow)).inode
        if inode is None:
            raise error(errno.ENOENT)
        return await self._fs.tree.inode(inode.ino)

    async def _free(self, path: bytes) -> Place:
        """Where a new name is to be. Raises OSError(EEXIST)."""
        place = await self._find(path, follow=False)
        if place.inode is not None:
            raise error(errno.EEXIST)
        return place

    # Open files

    async def open(self, path: bytes, flags: int, mode: int) -> int:
        if flags & os.O_CREAT and flags & os.O_DIRECTORY:
            raise error(errno.EINVAL)
        exclusive = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        place = await self._find(path, follow=not (exclusive or flags & os.O_NOFOLLOW))
        if place.inode is None:
            if not flags & os.O_CREAT:
                raise error(errno.ENOENT)
            mode = mode & 0o7777 & ~UMASK
            handle, inode = await self._fs.create(place.parent, place.name, mode, flags, ROOT_USER)
        else:
            inode = place.inode
            self._may_open(inode, flags, exclusive)
            if inode.is_dir:
                return self._add(Opened(inode.ino, flags))
            if not inode.is_file:
                return self._add(Opened(inode.ino, flags, real=self._open_fifo(inode, flags)))
            handle = await self._fs.files.open(inode.ino, flags & ~os.O_TRUNC)
            if flags & os.O_TRUNC:
                await self._fs.attributes.set(inode.ino, Changes(size=0, mtime=time.time_ns()))
        return self._add(Opened(inode.ino, flags, handle))

    def _open_fifo(self, inode: Inode, flags: int) -> int:
        if stat.S_ISSOCK(inode.mode):
            raise error(errno.ENXIO)
        fifo = self._fifos / str(inode.ino)
        if not fifo.exists():
            os.mkfifo(fifo)
        return os.open(fifo, flags | os.O_NONBLOCK)

    def _may_open(self, inode: Inode, flags: int, exclusive: bool) -> None:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if exclusive:
            raise error(errno.EEXIST)
        if flags & os.O_DIRECTORY and not inode.is_dir:
            raise error(errno.ENOTDIR)
        if stat.S_ISLNK(inode.mode):
            raise error(errno.ELOOP)
        if inode.is_dir and (writes or flags & (os.O_CREAT | os.O_TRUNC)):
            raise error(errno.EISDIR)

    def _add(self, opened: Opened) -> int:
        self._last += 1
        self._opened[self._last] = opened
        return self._last

    async def close(self, handle: int) -> None:
        opened = self._opened.pop(handle)
        if opened.handle >= 0:
            await self._fs.release(opened.handle)
        elif opened.real >= 0:
            os.close(opened.real)

    async def pread(self, handle: int, size: int, offset: int) -> bytes:
        opened = self._opened[handle]
        if opened.real >= 0:
            return os.pread(opened.real, size, offset)
        if opened.flags & os.O_ACCMODE == os.O_WRONLY:
            raise error(errno.EBADF)
        if opened.handle < 0:
            raise error(errno.EISDIR)
        return await self._fs.files.read(opened.handle, offset, size)

    async def write(self, handle: int, data: bytes, offset: int) -> int:
        opened = self._opened[handle]
        if opened.real >= 0:
            return os.pwrite(opened.real, data, offset)
        if opened.flags & os.O_ACCMODE == os.O_RDONLY:
            raise error(errno.EBADF)
        if not data:
            return 0
        if opened.flags & os.O_APPEND:
            offset = (await self._fs.tree.inode(opened.ino)).size
        return await self._fs.files.write(opened.handle, offset, data)

    async def ftruncate(self, handle: int, size: int) -> None:
        opened = self._opened[handle]
        if opened.handle < 0 or opened.flags & os.O_ACCMODE == os.O_RDONLY:
            raise error(errno.EINVAL)
        await self._fs.attributes.set(opened.ino, Changes(size=size, mtime=time.time_ns()))

    async def fsync(self, handle: int) -> None:
        opened = self._opened[handle]
        if opened.real >= 0:
            os.fsync(opened.real)
        elif opened.handle >= 0:
            await self._fs.files.sync(opened.handle)

    async def fstat(self, handle: int) -> os.stat_result:
        return _stat(await self._fs.tree.inode(self._opened[handle].ino))

    def end(self) -> None:
        """Clean up."""
        shutil.rmtree(self._fifos)

    # Names

    async def lstat(self, path: bytes) -> os.stat_result:
        return _stat(await self._existing(path, follow=False))

    async def listdir(self, path: bytes) -> list[bytes]:
        inode = await self._existing(path, follow=True)
        if not inode.is_dir:
            raise error(errno.ENOTDIR)
        cursor = await self._fs.directories.open(inode.ino)
        try:
            names: list[bytes] = []
            position = 0
            while batch := list(await self._fs.directories.read(cursor, position)):
                names += [name for name, _, _ in batch if name not in (b".", b"..")]
                position = batch[-1][2]
            return names
        finally:
            self._fs.directories.close(cursor)

    async def mkdir(self, path: bytes, mode: int) -> None:
        place = await self._free(path)
        await self._fs.mkdir(place.parent, place.name, mode & 0o1777 & ~UMASK, ROOT_USER)

    async def mknod(self, path: bytes, mode: int) -> None:
        place = await self._free(path)
        await self._fs.tree.create(place.parent, place.name, mode & ~UMASK, ROOT_USER)

    async def symlink(self, target: bytes, path: bytes) -> None:
        place = await self._free(path)
        await self._fs.tree.create(place.parent, place.name, stat.S_IFLNK | 0o777, ROOT_USER, target=target)

    async def readlink(self, path: bytes) -> bytes:
        inode = await self._existing(path, follow=False)
        if not stat.S_ISLNK(inode.mode):
            raise error(errno.EINVAL)
        return await self._fs.readlink(inode.ino)

    async def link(self, source: bytes, target: bytes) -> None:
        inode = await self._existing(source, follow=False)
        place = await self._free(target)
        if inode.is_dir:
            raise error(errno.EPERM)
        await self._fs.tree.link(inode.ino, place.parent, place.name)

    async def unlink(self, path: bytes) -> None:
        place = await self._find(path, follow=False)
        if place.inode is not None and place.inode.is_dir:
            raise error(errno.EISDIR)
        await self._fs.tree.unlink(place.parent, place.name)

    async def rmdir(self, path: bytes) -> None:
        place = await self._find(path, follow=False)
        if place.inode is not None and not place.inode.is_dir:
            raise error(errno.ENOTDIR)
        await self._fs.rmdir(place.parent, place.name)

    async def rename(self, source: bytes, target: bytes, flags: int) -> None:
        old, new = await self._find(source, follow=False), await self._find(target, follow=False)
        if old.inode is None:
            raise error(errno.ENOENT)
        if flags & RENAME_NOREPLACE and new.inode is not None:
            raise error(errno.EEXIST)
        if flags & RENAME_EXCHANGE and new.inode is None:
            raise error(errno.ENOENT)
        if await self._contains(old.inode, new.parent):
            raise error(errno.EINVAL)
        if new.inode is not None:
            if await self._contains(new.inode, old.parent):
                raise error(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
            self._may_replace(old.inode, new.inode, flags)
        await self._fs.tree.rename(old.parent, old.name, new.parent, new.name, flags, ROOT_USER)

    def _may_replace(self, old: Inode, new: Inode, flags: int) -> None:
        if flags & RENAME_EXCHANGE or old.ino == new.ino:
            return
        if old.is_dir and not new.is_dir:
            raise error(errno.ENOTDIR)
        if new.is_dir and not old.is_dir:
            raise error(errno.EISDIR)

    async def _contains(self, directory: Inode, ino: int) -> bool:
        """Whether ``ino``, a directory, is this one or below it."""
        while directory.is_dir and ino != self._root:
            if ino == directory.ino:
                return True
            ino = (await self._fs.lookup(ino, b"..")).ino
        return False

    # Attributes

    async def truncate(self, path: bytes, size: int) -> None:
        inode = await self._existing(path, follow=True)
        if inode.is_dir:
            raise error(errno.EISDIR)
        if not inode.is_file:
            raise error(errno.EINVAL)
        await self._fs.attributes.set(inode.ino, Changes(size=size))

    async def chmod(self, path: bytes, mode: int) -> None:
        inode = await self._existing(path, follow=True)
        await self._fs.attributes.set(inode.ino, Changes(mode=mode))

    async def chown(self, path: bytes, uid: int, gid: int) -> None:
        inode = await self._existing(path, follow=False)
        mode = None
        if not inode.is_dir and inode.mode & stat.S_ISUID:
            mode = inode.mode & ~stat.S_ISUID
        if not inode.is_dir and inode.mode & stat.S_ISGID and inode.mode & stat.S_IXGRP:
            mode = (mode or inode.mode) & ~stat.S_ISGID
        owner, group = (None if value < 0 else value for value in (uid, gid))
        await self._fs.attributes.set(inode.ino, Changes(mode=mode, uid=owner, gid=group))

    async def utime(self, path: bytes, times: tuple[int, int] | None) -> None:
        times = times or (time.time_ns(), time.time_ns())
        inode = await self._existing(path, follow=False)
        await self._fs.attributes.set(inode.ino, Changes(atime=times[0], mtime=times[1]))

    async def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        inode = await self._existing(path, follow=False)
        self._may_set(inode, name)
        has = name in await self._fs.attributes.list_xattrs(inode.ino)
        if has and flags & os.XATTR_CREATE:
            raise error(errno.EEXIST)
        if not has and flags & os.XATTR_REPLACE:
            raise error(errno.ENODATA)
        await self._fs.attributes.set_xattr(inode.ino, name, value)

    async def removexattr(self, path: bytes, name: bytes) -> None:
        inode = await self._existing(path, follow=False)
        self._may_set(inode, name)
        await self._fs.attributes.remove_xattr(inode.ino, name)

    def _may_set(self, inode: Inode, name: bytes) -> None:
        space, _, rest = name.partition(b".")
        if space == b"user" and not (inode.is_file or inode.is_dir):
            raise error(errno.EPERM)
        if space not in (b"user", b"trusted"):
            raise error(errno.EOPNOTSUPP)
        if not rest:
            raise error(errno.EINVAL)

    async def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        inode = await self._existing(path, follow=False)
        names = await self._fs.attributes.list_xattrs(inode.ino)
        return {name: await self._fs.attributes.get_xattr(inode.ino, name) for name in names}


def _stat(inode: Inode) -> os.stat_result:
    seconds = [time // 10**9 for time in (inode.atime, inode.mtime, inode.ctime)]
    values = [inode.mode, inode.ino, 0, inode.nlink, inode.uid, inode.gid, inode.size, *seconds]
    # the positions behind the whole seconds: times as floats, then as nanoseconds
    return os.stat_result((*values, *map(float, seconds), inode.atime, inode.mtime, inode.ctime))
