"""The live files that those of the past are shown beside, as far as this machine knows them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.vfs.history.answers import Answers
from mountfs.vfs.tree import Tree
from nodeserver.protocol.privacy import Access, restrict


class Place(NamedTuple):
    """A name in a directory of a bucket."""

    bucket: BucketState
    directory: bytes
    """File id."""
    name: bytes


class Present:
    """What is here now, and the server's answers about what was."""

    def __init__(self, engine: Engine, live: Tree) -> None:
        self.live = live
        self.answers = Answers(engine.context)
        self._context = engine.context
        self._inodes = engine.context.inodes

    def stamp(self, place: Place) -> object:
        """Another one when the versions of a name, or who may read them, may be others: what has the name changed."""
        directory = self._inodes.get(self._inodes.ino(place.directory))
        if directory is None:
            return place.bucket.known
        inode = self._at(place)
        if inode is None:
            known = self._inodes.target(directory.ino, place.name) is None and directory.complete
            return 0 if known and (directory.ino, place.name) not in self._context.journal.names else place.bucket.known
        if (
            inode.stale
            or self._context.pending(inode.ino)
            or (directory.ino, place.name) in self._context.journal.names
        ):
            return place.bucket.known
        return inode.ino, inode.version, inode.mode, inode.uid, inode.gid

    def _at(self, place: Place) -> Inode | None:
        return self._inodes.lookup(self._inodes.ino(place.directory), place.name)

    def ino(self, file_id: bytes) -> int:
        """The number of a live file."""
        return self._inodes.ino(file_id)

    async def row(self, ino: int) -> Inode | None:
        """A live file, asked for anew if it changed elsewhere; None when it is not known here."""
        inode = self._inodes.get(ino)
        if inode is not None and inode.stale:
            with contextlib.suppress(OSError):
                inode = await self.live.inode(ino)
        return inode

    def changed(self, then: Access, live: Inode | None, said_ns: int) -> Access | None:
        """Mode and owner of a file that has others since the server told ``then``, which may tell more by now."""
        if live is None or live.ctime <= said_ns or self._context.pending(live.ino):
            return None
        now = Access(live.mode, live.uid, live.gid)
        return now if now != then else None

    def restricted(self, then: Access, live: Inode | None, place: Place | None, said_ns: int) -> Access:
        """Who may do what with a file of the past that was under ``place``, of which the server told ``then``.

        What the server said takes account of the present file as it was there and then. It may have changed here
        since; if it is gone, the file that has the name now stands for it.
        """
        if live is not None:
            then = restrict(then, Access(live.mode, live.uid, live.gid))
            if live.nlink:
                return then
        heir = self._at(place) if place else None
        if heir is not None and heir.is_file and (heir.ctime >= said_ns or self._context.pending(heir.ino)):
            return restrict(then, Access(heir.mode, heir.uid, heir.gid))
        return then
