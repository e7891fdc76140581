"""FUSE requests to calls of the file system, and its answers to FUSE's."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from functools import partial

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

from mountfs.fuse.answers import FOREVER, entry_of, statvfs_of
from mountfs.fuse.guard import guard
from mountfs.local.inodes import Inode
from mountfs.vfs.attributes import Changes
from mountfs.vfs.caller import Caller
from mountfs.vfs.filesystem import FileSystem
from mountfs.vfs.history.nodes import VIRTUAL

CAPABILITY = b"security.capability"
"""The kernel asks for it at every write; there never is one."""


class Adapter(pyfuse3.Operations):
    """The handlers pyfuse3 calls."""

    supports_dot_lookup = True

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self._fs = fs
        self._options = fs.options
        self._past = fs.history
        self._attributes = partial(entry_of, fs.options, fs.tree.removals)
        self.enable_writeback_cache = fs.options.writeback

    def _live(self, inode: Inode) -> EntryAttributes:
        """Of a live file: what changes elsewhere is invalidated, as long as it is heard of."""
        trust = self._trust(inode.bucket)
        return self._attributes(inode, trust, trust)

    def _trust(self, bucket: int) -> float:
        return min(FOREVER, self._fs.engine.context.freshness.left(bucket))

    def failed(self, message: str) -> None:
        self._fs.engine.context.report(0, message)

    def full(self) -> None:
        self._fs.explain()

    def _changes(self, directory: int, name: bytes, code: int = errno.EROFS) -> None:
        """A name is about to begin or end. Raises FUSEError: EROFS in the past, ``code`` for the name of the past."""
        if directory >= VIRTUAL:
            raise pyfuse3.FUSEError(errno.EROFS)
        if name == self._past.name and self._past.reserves(directory, name):
            raise pyfuse3.FUSEError(code)

    # Names

    @guard
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if parent_inode >= VIRTUAL or name == self._past.name:
            shown = await self._past.lookup(parent_inode, name)
            if shown is not None:
                return self._attributes(*shown)
        try:
            return self._live(await self._fs.lookup(parent_inode, name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        missing = EntryAttributes()
        missing.st_ino = InodeT(0)
        above = self._fs.engine.context.inodes.get(parent_inode)
        missing.entry_timeout = self._trust(above.bucket) if above and above.bucket else 1.0
        return missing

    @guard
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        live = set()
        for ino, lookups in inode_list:
            if ino < VIRTUAL:
                live.add(ino)
            else:
                self._past.nodes.forget(ino, lookups)
        if live:
            self._fs.tree.forget(live)

    @guard
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._changes(parent_inode, name, errno.EEXIST)
        inode = await self._fs.tree.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), rdev=rdev)
        return self._live(inode)

    @guard
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        self._changes(parent_inode, name, errno.EEXIST)
        return self._live(await self._fs.mkdir(parent_inode, name, mode, Caller(ctx.uid, ctx.gid)))

    @guard
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._changes(parent_inode, name, errno.EEXIST)
        mode = stat.S_IFLNK | 0o777
        inode = await self._fs.tree.create(parent_inode, name, mode, Caller(ctx.uid, ctx.gid), target=target)
        return self._live(inode)

    @guard
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._changes(max(inode, new_parent_inode), b"")
        self._changes(new_parent_inode, new_name, errno.EEXIST)
        return self._live(await self._fs.tree.link(inode, new_parent_inode, new_name))

    @guard
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._changes(parent_inode, name)
        await self._fs.tree.unlink(parent_inode, name)

    @guard
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._changes(parent_inode, name)
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
        self._changes(parent_inode_old, name_old)
        self._changes(parent_inode_new, name_new, errno.EEXIST)
        caller = Caller(ctx.uid, ctx.gid)
        await self._fs.tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, caller)

    @guard
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        if inode >= VIRTUAL:
            return FileNameT(await self._past.readlink(inode))
        return FileNameT(await self._fs.readlink(inode))

    # Attributes

    @guard
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if inode >= VIRTUAL:
            return self._attributes(*await self._past.attributes(inode))
        return self._live(await self._fs.attributes_of(inode))

    @guard
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._changes(inode, b"")
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._live(await self._fs.attributes.set(inode, changes))

    @guard
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        if name == CAPABILITY:
            raise pyfuse3.FUSEError(errno.ENODATA)
        if inode >= VIRTUAL:
            return await self._past.xattr(inode, name)
        return await self._fs.attributes.get_xattr(inode, name)

    @guard
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        source = self._past.xattr_names if inode >= VIRTUAL else self._fs.attributes.list_xattrs
        return [XAttrNameT(name) for name in await source(inode)]

    @guard
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        self._changes(inode, b"")
        await self._fs.attributes.set_xattr(inode, name, value)

    @guard
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        if not self._options.xattr:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        self._changes(inode, b"")
        await self._fs.attributes.remove_xattr(inode, name)

    @guard
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statvfs_of(self._fs.space())

    # Files

    @guard
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._changes(parent_inode, name, errno.EEXIST)
        handle, inode = await self._fs.create(parent_inode, name, mode, flags, Caller(ctx.uid, ctx.gid))
        return self._opened(handle, direct=self._fs.files.direct(handle)), self._live(inode)

    @guard
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if inode >= VIRTUAL:
            return self._opened(await self._past.open(inode, flags))
        handle = await self._fs.files.open(inode, flags)
        return self._opened(handle, direct=self._fs.files.direct(handle))

    def _opened(self, handle: int, *, direct: bool = False) -> FileInfo:
        return FileInfo(fh=FileHandleT(handle), keep_cache=not direct, direct_io=direct)

    @guard
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        if fh >= VIRTUAL:
            return await self._past.read(fh, off, size)
        return await self._fs.files.read(fh, off, size)

    @guard
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.files.write(fh, off, buf)

    @guard
    async def flush(self, fh: FileHandleT) -> None:
        if self._options.close == "local":
            # Every write was in a file of ours when it was answered. The kernel never asks again.
            raise pyfuse3.FUSEError(errno.ENOSYS)
        if fh < VIRTUAL:
            await self._fs.files.flush(fh)

    @guard
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < VIRTUAL:
            await self._fs.files.sync(fh)

    @guard
    async def release(self, fh: FileHandleT) -> None:
        if fh >= VIRTUAL:
            self._past.release(fh)
        else:
            await self._fs.release(fh)

    # Directories

    @guard
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        if inode >= VIRTUAL:
            return FileHandleT(self._past.open_directory(inode))
        return FileHandleT(await self._fs.directories.open(inode))

    @guard
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if fh >= VIRTUAL:
            await self._read_past(fh, start_id, token)
            return
        hidden = self._past.name
        for name, inode, after in await self._fs.directories.read(fh, start_id):
            if name == hidden and self._past.reserves(self._fs.directories.ino(fh), name):
                continue
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._live(inode), after):
                break

    async def _read_past(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        for name, node, shown, after in await self._past.entries(fh, start_id):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._attributes(*shown), after):
                break
            if node is not None:
                self._past.nodes.told(node)

    @guard
    async def releasedir(self, fh: FileHandleT) -> None:
        if fh >= VIRTUAL:
            self._past.close_directory(fh)
        else:
            self._fs.directories.close(fh)

    @guard
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < VIRTUAL:
            await self._fs.sync_directory(fh)
