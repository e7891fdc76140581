"""Answers of the file system in the words of FUSE."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from pyfuse3 import EntryAttributes, InodeT, ModeT, StatvfsData

from mountfs.config import MountOptions
from mountfs.local.inodes import Inode
from mountfs.vfs.filesystem import BLOCK, Space

FOREVER = 86_400.0
"""Seconds the kernel may trust names and attributes: what changes elsewhere is invalidated."""


KINDS = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))
"""What the kernel takes; it refuses a whole listing for anything else."""
NOBODY = 65534


def entry_of(
    options: MountOptions,
    removals: Mapping[int, int],
    inode: Inode,
    name_timeout: float = FOREVER,
    timeout: float = FOREVER,
) -> EntryAttributes:
    """An inode's attributes, and for how many seconds the kernel may trust its name and them.

    ``removals`` tells how often directories were removed here that are back: to the kernel each is another one then.
    What cannot be (a server may say anything) is shown as what comes nearest: one bad file must not hide the others.
    """
    entry = EntryAttributes()
    entry.st_ino = InodeT(inode.ino)
    entry.generation = removals.get(inode.ino, 0)
    mode = inode.mode if options.umask is None else inode.mode & ~options.umask
    kind = stat.S_IFMT(mode)
    entry.st_mode = ModeT((kind if kind in KINDS else stat.S_IFREG) | mode & 0o7777)
    entry.st_nlink = max(0, inode.nlink)
    entry.st_uid = _id(inode.uid if options.uid is None else options.uid)
    entry.st_gid = _id(inode.gid if options.gid is None else options.gid)
    entry.st_rdev = inode.rdev & 0xFFFF_FFFF
    entry.st_size = max(0, inode.size)
    entry.st_blksize = BLOCK
    entry.st_blocks = max(0, inode.size - inode.holes + 511) >> 9
    entry.st_atime_ns = inode.atime
    entry.st_mtime_ns = inode.mtime
    entry.st_ctime_ns = inode.ctime
    entry.entry_timeout = name_timeout
    entry.attr_timeout = timeout
    return entry


def _id(number: int) -> int:
    """A user or group."""
    return number if 0 <= number < 0xFFFF_FFFF else NOBODY


def statvfs_of(space: Space) -> StatvfsData:
    """What statfs(2) tells."""
    data = StatvfsData()
    data.f_bsize = data.f_frsize = BLOCK
    data.f_blocks = space.total // BLOCK
    data.f_bfree = data.f_bavail = space.free // BLOCK
    data.f_files = space.files + space.free // BLOCK
    data.f_ffree = data.f_favail = space.free // BLOCK
    data.f_namemax = space.name_max
    return data
