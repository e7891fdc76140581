"""Open directories: listing in a stable order while they change."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Iterator

from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.sync.remote import RESOLVE_LIMIT
from mountfs.vfs.tree import Tree, failure

PAGE = 1000
"""Entries read from the database at a time."""


class Cursor:
    """An open directory. Position n is behind the n-th entry handed out, in byte order of names.

    Of each page only the name it begins behind is kept, so entries that come and go shift no others.
    """

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.starts = [0]
        """Position of the first entry of each page reached so far."""
        self.behind = [b""]
        """The name each of these pages begins behind."""
        self.page: list[tuple[bytes, Inode]] = []
        self.page_start = -1


class Directories:
    """Cursors by number."""

    def __init__(self, engine: Engine, tree: Tree) -> None:
        self._engine = engine
        self._inodes = engine.context.inodes
        self._tree = tree
        self._cursors: dict[int, Cursor] = {}
        self._last = 0

    async def open(self, ino: int) -> int:
        """Open a directory; returns the cursor's number."""
        inode = await self._tree.directory(ino)
        self._last += 1
        self._cursors[self._last] = Cursor(inode.ino)
        return self._last

    async def read(self, number: int, position: int) -> Iterator[tuple[bytes, Inode, int]]:
        """(name, inode, next position) from ``position`` on, as far as it is at hand."""
        cursor = self._cursors[number]
        if position == 0:
            await self._complete(cursor.ino)
            cursor.page_start = -1
        if not cursor.page_start <= position < cursor.page_start + len(cursor.page):
            self._load(cursor, position)
            if await self._refresh(cursor):
                self._load(cursor, position)
        return self._rest(cursor, position)

    async def _refresh(self, cursor: Cursor) -> bool:
        """Ask anew for what changed elsewhere: the kernel keeps the attributes that a listing gives it."""
        stale = [inode for _, inode in cursor.page if inode.stale]
        if len(stale) > RESOLVE_LIMIT:
            self._inodes.update(cursor.ino, complete=0)
            await self._complete(cursor.ino)
        else:
            for inode in stale:
                await self._tree.inode(inode.ino)
        return bool(stale)

    async def _complete(self, ino: int) -> None:
        directory = await self._tree.directory(ino)
        if not directory.bucket:
            await self._engine.buckets_changed()
        elif not directory.complete or self._inodes.unknown_names(ino, 1):
            await self._engine.remote.complete(directory)

    def _load(self, cursor: Cursor, position: int) -> None:
        index = bisect_right(cursor.starts, position) - 1
        start = cursor.starts[index]
        cursor.page = self._inodes.page(cursor.ino, cursor.behind[index], PAGE)
        while start + len(cursor.page) <= position and len(cursor.page) == PAGE:
            start += PAGE
            cursor.page = self._inodes.page(cursor.ino, cursor.page[-1][0], PAGE)
        cursor.page_start = start
        if len(cursor.page) == PAGE and start + PAGE > cursor.starts[-1]:
            cursor.starts.append(start + PAGE)
            cursor.behind.append(cursor.page[-1][0])

    def _rest(self, cursor: Cursor, position: int) -> Iterator[tuple[bytes, Inode, int]]:
        for index in range(position - cursor.page_start, len(cursor.page)):
            name, inode = cursor.page[index]
            yield name, inode, cursor.page_start + index + 1

    def close(self, number: int) -> None:
        del self._cursors[number]

    def ino(self, number: int) -> int:
        """The directory behind a cursor."""
        cursor = self._cursors.get(number)
        if cursor is None:
            raise failure(errno.EBADF)
        return cursor.ino
