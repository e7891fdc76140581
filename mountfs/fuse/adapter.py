"""FUSE requests to calls of the file system, and its answers to FUSE's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from mountfs.fuse.guard import guard
from mountfs.local.inodes import Inode
from mountfs.vfs.attributes import Changes
from mountfs.vfs.caller import Caller
from mountfs.vfs.filesystem import BLOCK, FileSystem
from nodeserver.protocol.ids import ROOT_INO

FOREVER = 86_400.0
"""Seconds the kernel may trust names and attributes: what changes elsewhere is invalidated."""
CAPABILITY = b"security.capability"
"""The kernel asks for it at every write; there never is one."""


class Adapter(pyfuse3.Operations):
    """The handlers pyfuse3 calls."""

    supports_dot_lookup = True

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self._fs = fs
        self._options = fs.options
        self.enable_writeback_cache = fs.options.writeback

    def failed(self, message: str) -> None:
        self._fs.engine.context.report(0, message)

    def _attributes(self, inode: Inode) -> EntryAttributes:
        options = self._options
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode.ino)
        mode = inode.mode if options.umask is None else inode.mode & ~options.umask
        entry.st_mode = ModeT(mode)
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid if options.uid is None else options.uid
        entry.st_gid = inode.gid if options.gid is None else options.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK
        entry.st_blocks = (inode.size - inode.holes + 511) >> 9
        entry.st_atime_ns = inode.atime
        entry.st_mtime_ns = inode.mtime
        entry.st_ctime_ns = inode.ctime
        entry.entry_timeout = FOREVER
        entry.attr_timeout = FOREVER
        return entry

    # Names

    @guard
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._attributes(await self._fs.lookup(parent_inode, name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        missing = EntryAttributes()
        missing.st_ino = InodeT(0)
        missing.entry_timeout = FOREVER if parent_inode != ROOT_INO else 1.0
        return missing

    @guard
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self._fs.tree.forget({ino for ino, _ in inode_list})

    @guard
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        inode = await self._fs.tree.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), rdev=rdev)
        return self._attributes(inode)

    @guard
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._fs.mkdir(parent_inode, name, mode, Caller(ctx.uid, ctx.gid)))

    @guard
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        inode = await self._fs.tree.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), target=target)
        return self._attributes(inode)

    @guard
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._attributes(await self._fs.tree.link(inode, new_parent_inode, new_name))

    @guard
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.tree.unlink(parent_inode, name)

    @guard
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name)

    @guard
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        await self._fs.tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @guard
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(await self._fs.readlink(inode))

    # Attributes

    @guard
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(await self._fs.tree.inode(inode))

    @guard
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._attributes(await self._fs.attributes.set(inode, changes))

    @guard
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        if name == CAPABILITY:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return await self._fs.attributes.get_xattr(inode, name)

    @guard
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        return [XAttrNameT(name) for name in await self._fs.attributes.list_xattrs(inode)]

    @guard
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._fs.attributes.set_xattr(inode, name, value)

    @guard
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._fs.attributes.remove_xattr(inode, name)

    @guard
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = self._fs.space()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK
        data.f_blocks = space.total // BLOCK
        data.f_bfree = data.f_bavail = space.free // BLOCK
        data.f_files = space.files + space.free // BLOCK
        data.f_ffree = data.f_favail = space.free // BLOCK
        data.f_namemax = space.name_max
        return data

    # Files

    @guard
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, inode = await self._fs.create(parent_inode, name, mode, flags, Caller(ctx.uid, ctx.gid))
        return self._opened(handle), self._attributes(inode)

    @guard
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return self._opened(await self._fs.files.open(inode, flags))

    def _opened(self, handle: int) -> FileInfo:
        return FileInfo(fh=FileHandleT(handle), keep_cache=True)

    @guard
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return await self._fs.files.read(fh, off, size)

    @guard
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.files.write(fh, off, buf)

    @guard
    async def flush(self, fh: FileHandleT) -> None:
        if self._options.close == "local":
            # Every write was in a file of ours when it was answered. The kernel never asks again.
            raise pyfuse3.FUSEError(errno.ENOSYS)
        await self._fs.files.flush(fh)

    @guard
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.files.sync(fh)

    @guard
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.release(fh)

    # Directories

    @guard
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(await self._fs.directories.open(inode))

    @guard
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for name, inode, after in await self._fs.directories.read(fh, start_id):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(inode), after):
                break

    @guard
    async def releasedir(self, fh: FileHandleT) -> None:
        self._fs.directories.close(fh)

    @guard
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.sync_directory(fh)


def mount_options(fs: FileSystem, source: str) -> set[str]:
    """What libfuse is told at mount."""
    options = {f"fsname={source}", "subtype=mountfs", "default_permissions"}
    if fs.options.allow_other:
        options.add("allow_other")
    if fs.options.noexec:
        options.add("noexec")
    if fs.options.ro:
        options.add("ro")
    if os.geteuid() == 0:
        options |= {"nodev" if fs.options.nodev else "dev", "nosuid" if fs.options.nosuid else "suid"}
    return options
