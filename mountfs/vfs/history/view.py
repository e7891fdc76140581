"""The past of a mount as the file system shows it, by inode number and handle.

Nothing here can be changed. Numbers and handles are from :data:`VIRTUAL` on. Errors are OSError with the errno the
program gets.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Iterator

from mountfs import moments
from mountfs.config import MountOptions
from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.vfs.directories import DOTS
from mountfs.vfs.history.asof import AsOf, FileThen
from mountfs.vfs.history.cursor import Cursor
from mountfs.vfs.history.nodes import VIRTUAL, Node, Nodes, Shown
from mountfs.vfs.history.present import Present
from mountfs.vfs.history.reading import Reader
from mountfs.vfs.history.versions import Versions
from mountfs.vfs.tree import Tree, failure
from nodeserver.protocol.wire import File

FOREVER = 86_400.0
"""Seconds for which the kernel may trust a live directory."""
PINNED = 10.0
"""A relative time stays what it was while it is looked up again within so many seconds,"""
PINNED_MOST = 600.0
"""for so many seconds at most: who copies ``@-1h`` by its path gets one tree."""
PINS = 256
"""Relative times remembered."""
TOGETHER = 32
"""Live files looked at together while a directory is listed: about as many as the kernel takes at a time."""
NEWEST = 2**63 - 1
"""The last moment there is."""
NO_NAME = b"/"
"""What nothing is called."""

Entry = tuple[bytes, Node | None, Shown, int]
"""Of a listing: name, node, attributes, and the position behind it."""


class Pin:
    """What a relative time was when it was first looked up."""

    def __init__(self, seq: int, now_ns: int) -> None:
        self.seq = seq
        self.since_ns = self.used_ns = now_ns

    def holds(self, now_ns: int) -> bool:
        """Whether it still means that."""
        return now_ns - self.used_ns < PINNED * 1e9 and now_ns - self.since_ns < PINNED_MOST * 1e9


class View:
    """All of it. Directories of the live tree hold it under the name ``name``."""

    def __init__(self, engine: Engine, options: MountOptions, live: Tree) -> None:
        self.name = NO_NAME if options.versions == "off" else os.fsencode(options.versions_name)
        self.nodes = Nodes()
        self._only_root = options.versions == "root"
        self._engine = engine
        self._live = live
        self._present = Present(engine, live)
        self._pins: OrderedDict[tuple[int, bytes, bytes], Pin] = OrderedDict()
        self._handles: dict[int, Reader] = {}
        self._cursors: dict[int, Cursor] = {}
        self._last = VIRTUAL

    # Names

    def holds(self, directory: Inode, name: bytes) -> bool:
        """Whether a name in a live directory is ours."""
        if name != self.name or not directory.bucket:
            return False
        return not self._only_root or directory.ino == self._engine.context.buckets.by_id[directory.bucket].root

    def reserves(self, parent: int, name: bytes) -> bool:
        """As :meth:`holds`, by number."""
        directory = self._engine.context.inodes.get(parent) if name == self.name else None
        return directory is not None and self.holds(directory, name)

    async def lookup(self, parent: int, name: bytes) -> Shown | None:
        """What a name stands for; None when it is for the live tree to say. The kernel knows it from now on."""
        if parent < VIRTUAL:
            directory = await self._live.directory(parent)
            if not self.holds(directory, name):
                return None
            bucket = self._engine.context.buckets.by_id[directory.bucket]
            node: Node = Versions(self._present, bucket, directory, name, self._at_moment)
        else:
            node = self.nodes.get(parent)
            if name == b"..":
                if isinstance(node.parent, int):
                    return Shown(await self._live.inode(node.parent), FOREVER, FOREVER)
                node = node.parent
            elif name != b".":
                node = await node.child(name)
        node = self.nodes.known(node)
        shown = await node.shown()
        self.nodes.told(node)
        return shown

    async def _at_moment(self, versions: Versions, name: bytes) -> Node:
        """The tree that a time stands for. Raises OSError(ENOENT)."""
        bucket, directory = versions.bucket, versions.directory
        seq, settled = await self._resolve(versions, name)
        tree = AsOf(bucket, directory.file_id, name, seq, settled)
        if seq:
            file, said = await self._present.answers.file(bucket, directory.file_id, seq)
        else:
            # nothing was there yet but the root of the bucket
            file, said = (None, 0) if directory.ino != bucket.root else (_empty(directory), 0)
        if file is None or not file.nlink:
            raise failure(errno.ENOENT)
        return FileThen(self._present, tree, versions, None, file, said)

    async def _resolve(self, versions: Versions, name: bytes) -> tuple[int, bool]:
        """The commit that a time means, and whether it always will. Raises OSError(ENOENT) for what is no time."""
        now, answers = time.time_ns(), self._present.answers
        try:
            text = name.decode()
            moment = moments.parse(text, now)
        except ValueError:
            raise failure(errno.ENOENT) from None
        if text == "@now":
            return (await answers.moment(versions.bucket, NEWEST))[0], False
        if not moments.is_relative(text):
            return await answers.moment(versions.bucket, moment)
        key = (versions.bucket.id, versions.directory.file_id, name)
        pin = self._pins.get(key)
        if pin is None or not pin.holds(now):
            pin = self._pins[key] = Pin((await answers.moment(versions.bucket, moment))[0], now)
            while len(self._pins) > PINS:
                self._pins.popitem(last=False)
        pin.used_ns = now
        self._pins.move_to_end(key)
        return pin.seq, False

    def forget(self, ino: int, lookups: int) -> None:
        """The kernel takes back so many of the times it was told of a number."""
        self.nodes.forget(ino, lookups)

    # Attributes

    async def attributes(self, ino: int) -> Shown:
        return await self.nodes.get(ino).shown()

    async def readlink(self, ino: int) -> bytes:
        return await self.nodes.get(ino).target()

    async def xattr_names(self, ino: int) -> list[bytes]:
        return await self.nodes.get(ino).xattr_names()

    async def xattr(self, ino: int, name: bytes) -> bytes:
        """Raises OSError(ENODATA)."""
        value = await self.nodes.get(ino).xattr(name)
        if value is None:
            raise failure(errno.ENODATA)
        return value

    # Files

    async def open(self, ino: int, flags: int) -> int:
        """Open a file for reading; returns the handle's number. Raises OSError(EROFS)."""
        node = self.nodes.get(ino)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise failure(errno.EROFS)
        reader = await Reader.opened(self._engine, node)
        self._last += 1
        self._handles[self._last] = reader
        return self._last

    async def read(self, number: int, offset: int, size: int) -> bytes:
        return await self._handles[number].read(offset, size)

    def release(self, number: int) -> None:
        del self._handles[number]

    # Directories

    def open_directory(self, ino: int) -> int:
        self._last += 1
        self._cursors[self._last] = Cursor(self.nodes.get(ino))
        return self._last

    async def entries(self, number: int, position: int) -> Iterator[Entry]:
        """(name, node, attributes, next position) from ``position`` on, as far as it is at hand.

        The kernel is to be told of a node (:meth:`Nodes.told`) when it takes the entry; ``.`` and ``..`` have none.
        """
        cursor = self._cursors[number]
        if position == 0:
            cursor.rewind()
        node = cursor.node
        above = self._engine.context.inodes.get(node.parent) if isinstance(node.parent, int) else node.parent
        dots = [
            (b".", node.as_known()),
            (b"..", Shown(above, 0, 0) if isinstance(above, Inode) else (above or node).as_known()),
        ]
        entries = await cursor.entries(max(0, position - DOTS))
        return self._shown(dots[position:], position, entries)

    def _shown(
        self, dots: list[tuple[bytes, Shown]], position: int, entries: list[tuple[bytes, Node, int]]
    ) -> Iterator[Entry]:
        for after, (name, shown) in enumerate(dots, position + 1):
            yield name, None, shown, after
        inodes = self._engine.context.inodes
        for start in range(0, len(entries), TOGETHER):
            some = entries[start : start + TOGETHER]
            live = inodes.many([node.file_ino for _, node, _ in some])
            for name, node, number in some:
                node = self.nodes.known(node)
                yield name, node, node.as_known(live.get(node.file_ino)), DOTS + number + 1

    def close_directory(self, number: int) -> None:
        del self._cursors[number]


def _empty(directory: Inode) -> File:
    """A directory as it is now, without what is in it."""
    return File(
        directory.file_id, directory.mode, directory.uid, directory.gid, nlink=2,
        atime_ns=directory.atime, mtime_ns=directory.mtime, ctime_ns=directory.ctime,
    )  # fmt: skip
