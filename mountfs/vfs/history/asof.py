"""``D/.versions/@TIME``: the tree below a directory as of a commit."""

from __future__ import annotations

import dataclasses
import errno
import stat
import time
from collections.abc import Iterable
from functools import cached_property

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import Inode, holes_in, pack_xattrs
from mountfs.vfs.history.answers import PAST, Page
from mountfs.vfs.history.facts import FACTS, fact
from mountfs.vfs.history.nodes import BRIEF, LASTING, UNCACHED, Key, Listed, Node, Shown
from mountfs.vfs.history.present import Place, Present
from mountfs.vfs.tree import failure
from nodeserver.protocol.privacy import Access
from nodeserver.protocol.wire import File, Manifest


@dataclasses.dataclass(frozen=True)
class AsOf:
    """A directory, by file id, as of a commit; ``name`` is the time as somebody wrote it."""

    bucket: BucketState
    directory: bytes
    name: bytes
    seq: int
    """0 is before the first commit: there is nothing."""
    settled: bool
    """The name will always mean this commit."""

    @cached_property
    def key(self) -> Key:
        """What the keys of all nodes in it begin with."""
        return b"then", self.bucket.uuid, self.directory, self.name, b"%d" % self.seq


class FileThen(Node):
    """A file or directory as of a commit.

    It has one number under all its names in a tree, but another in another tree: the kernel has a directory in
    one place only.
    """

    __slots__ = ("_after", "_file", "_place", "_present", "_said_ns", "_tree")

    def __init__(
        self,
        present: Present,
        tree: AsOf,
        parent: Node,
        place: Place | None,
        file: File,
        said_ns: int,
        after: bytes = b"",
    ) -> None:
        name = place.name if place else tree.name
        super().__init__((*tree.key, file.id, file.version), parent, name, present.ino(file.id))
        self._present = present
        self._tree = tree
        self._place = place
        """None for the root of the tree."""
        self._file = file
        self._said_ns = said_ns
        self._after = after
        """Where the page of its directory begins that it was listed on."""

    def renew(self, other: Node) -> None:
        assert isinstance(other, FileThen)
        self._file, self._said_ns, self._after = other._file, other._said_ns, other._after

    async def shown(self) -> Shown:
        live = await self._present.row(self.file_ino)
        if self._tree.seq:
            await self._ask_anew(live)
        return self.as_known(live)

    async def _ask_anew(self, live: Inode | None) -> None:
        if self._place and (live is None or not live.nlink):
            # Gone, and how it was last may have been told since: with all of its page, as nobody counts what is gone.
            page = await self._page_of(self._place.directory, self._after)
            if (told := page.entries.get(self._place.name)) is not None:
                self._file, self._said_ns = told, page.fetched_ns
        file, present = self._file, self._present
        changed = present.changed(Access(file.mode, file.uid, file.gid), live, self._said_ns)
        if changed or time.time_ns() - self._said_ns > PAST * 1e9:
            now, said = await present.answers.file(self._tree.bucket, file.id, self._tree.seq, changed)
            if now is None or now.version != file.version:
                raise failure(errno.ESTALE)
            self._file, self._said_ns = now, said

    def as_known(self, live: Inode | None = None) -> Shown:
        file = self._file
        place = self._place if stat.S_ISREG(file.mode) else None
        mode, uid, gid = file.mode, file.uid, file.gid
        if live is None or not (live.nlink and live.mode == mode and live.uid == uid and live.gid == gid):
            mode, uid, gid = self._present.restricted(Access(mode, uid, gid), live, place, self._said_ns)
        holes = holes_in(file.manifest.slices) if file.manifest and not file.manifest.indirect else 0
        inode = Inode(
            self.ino, self._tree.bucket.id, b"", mode, uid, gid, file.rdev, file.nlink, file.size, holes, file.atime_ns,
            file.mtime_ns, file.ctime_ns, 0, 1, 0, file.version, file.target, pack_xattrs(file.xattrs),
        )  # fmt: skip
        name_timeout = LASTING if self._place or self._tree.settled else UNCACHED
        return Shown(inode, name_timeout, UNCACHED if live and live.stale else BRIEF)

    async def child(self, name: bytes) -> Node:
        self._require_directory()
        page = await self._page(b"")
        if name in page.entries:
            file, said = page.entries[name], page.fetched_ns
        elif page.last is None or name <= page.last:
            raise failure(errno.ENOENT)
        else:
            tree = self._tree
            found, said = await self._present.answers.lookup(tree.bucket, self._file.id, name, tree.seq)
            if found is None:
                raise failure(errno.ENOENT)
            file = found
        return self._child(name, file, said)

    async def listed(self, after: bytes) -> Listed:
        self._require_directory()
        page = await self._page(after)
        entries = [(name, self._child(name, file, page.fetched_ns, after)) for name, file in page.entries.items()]
        return Listed(entries, page.last)

    def _child(self, name: bytes, file: File, said_ns: int, after: bytes = b"") -> FileThen:
        place = Place(self._tree.bucket, self._file.id, name)
        return FileThen(self._present, self._tree, self, place, file, said_ns, after)

    def _require_directory(self) -> None:
        if not stat.S_ISDIR(self._file.mode):
            raise failure(errno.ENOTDIR)

    async def _page(self, after: bytes) -> Page:
        if not self._tree.seq:
            return Page({}, None, 0)
        return await self._page_of(self._file.id, after)

    async def _page_of(self, directory: bytes, after: bytes) -> Page:
        return await self._present.answers.entries(self._tree.bucket, directory, self._tree.seq, after)

    async def target(self) -> bytes:
        if not stat.S_ISLNK(self._file.mode):
            raise failure(errno.EINVAL)
        return self._file.target

    async def xattr_names(self) -> list[bytes]:
        # Not the facts of the version: a copy with its attributes would take them for its own.
        return list(self._file.xattrs)

    async def xattr(self, name: bytes) -> bytes | None:
        if name in FACTS and self._file.version:
            version = await self._present.answers.version(self._tree.bucket, self._file.version)
            return fact(name, version) if version else None
        return self._file.xattrs.get(name)

    async def manifest(self) -> Manifest | None:
        if not stat.S_ISREG(self._file.mode):
            raise failure(errno.EISDIR if stat.S_ISDIR(self._file.mode) else errno.EINVAL)
        if self._file.manifest is None and self._file.size:
            version = await self._present.answers.version(self._tree.bucket, self._file.version)
            return version.manifest if version else None
        return self._file.manifest

    async def neighbours(self) -> Iterable[Manifest | None]:
        if self._place is None:
            return []
        page = await self._page_of(self._place.directory, self._after)
        return [file.manifest for name, file in page.entries.items() if name >= self._place.name]
