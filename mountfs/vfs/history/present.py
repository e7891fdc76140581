"""The live files that those of the past are shown beside, as far as this machine knows them."""

from __future__ import annotations

import contextlib
import dataclasses

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import Inode
from mountfs.sync.engine import Engine
from mountfs.vfs.history.access import Access, restrict
from mountfs.vfs.history.answers import Answers
from mountfs.vfs.tree import Tree


@dataclasses.dataclass(frozen=True)
class Place:
    """A name in a directory of a bucket."""

    bucket: BucketState
    directory: bytes
    """File id."""
    name: bytes


class Present:
    """What is here now, and the server's answers about what was."""

    def __init__(self, engine: Engine, live: Tree) -> None:
        self.engine = engine
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

    def stale(self, file_id: bytes) -> bool:
        """Whether a file changed elsewhere since we heard of it."""
        inode = self._inodes.get(self._inodes.ino(file_id))
        return inode is not None and bool(inode.stale)

    def changed(self, then: Access, file_id: bytes, said_ns: int) -> Access | None:
        """Mode and owner of a file that has others since the server told ``then``, which may tell more by now."""
        inode = self._inodes.get(self._inodes.ino(file_id))
        if inode is None or inode.ctime <= said_ns or self._context.pending(inode.ino):
            return None
        now = Access(inode.mode, inode.uid, inode.gid)
        return now if now != then else None

    async def refresh(self, file_id: bytes) -> None:
        """Learn of a file anew if it changed elsewhere."""
        if self.stale(file_id):
            with contextlib.suppress(OSError):
                await self.live.inode(self._inodes.ino(file_id))

    def restricted(self, then: Access, file_id: bytes, place: Place | None, said_ns: int) -> Access:
        """Who may do what with a file of the past that was under ``place``, of which the server told ``then``.

        What the server said takes account of the present file as it was there and then. It may have changed here
        since; if it is gone, the file that has the name now stands for it.
        """
        now = self._inodes.get(self._inodes.ino(file_id))
        if now is not None and now.nlink:
            return restrict(then, Access(now.mode, now.uid, now.gid))
        heir = self._at(place) if place else None
        if heir is not None and heir.is_file and (heir.ctime >= said_ns or self._context.pending(heir.ino)):
            return restrict(then, Access(heir.mode, heir.uid, heir.gid))
        return then
