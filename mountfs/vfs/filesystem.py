"""The file system: everything a program can ask of a mount, without FUSE.

Inode numbers are those of the mount; errors are OSError with the errno the program gets.
"""

from __future__ import annotations

import errno
import logging
import stat
from typing import NamedTuple

import trio

from mountfs.config import MountOptions
from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.vfs.attributes import Attributes
from mountfs.vfs.caller import Caller
from mountfs.vfs.directories import Directories
from mountfs.vfs.files import Files
from mountfs.vfs.history.view import View
from mountfs.vfs.tree import Tree, failure
from nodeserver.protocol.ids import ROOT_INO
from nodeserver.protocol.names import BUCKET_RULE, NAME_MAX, valid_bucket

log = logging.getLogger(__name__)

BLOCK = 4096
LEAST = 1 << 20
"""Bytes: with less, the next write may find no room."""
NAMED = 100
"""Pending files that are named."""


class Space(NamedTuple):
    """What statfs(2) tells. Bytes."""

    total: int
    free: int
    files: int
    name_max: int


class FileSystem:
    """A mounted bucket, or all of them as directories of the root."""

    def __init__(self, engine: Engine, options: MountOptions) -> None:
        self.engine = engine
        self.options = options
        self.tree = Tree(engine)
        self.files = Files(engine, self.tree)
        self.directories = Directories(engine, self.tree)
        self.attributes = Attributes(engine, self.tree, self.files)
        self.history = View(engine, options, self.tree)
        self._context = engine.context

    async def run(self) -> None:
        """Forget deleted files once nothing is pending of them. Runs until cancelled."""
        while True:
            try:
                self.tree.sweep()
            except OSError as error:
                log.warning("deleted files stay for now: %s", error)
            await self._context.journal.acknowledged()

    async def lookup(self, parent: int, name: bytes) -> Inode:
        """What a name stands for. Raises OSError(ENOENT)."""
        directory = await self.tree.directory(parent)
        if name == b".":
            return directory
        if name == b"..":
            return await self.tree.inode(directory.parent or ROOT_INO)
        return await self.tree.existing(directory, name)

    async def attributes_of(self, ino: int) -> Inode:
        """An inode as it is now. Raises OSError(EIO) when it is not in use and ``max_stale`` has passed."""
        inode = await self.tree.inode(ino)
        if ino != ROOT_INO and ino not in self._context.staging.contents:
            self._context.freshness.require(inode.bucket)
        return inode

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Inode]:
        """Create and open a regular file; returns the handle and the inode."""
        inode = await self.tree.create(parent, name, stat.S_IFREG | mode & 0o7777, caller)
        return self.files.open_new(inode, flags), inode

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new directory; in the root above all buckets, a new bucket."""
        if parent == ROOT_INO and not (await self.tree.directory(parent)).bucket:
            return await self._create_bucket(name, mode, caller)
        return await self.tree.create(parent, name, stat.S_IFDIR | mode & 0o7777, caller)

    async def _create_bucket(self, name: bytes, mode: int, caller: Caller) -> Inode:
        text = name.decode(errors="replace")
        if not valid_bucket(text):
            there = next((bucket.name for bucket in self._context.buckets.by_id.values()), "files")
            self._context.hint(
                f"{text!r} cannot be made here: the directories of this folder are buckets, and {BUCKET_RULE}."
                f" Put it into a bucket: {self._context.config.mountpoint}/{there}/{text}"
            )
            raise failure(errno.EINVAL)
        state = await self.engine.create_bucket(text, mode & 0o7777, caller.uid, caller.gid)
        return await self.tree.inode(state.root)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; in the root above all buckets, an empty bucket."""
        directory = await self.tree.directory(parent)
        if directory.bucket:
            await self.tree.rmdir(parent, name)
        else:
            inode = await self.tree.existing(directory, name)
            await self.engine.delete_bucket(self._context.buckets.by_id[inode.bucket])

    async def readlink(self, ino: int) -> bytes:
        """Where a symbolic link points."""
        return (await self.tree.inode(ino)).target

    async def release(self, handle: int) -> None:
        """Close a file."""
        self.files.release(handle)

    async def sync_directory(self, cursor: int) -> None:
        """Return when the names made and ended in the directory are so on the nodes."""
        directory = await self.tree.inode(self.directories.ino(cursor))
        if directory.bucket:
            await self.engine.durable(directory.bucket, directory.ino)

    def space(self) -> Space:
        """Room and files of the mount; known here, never asked for."""
        usages = [bucket.usage for bucket in self._context.buckets.by_id.values()]
        if not usages:
            return Space(0, 0, 0, NAME_MAX)
        single = len(usages) == 1
        quota = usages[0].quota_bytes if single else None
        free = max(0, min(usage.free_bytes for usage in usages) - self._context.staging.staged_bytes())
        total = max(usage.capacity_bytes for usage in usages)
        if quota is not None:
            left = self._context.quota_left(next(iter(self._context.buckets.by_id.values())))
            free = min(free, max(0, left or 0))
            total = quota
        if self._context.server_full:
            free = 0
        return Space(total, free, sum(usage.used_files for usage in usages), NAME_MAX)

    def full(self) -> list[str]:
        """What has no room now, and where, for people."""
        found = self._full_disks()
        for bucket in self._context.buckets.by_id.values():
            left, quota = self._context.quota_left(bucket), bucket.usage.quota_bytes or 0
            if left is not None and left <= 0:
                found.append(f"bucket {bucket.name} has used up its quota of {quota / (1 << 20):,.1f} MiB")
        return found

    def explain(self) -> None:
        """A call failed for want of room: say what is full."""
        for reason in self._full_disks():
            self._context.hint(reason)

    def _full_disks(self) -> list[str]:
        context = self._context
        dirty = context.staging.staged_bytes()
        (used, cap), (available, _) = context.cache.size(), context.slabs.disk()
        found = []
        if available + max(0, used - dirty) <= LEAST:
            found.append(f"the disk of {context.config.state} is full: a tenth of it is left free; make room there")
        elif cap - dirty <= LEAST:
            found.append("the cache is full of what is not on the nodes yet; --cache-size may be larger")
        if context.server_full:
            found.append(f"the disk of {context.config.url} is full")
        return found

    async def drain(self, deadline: float) -> list[str]:
        """Close everything and wait until the nodes have it, up to ``deadline`` seconds.

        Returns the names of what is left.
        """
        for content in list(self._context.staging.contents.values()):
            self._context.staging.seal(content)
        last = self._context.journal.last()
        with trio.move_on_after(deadline):
            try:
                await self.engine.drained()
            except OSError as error:
                log.warning("not everything is on the nodes: %s", error.strerror)
        return self.pending_names(last)

    def pending_names(self, up_to: int | None = None) -> list[str]:
        """Paths of files that the nodes do not have yet as they are here, oldest change first, at most ``NAMED``.

        ``up_to``: for changes up to this journal row.
        """
        paths = dict[str, None]()
        for row in self._context.journal.rows(limit=10 * NAMED + len(self._context.aside.rows)):
            if up_to is not None and row.id > up_to:
                break
            if row.id in self._context.aside.rows:
                continue
            paths[self._context.path_of(row)] = None
            if len(paths) >= NAMED:
                break
        return list(paths)
