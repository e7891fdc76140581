"""The namespace: names, directories, links. Every change is one local transaction.

Where a change needs to know what the server has (a name in a directory never listed), it asks
first; from the answer to the transaction there is no ``await``.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from mountfs.local.inodes import UNKNOWN, Inode
from mountfs.local.journal import Op
from mountfs.sync.engine import Engine
from mountfs.vfs.caller import Caller
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol.ids import ROOT_INO, new_id
from nodeserver.protocol.names import NAME_MAX

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
LINK_MAX = 65_000
EMPTY = pack_slices([])


def failure(code: int) -> OSError:
    """The error for an errno."""
    return OSError(code, os.strerror(code))


class Tree:
    """Names and the inodes behind them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context
        self._db = engine.context.db
        self._inodes = engine.context.inodes
        self._journal = engine.context.journal
        self._large: set[int] = set()
        """Directories too large to learn whole for a lookup."""
        self._orphans: set[int] = set(self._inodes.orphans())
        """Files without a name."""
        self._forgotten = set(self._orphans)
        """Those of them that no program can use any more."""

    # Finding

    async def inode(self, ino: int) -> Inode:
        """An inode as it is now. Raises OSError(ESTALE) when it is gone."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise failure(errno.ESTALE)
        if inode.stale and inode.bucket and not self._context.pending(ino):
            inode = await self._refresh(inode)
        return inode

    async def _refresh(self, inode: Inode) -> Inode:
        """Ask anew; while the server cannot be reached what we know has to do."""
        try:
            await self._engine.remote.refresh(inode)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        return self._inodes.get(inode.ino) or inode

    async def directory(self, ino: int) -> Inode:
        """As :meth:`inode`; raises OSError(ENOTDIR) for anything but a directory."""
        inode = await self.inode(ino)
        if not inode.is_dir:
            raise failure(errno.ENOTDIR)
        return inode

    async def child(self, directory: Inode, name: bytes) -> Inode | None:
        """What a name stands for, None when it is free. Raises OSError when nobody can say."""
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        target = self._inodes.target(directory.ino, name)
        if target is None and (directory.complete or (directory.ino, name) in self._journal.names):
            return None
        if not target:
            await self._ask(directory, name)
            target = self._inodes.target(directory.ino, name)
        return await self.inode(target) if target else None

    async def _ask(self, directory: Inode, name: bytes) -> None:
        """Learn a name, and the directory with it unless that is large."""
        remote = self._engine.remote
        if not directory.bucket:
            await self._engine.buckets_changed()
        elif self._inodes.target(directory.ino, name) == UNKNOWN or directory.ino in self._large:
            await remote.lookup(directory, name)
        elif not await remote.prime(directory):
            self._large.add(directory.ino)
            await remote.lookup(directory, name)

    async def existing(self, directory: Inode, name: bytes) -> Inode:
        """As :meth:`child`; raises OSError(ENOENT) for a free name."""
        inode = await self.child(directory, name)
        if inode is None:
            raise failure(errno.ENOENT)
        return inode

    # Creating

    async def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        """A new file of any kind; ``mode`` with type bits."""
        directory = await self.directory(parent)
        if not directory.bucket:
            raise failure(errno.EPERM)
        if await self.child(directory, name) is not None:
            raise failure(errno.EEXIST)
        self._check_alive(parent)
        now = time.time_ns()
        gid = caller.gid
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if is_dir else 0
        file_id = new_id()
        inode = Inode(
            self._inodes.ino(file_id), directory.bucket, file_id, mode, caller.uid, gid, rdev, 2 if is_dir else 1,
            len(target), 0, now, now, now, parent, 1, 0, b"", target, None,
        )  # fmt: skip
        with self._db.transaction():
            self._inodes.insert(inode, EMPTY)
            self._inodes.enter(parent, name, inode.ino)
            self._inodes.touch(parent, now, 1 if is_dir else 0)
            self._journal.add(directory.bucket, Op.CREATE, inode.ino, now, parent=parent, name=name)
        return inode

    def _check_alive(self, ino: int) -> None:
        """No new names in a directory that was removed."""
        inode = self._inodes.get(ino)
        if inode is None or not inode.nlink:
            raise failure(errno.ENOENT)

    async def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """A further name for a file."""
        inode, directory = await self.inode(ino), await self.directory(parent)
        if inode.bucket != directory.bucket:
            raise failure(errno.EXDEV)
        if await self.child(directory, name) is not None:
            raise failure(errno.EEXIST)
        self._check_alive(parent)
        if not inode.nlink:
            raise failure(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise failure(errno.EMLINK)
        now = time.time_ns()
        self._seal(ino)
        with self._db.transaction():
            self._inodes.enter(parent, name, ino)
            self._inodes.update(ino, nlink=inode.nlink + 1, ctime=now, parent=parent)
            self._inodes.touch(parent, now)
            self._journal.add(inode.bucket, Op.LINK, ino, now, parent=parent, name=name)
        return await self.inode(ino)

    # Removing

    async def unlink(self, parent: int, name: bytes) -> None:
        """End a name of a file."""
        directory = await self.directory(parent)
        inode = await self.existing(directory, name)
        if inode.is_dir:
            raise failure(errno.EISDIR)
        now = time.time_ns()
        with self._db.transaction():
            self._leave(parent, name, inode, now)
            self._inodes.touch(parent, now)
            self._journal.add(inode.bucket, Op.UNLINK, inode.ino, now, parent=parent, name=name)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """End a directory. Raises OSError(ENOTEMPTY)."""
        directory = await self.directory(parent)
        inode = await self.existing(directory, name)
        if not inode.is_dir:
            raise failure(errno.ENOTDIR)
        await self._require_empty(inode)
        now = time.time_ns()
        with self._db.transaction():
            self._leave(parent, name, inode, now)
            self._inodes.touch(parent, now, -1)
            self._journal.add(inode.bucket, Op.UNLINK, inode.ino, now, parent=parent, name=name)

    async def _require_empty(self, directory: Inode) -> None:
        if self._inodes.has_names(directory.ino) or not directory.complete:
            await self._engine.remote.complete(directory)
        if self._inodes.has_names(directory.ino):
            raise failure(errno.ENOTEMPTY)

    def _leave(self, parent: int, name: bytes, inode: Inode, now: int) -> None:
        """Take a name away and count it, inside the caller's transaction."""
        self._inodes.leave(parent, name)
        self._end(inode, now)

    def _end(self, inode: Inode, now: int) -> None:
        nlink = 0 if inode.is_dir else inode.nlink - 1
        self._inodes.update(inode.ino, nlink=nlink, ctime=now)
        if not nlink:
            self._orphans.add(inode.ino)

    def forget(self, inos: set[int]) -> None:
        """The kernel does not know these inodes any more."""
        self._forgotten |= inos & self._orphans
        self.sweep()

    def sweep(self) -> None:
        """Drop the files without a name that nobody uses and nothing is pending of."""
        for ino in list(self._forgotten):
            if ino not in self._context.staging.contents and not self._context.pending(ino):
                self._orphans.discard(ino)
                self._forgotten.discard(ino)
                self._context.growth.pop(ino, None)
                inode = self._inodes.get(ino)
                if inode is not None and not inode.nlink:
                    self._context.staging.forget(ino)
        self._context.cache.space.collect()

    # Moving

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Move a name, with the replace semantics of rename(2); ``flags`` as in renameat2(2)."""
        source_dir, target_dir = await self.directory(parent), await self.directory(new_parent)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise failure(errno.EINVAL)
        if source_dir.bucket != target_dir.bucket or not source_dir.bucket:
            raise failure(errno.EXDEV)
        source = await self.existing(source_dir, name)
        target = await self.child(target_dir, new_name)
        if target is not None and flags & RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if target is None and flags & RENAME_EXCHANGE:
            raise failure(errno.ENOENT)
        if target is not None and target.ino == source.ino:
            return
        self._check_loop(source, new_parent)
        if flags & RENAME_EXCHANGE:
            assert target is not None
            self._check_loop(target, parent)
            self._exchange(parent, name, source, new_parent, new_name, target)
            return
        if target is not None:
            await self._check_replace(source, target)
        self._check_alive(new_parent)
        now = time.time_ns()
        self._seal(source.ino)
        with self._db.transaction():
            self._inodes.leave(parent, name)
            self._inodes.enter(new_parent, new_name, source.ino)
            if target is not None:
                self._end(target, now)
            self._inodes.update(source.ino, ctime=now, parent=new_parent)
            moved = int(source.is_dir)
            self._inodes.touch(parent, now, -moved)
            self._inodes.touch(new_parent, now, moved - int(target is not None and target.is_dir))
            self._journal.add(
                source.bucket, Op.RENAME, source.ino, now, parent=parent, name=name,
                ino2=target.ino if target else 0, parent2=new_parent, name2=new_name,
            )  # fmt: skip

    async def _check_replace(self, source: Inode, target: Inode) -> None:
        if target.is_dir:
            if not source.is_dir:
                raise failure(errno.EISDIR)
            await self._require_empty(target)
        elif source.is_dir:
            raise failure(errno.ENOTDIR)

    def _check_loop(self, moved: Inode, into: int) -> None:
        """A directory cannot move below itself."""
        ino = into if moved.is_dir else 0
        while ino not in (0, ROOT_INO):
            if ino == moved.ino:
                raise failure(errno.EINVAL)
            above = self._inodes.get(ino)
            ino = above.parent if above else 0

    def _exchange(
        self, parent: int, name: bytes, source: Inode, new_parent: int, new_name: bytes, target: Inode
    ) -> None:
        now = time.time_ns()
        for inode in (source, target):
            self._seal(inode.ino)
        with self._db.transaction():
            self._inodes.enter(new_parent, new_name, source.ino)
            self._inodes.enter(parent, name, target.ino)
            self._inodes.update(source.ino, ctime=now, parent=new_parent)
            self._inodes.update(target.ino, ctime=now, parent=parent)
            moved = int(source.is_dir) - int(target.is_dir)
            self._inodes.touch(parent, now, -moved)
            self._inodes.touch(new_parent, now, moved)
            self._journal.add(
                source.bucket, Op.EXCHANGE, source.ino, now, parent=parent, name=name,
                ino2=target.ino, parent2=new_parent, name2=new_name,
            )  # fmt: skip

    def _seal(self, ino: int) -> None:
        """Content comes before the name that makes it visible: what was written goes up first."""
        content = self._context.staging.contents.get(ino)
        if content is not None:
            self._context.staging.seal(content)
