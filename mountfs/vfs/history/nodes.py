"""The inodes of the view, for as long as the kernel knows them."""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from mountfs.local.inodes import Inode
from mountfs.vfs.tree import failure
from nodeserver.protocol.wire import Manifest

VIRTUAL = 1 << 63
"""Inode numbers and handles from here on are of the view: those of live files have 62 bits (``ids.ino_of``)."""
UNCACHED, BRIEF, LASTING = 0.0, 1.0, 300.0
"""Seconds for which the kernel may trust a name or attributes."""

Key = tuple[bytes, ...]


class Shown(NamedTuple):
    """What the kernel is told of an inode, and for how many seconds it may trust the name and the attributes."""

    inode: Inode
    name_timeout: float
    timeout: float


class Listed(NamedTuple):
    """Part of a directory: nodes by name, and where the next part begins, None after the last."""

    entries: Sequence[tuple[bytes, Node]]
    next: bytes | None


class Node(ABC):
    """A file or directory of the view. What it is follows from its key, so that its number is always the same."""

    __slots__ = ("file_ino", "ino", "key", "lookups", "name", "parent")

    def __init__(self, key: Key, parent: Node | int, name: bytes, file_ino: int = 0) -> None:
        self.key = key
        self.ino = _number(key)
        self.name = name
        self.file_ino = file_ino
        """The number of the live file that this is the past of, 0 if there is none."""
        self.parent = parent
        """A number is that of a live directory."""
        self.lookups = 0
        """How often the kernel was told of it and has not forgotten it since."""

    def path(self) -> tuple[int, list[bytes]]:
        """The number of a live directory, and the names that lead from it to here."""
        above, names = (self.parent, []) if isinstance(self.parent, int) else self.parent.path()
        return above, [*names, self.name]

    @abstractmethod
    async def shown(self) -> Shown:
        """Its attributes as they are now. Raises OSError(ESTALE) when it is no more."""

    @abstractmethod
    def as_known(self, live: Inode | None = None) -> Shown:
        """Its attributes without asking anybody, for listings; ``live`` is the row of ``file_ino``."""

    @abstractmethod
    def renew(self, other: Node) -> None:
        """``other``, of the same key, was made of a newer answer."""

    async def child(self, name: bytes) -> Node:
        """What a name stands for. Raises OSError(ENOENT)."""
        raise failure(errno.ENOTDIR)

    async def listed(self, after: bytes) -> Listed:
        """What it holds, from where ``next`` said on."""
        raise failure(errno.ENOTDIR)

    async def manifest(self) -> Manifest | None:
        """What the content of a regular file is made of; None when there is none."""
        raise failure(errno.EISDIR)

    async def neighbours(self) -> Iterable[Manifest | None]:
        """Contents that one who reads this is likely to read next."""
        return ()

    async def target(self) -> bytes:
        """Where a symbolic link points."""
        raise failure(errno.EINVAL)

    async def xattr_names(self) -> list[bytes]:
        """The extended attributes that a listing names."""
        return []

    async def xattr(self, name: bytes) -> bytes | None:
        """The value of one."""
        return None


class Nodes:
    """The nodes that the kernel knows, by number."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: int) -> Node:
        """Raises OSError(ESTALE)."""
        node = self._nodes.get(ino)
        if node is None:
            raise failure(errno.ESTALE)
        return node

    def known(self, node: Node) -> Node:
        """The node that the kernel has already for what ``node`` is, else that one. Raises OSError(EIO)."""
        found = self._nodes.get(node.ino)
        if found is None or found is node:
            return node
        if found.key != node.key:
            raise OSError(errno.EIO, f"inode number {node.ino} belongs to two files of the past")
        found.renew(node)
        return found

    def told(self, node: Node) -> None:
        """The kernel hears of a node, once more perhaps. No ``await`` between this and the reply."""
        self._nodes.setdefault(node.ino, node).lookups += 1

    def forget(self, ino: int, lookups: int) -> None:
        """The kernel takes back so many of the times it was told."""
        node = self._nodes.get(ino)
        if node is not None:
            node.lookups -= lookups
            if node.lookups <= 0:
                del self._nodes[ino]


def inode_of(
    node: Node, bucket: int, mode: int, uid: int, gid: int, mtime: int, *, size: int = 0, version: bytes = b""
) -> Inode:
    """Attributes of what is not a file of the server's."""
    nlink = 2 if stat.S_ISDIR(mode) else 1
    return Inode(
        node.ino, bucket, b"", mode, uid, gid, 0, nlink, size, 0, mtime, mtime, mtime, 0, 1, 0, version, b"", None
    )


def _number(key: Key) -> int:
    lengths = bytes(map(len, key))  # no part is longer than a name
    return VIRTUAL | int.from_bytes(blake2b(lengths + b"".join(key), digest_size=8).digest(), "big")
