"""Open directories: every name that stays is listed exactly once, whatever comes and goes meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.vfs.tree import Tree, failure
from nodeserver.protocol.ids import ROOT_INO

BATCH = 64
"""Names read from the database at a time: about as many as the kernel takes in one request."""
WINDOW = 1000
"""Names among which those to be asked for are looked for together."""
DOTS = 2
"""Positions behind ``.`` and ``..``."""

Named = tuple[bytes, Inode, int]
"""A name, what it stands for, and the position behind it."""


class Cursor:
    """An open directory. Position ``DOTS + n`` is behind ``names[:n]``: once given it means that until a rewind."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.names: list[bytes] = []
        """The names handed out, in byte order."""
        self.alone = False
        """Nobody could say what changed elsewhere: what is known is listed."""


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

    async def read(self, number: int, position: int) -> Iterator[Named]:
        """What follows ``position``, as far as it is at hand; nothing at the end. Who takes an entry asks for the next.

        Raises OSError(EIO) when nobody can say what a name stands for: no name is left out.
        """
        cursor = self._cursors[number]
        directory = await self._tree.directory(cursor.ino)
        self._engine.context.freshness.require(directory.bucket)
        if position == 0:
            cursor.names, cursor.alone = [], False
        if not directory.bucket:
            if position == 0:
                await self._engine.buckets_changed()
        elif not directory.complete:
            await self._engine.remote.complete(directory)
        index = max(0, position - DOTS)
        await self._know(cursor, index)
        return self._entries(cursor, directory, position, index)

    def _entries(self, cursor: Cursor, directory: Inode, position: int, index: int) -> Iterator[Named]:
        if position < 1:
            yield b".", directory, 1
        if position < DOTS:
            yield b"..", self._inodes.get(directory.parent or ROOT_INO) or directory, DOTS
        while rows := self._rows(cursor, index, BATCH):
            for name, inode, index in rows:
                if inode is None or self._is_old(cursor, inode):
                    return  # the next read asks
                yield name, inode, DOTS + index
                if index > len(cursor.names):
                    cursor.names.append(name)

    def _rows(self, cursor: Cursor, index: int, limit: int) -> list[tuple[bytes, Inode | None, int]]:
        """Up to ``limit`` names behind the first ``index`` handed out, what they stand for, and their number."""
        names = cursor.names
        while index < len(names):
            again = names[index : index + limit]
            found = self._inodes.named(cursor.ino, again)
            if rows := [(name, found[name], index + n) for n, name in enumerate(again, 1) if name in found]:
                return rows
            index += len(again)  # all of them are gone
        behind = names[-1] if names else b""
        page = self._inodes.page(cursor.ino, behind, limit)
        return [(name, inode, len(names) + n) for n, (name, inode) in enumerate(page, 1)]

    def _is_old(self, cursor: Cursor, inode: Inode) -> bool:
        """Whether somebody else changed it: the kernel keeps the attributes that a listing gives it."""
        return bool(inode.stale) and not cursor.alone and not self._engine.context.pending(inode.ino)

    async def _know(self, cursor: Cursor, index: int) -> None:
        """Make known what the next name stands for, together with others behind it. No ``await`` from there to its use.

        Raises OSError(EIO).
        """
        rows = self._rows(cursor, index, 1)
        if not rows or self._is_known(cursor, rows[0]):
            return
        window = self._rows(cursor, index, WINDOW)
        asked = max(n for n, row in enumerate(window, 1) if not self._is_known(cursor, row))
        directory = await self._tree.directory(cursor.ino)
        try:
            if directory.bucket:
                await self._engine.remote.part(directory, self._inodes.before(cursor.ino, window[0][0]), asked)
            rows = self._rows(cursor, index, 1)
            if rows and not self._is_known(cursor, rows[0]):  # names that are new here came first
                await self._tree.child(directory, rows[0][0])
        except OSError as error:
            if error.errno != errno.EIO or any(inode is None for _, inode, _ in window[:asked]):
                raise
        rows = self._rows(cursor, index, 1)
        if rows and rows[0][1] is None:
            raise OSError(errno.EIO, f"nobody says what {rows[0][0]!r} is")
        cursor.alone = bool(rows) and not self._is_known(cursor, rows[0])

    def _is_known(self, cursor: Cursor, row: tuple[bytes, Inode | None, int]) -> bool:
        return row[1] is not None and not self._is_old(cursor, row[1])

    def close(self, number: int) -> None:
        del self._cursors[number]

    def ino(self, number: int) -> int:
        """The directory behind a cursor."""
        cursor = self._cursors.get(number)
        if cursor is None:
            raise failure(errno.EBADF)
        return cursor.ino
