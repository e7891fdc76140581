"""``D/.versions``: the names with a past, and below each its versions."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Awaitable, Callable, Iterable

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import Inode, holes_in
from mountfs.vfs.history import names
from mountfs.vfs.history.answers import Past
from mountfs.vfs.history.facts import FACTS, fact
from mountfs.vfs.history.nodes import BRIEF, LASTING, UNCACHED, Listed, Node, Shown, inode_of
from mountfs.vfs.history.present import Place, Present
from mountfs.vfs.tree import failure
from nodeserver.protocol.names import NAME_MAX
from nodeserver.protocol.privacy import Access
from nodeserver.protocol.wire import Manifest

READABLE = 0o555
"""Of the bits of a directory, those that it shares with what shows its past."""


class Versions(Node):
    """The directory ``.versions`` itself."""

    __slots__ = ("_moment", "bucket", "directory", "present")

    def __init__(
        self,
        present: Present,
        bucket: BucketState,
        directory: Inode,
        called: bytes,
        moment: Callable[[Versions, bytes], Awaitable[Node]],
    ) -> None:
        super().__init__((b"versions", bucket.uuid, directory.file_id), directory.ino, called)
        self.present = present
        self.bucket = bucket
        self.directory = directory
        self._moment = moment
        """Makes the node of a name that is a time."""

    async def shown(self) -> Shown:
        with contextlib.suppress(OSError):
            self.directory = await self.present.live.inode(self.directory.ino)
        return self.as_known()

    def as_known(self, live: Inode | None = None) -> Shown:
        return self.of_directory(self, self.directory.mtime, LASTING)

    def renew(self, other: Node) -> None:
        assert isinstance(other, Versions)
        self.directory = other.directory

    def of_directory(self, node: Node, mtime: int, name_timeout: float) -> Shown:
        """The attributes of a directory whose bits and owner are those of the live one."""
        live = self.directory
        mode = stat.S_IFDIR | live.mode & READABLE
        return Shown(inode_of(node, self.bucket.id, mode, live.uid, live.gid, mtime), name_timeout, BRIEF)

    async def child(self, name: bytes) -> Node:
        real = names.real(name)
        if real is None:
            return await self._moment(self, name)
        if len(real) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        node = Versioned(self, real, 0)
        past = await node.past()
        if past.versions:
            node.newest = next(reversed(past.versions.values())).committed_ns
            return node
        live = await self.present.live.child(self.directory, real)
        if live is None or not live.is_file:
            raise failure(errno.ENOENT)
        node.newest = live.mtime  # of a file that was not sent yet, or never had content
        return node

    async def listed(self, after: bytes) -> Listed:
        answer = await self.present.answers.names(self.bucket, self.directory.file_id, after)
        entries = [(names.shown(found.name), Versioned(self, found.name, found.committed_ns)) for found in answer.names]
        return Listed(entries, answer.names[-1].name if answer.more else None)


class Versioned(Node):
    """The directory of a name."""

    __slots__ = ("_parent", "newest", "place", "present")

    def __init__(self, parent: Versions, name: bytes, newest: int) -> None:
        super().__init__((b"name", *parent.key[1:], name), parent, names.shown(name))
        self._parent = parent
        self.newest = newest
        """When the last version was committed, ns."""
        self.present = parent.present
        self.place = Place(parent.bucket, parent.directory.file_id, name)

    async def past(self) -> Past:
        """The versions there are now."""
        place = self.place
        return await self.present.answers.versions(place.bucket, place.directory, place.name, self.present.stamp(place))

    async def shown(self) -> Shown:
        await self._parent.shown()
        return self.as_known()

    def as_known(self, live: Inode | None = None) -> Shown:
        return self._parent.of_directory(self, self.newest, BRIEF)

    def renew(self, other: Node) -> None:
        assert isinstance(other, Versioned)
        self.newest = other.newest

    async def child(self, name: bytes) -> Node:
        past = await self.past()
        if name in (names.CURRENT, names.PREVIOUS):
            node: Node = Link(self, name, past)
            await node.target()
            return node
        if name not in past.versions:
            raise failure(errno.ENOENT)
        return VersionFile(self, name, past)

    async def listed(self, after: bytes) -> Listed:
        past = await self.past()
        entries: list[tuple[bytes, Node]] = [(name, VersionFile(self, name, past)) for name in past.versions]
        for name, target in ((names.CURRENT, past.current), (names.PREVIOUS, past.previous)):
            if target is not None:
                entries.append((name, Link(self, name, past)))
        return Listed(entries, None)

    def owner(self) -> tuple[int, int]:
        """User and group of the live directory."""
        return self._parent.directory.uid, self._parent.directory.gid


class Link(Node):
    """``current`` or ``previous``."""

    __slots__ = ("_parent", "_past")

    def __init__(self, parent: Versioned, which: bytes, past: Past) -> None:
        super().__init__((b"link", *parent.key[1:], which), parent, which)
        self._parent = parent
        self._past = past

    def renew(self, other: Node) -> None:
        assert isinstance(other, Link)
        self._past = other._past

    async def shown(self) -> Shown:
        self._past = await self._parent.past()
        return self.as_known()

    def as_known(self, live: Inode | None = None) -> Shown:
        target, (uid, gid) = self._target(), self._parent.owner()
        mtime = self._past.versions[target].committed_ns
        inode = inode_of(self, self._parent.place.bucket.id, stat.S_IFLNK | 0o777, uid, gid, mtime, size=len(target))
        return Shown(inode, UNCACHED, UNCACHED)

    def _target(self) -> bytes:
        target = self._past.current if self.name == names.CURRENT else self._past.previous
        if target is None:
            raise failure(errno.ENOENT)
        return target

    async def target(self) -> bytes:
        self._past = await self._parent.past()
        return self._target()


class VersionFile(Node):
    """A version."""

    __slots__ = ("_parent", "_said_ns", "version")

    def __init__(self, parent: Versioned, name: bytes, past: Past) -> None:
        self.version = past.versions[name]
        super().__init__(
            (b"version", *parent.key[1:], self.version.id), parent, name, parent.present.ino(self.version.file)
        )
        self._parent = parent
        self._said_ns = past.fetched_ns

    def renew(self, other: Node) -> None:
        assert isinstance(other, VersionFile)
        self.version, self._said_ns = other.version, other._said_ns

    async def shown(self) -> Shown:
        past = await self._parent.past()
        version = past.versions.get(self.name)
        if version is None or version.id != self.version.id:
            raise failure(errno.ESTALE)
        self.version, self._said_ns = version, past.fetched_ns
        return self.as_known(await self._parent.present.row(self.file_ino))

    def as_known(self, live: Inode | None = None) -> Shown:
        version, place, present = self.version, self._parent.place, self._parent.present
        then = Access(stat.S_IFREG | stat.S_IMODE(version.mode), version.uid, version.gid)
        mode, uid, gid = present.restricted(then, live, place, self._said_ns)
        inode = inode_of(self, place.bucket.id, mode, uid, gid, version.mtime_ns, size=version.size, version=version.id)
        holes = holes_in(version.manifest.slices) if version.manifest and not version.manifest.indirect else 0
        inode = inode._replace(ctime=version.committed_ns, holes=holes)
        return Shown(inode, LASTING, UNCACHED if live and live.stale else BRIEF)

    async def xattr(self, name: bytes) -> bytes | None:
        if name not in FACTS:
            return None
        found = (await self._parent.past()).versions.get(self.name, self.version)
        return fact(name, found)

    async def manifest(self) -> Manifest | None:
        if self.version.manifest is None and self.version.size:
            place = self._parent.place
            found = await self._parent.present.answers.version(place.bucket, self.version.id)
            return found.manifest if found else None
        return self.version.manifest

    async def neighbours(self) -> Iterable[Manifest | None]:
        versions = (await self._parent.past()).versions.values()
        return [version.manifest for version in versions if version.seq > self.version.seq]
