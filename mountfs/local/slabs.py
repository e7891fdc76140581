"""Slabs: the files that hold content on this machine, staged and cached alike.

Two shapes. The *shared* slab is appended to: small writes and downloaded chunks; a new one is begun
every ``SEGMENT`` bytes. A *private* slab belongs to one file while it is written; a byte lies at its
offset in the file. In both a range is given once and never again, and so is the number of a slab.
What is in use, and so what may be punched or deleted, :mod:`mountfs.local.space` alone decides.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path

from mountfs.local.extents import Extent, ExtentMap

SEGMENT = 64 << 20
"""Bytes after which appending goes on in a new slab."""
OPEN_FILES = 64
"""Slab files kept open."""
FREE_SHARE = 0.10
"""Share of the disk that slabs leave free."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


class Slabs:
    """The directory of slab files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._files: OrderedDict[int, int] = OrderedDict()
        self._ids = {int(path.stem) for path in directory.glob("*.slab")}
        self.last = max(self._ids, default=0)
        """The last number given to a slab."""
        self._shared = 0
        self._tail = 0
        self._given: dict[int, ExtentMap] = {}
        """What of the private slabs of this run was given."""
        self.live: Counter[int] = Counter()
        """Bytes in use, by slab."""
        self.used = 0
        """Bytes in use, of all."""

    def _path(self, slab: int) -> Path:
        return self._directory / f"{slab:016d}.slab"

    def file(self, slab: int) -> int:
        """The open file of a slab. It may be closed again at the next call. Raises OSError(EIO) when it is gone."""
        fd = self._files.get(slab)
        if fd is None:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            if slab < 0:
                raise OSError(errno.EIO, "lost before the nodes had it")
            try:
                fd = self._files[slab] = os.open(self._path(slab), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise OSError(errno.EIO, f"slab {slab} is gone") from None
        else:
            self._files.move_to_end(slab)
        return fd

    def _create(self) -> int:
        self.last += 1
        slab = self.last
        os.close(os.open(self._path(slab), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._ids.add(slab)
        return slab

    def create_private(self) -> int:
        """A new slab for one file, in which ranges are given by :meth:`claim`."""
        slab = self._create()
        self._given[slab] = ExtentMap()
        return slab

    def open(self, slab: int) -> int:
        """A descriptor of the caller's own, which stays good on any thread, whatever happens to the slab."""
        return os.dup(self.file(slab))

    def claimable(self, slab: int, position: int, length: int) -> bool:
        """Whether :meth:`claim` would give a range."""
        given = self._given.get(slab)
        return given is not None and not given.overlapping(position, position + length)

    def claim(self, slab: int, position: int, length: int) -> bool:
        """Take a range of a private slab. False when some of it was given before, or the slab has gone."""
        if not self.claimable(slab, position, length):
            return False
        self._given[slab].put(Extent(position, length, slab, position, 0))
        self._account(slab, length)
        return True

    def advance(self, length: int) -> tuple[int, int]:
        """Take room at the end of the shared slab; returns slab and position."""
        if not self._shared or self._tail + length > SEGMENT:
            self._shared, self._tail = self._create(), 0
        position = self._tail
        self._tail += length
        self._account(self._shared, length)
        return self._shared, position

    def _account(self, slab: int, length: int) -> None:
        self.live[slab] += length
        self.used += length

    def write(self, slab: int, position: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` to a range that was given. Raises OSError(ENOSPC)."""
        write_at(self.file(slab), position, [data])

    def read(self, slab: int, position: int, length: int) -> bytes:
        """Read exactly ``length`` bytes. Raises OSError(EIO) when the slab is shorter."""
        return read_at(self.file(slab), position, length)

    def punch(self, slab: int, position: int, length: int) -> None:
        """Give a range back to the disk."""
        if _libc.fallocate(self.file(slab), _PUNCH_HOLE_KEEP_SIZE, position, length):
            code = ctypes.get_errno()
            if code != errno.EOPNOTSUPP:
                raise OSError(code, os.strerror(code))

    def delete(self, slab: int) -> None:
        """Delete a slab that nothing refers to."""
        fd = self._files.pop(slab, None)
        if fd is not None:
            os.close(fd)
        self._path(slab).unlink(missing_ok=True)
        self._ids.discard(slab)
        self._given.pop(slab, None)
        self.used -= self.live.pop(slab, 0)
        if slab == self._shared:
            self._shared = 0

    def holds(self, slab: int, end: int) -> bool:
        """Whether the file of a slab is there and reaches up to ``end``."""
        try:
            return os.stat(self._path(slab)).st_size >= end
        except FileNotFoundError:
            return False

    def size(self, slab: int) -> int:
        """Where the file of a slab ends."""
        return os.fstat(self.file(slab)).st_size

    def on_disk(self, slab: int) -> int:
        """Bytes a slab takes on the disk."""
        return os.fstat(self.file(slab)).st_blocks * 512

    def ids(self) -> set[int]:
        return set(self._ids)

    def __contains__(self, slab: int) -> bool:
        return slab in self._ids

    def disk(self) -> tuple[int, int]:
        """(bytes available to slabs before FREE_SHARE is touched, bytes of the disk)."""
        stat = os.statvfs(self._directory)
        total = stat.f_blocks * stat.f_frsize
        return int(stat.f_bavail * stat.f_frsize - total * FREE_SHARE), total

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def write_at(fd: int, position: int, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write all of ``pieces``, one behind the other. Raises OSError(ENOSPC)."""
    for piece in pieces:
        done = os.pwrite(fd, piece, position)
        while done < len(piece):
            done += os.pwrite(fd, memoryview(piece)[done:], position + done)
        position += done


def read_at(fd: int, position: int, length: int) -> bytes:
    """Read exactly ``length`` bytes. Raises OSError(EIO) when the slab is shorter."""
    data = os.pread(fd, length, position)
    while len(data) < length:
        more = os.pread(fd, length - len(data), position + len(data))
        if not more:
            raise OSError(errno.EIO, f"the slab ends before byte {position + length}")
        data += more
    return data
