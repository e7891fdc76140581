"""Slabs: the files that hold content on this machine, staged and cached alike.

Two shapes. The *shared* slab is appended to: small writes and downloaded chunks; a new one is begun
every ``SEGMENT`` bytes. A *private* slab belongs to one file while it is written; a byte lies at its
offset in the file. What refers to slabs is in the database; a slab nothing refers to is deleted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SEGMENT = 64 << 20
"""Bytes after which appending goes on in a new slab."""
OPEN_FILES = 64
"""Slab files kept open."""
FREE_SHARE = 0.10
"""Share of the disk that slabs leave free."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


class Place(NamedTuple):
    """A range of a slab that is reserved for bytes to come."""

    slab: int
    position: int
    length: int
    fd: int
    """For :func:`write_at` on any thread."""


class Slabs:
    """The directory of slab files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._files: OrderedDict[int, int] = OrderedDict()
        self._ids = {int(path.stem) for path in directory.glob("*.slab")}
        self._last = max(self._ids, default=0)
        self._shared = 0
        self._tail = 0
        self._reserved: Counter[int] = Counter()
        self.used = sum(os.stat(self._path(slab)).st_blocks * 512 for slab in self._ids)
        """Bytes the slabs take on disk."""

    def _path(self, slab: int) -> Path:
        return self._directory / f"{slab:016d}.slab"

    def file(self, slab: int) -> int:
        """The open file of a slab. It may be closed again at the next call."""
        fd = self._files.get(slab)
        if fd is None:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            fd = self._files[slab] = os.open(self._path(slab), os.O_RDWR | os.O_CLOEXEC)
        else:
            self._files.move_to_end(slab)
        return fd

    def create(self) -> int:
        """A new empty slab."""
        self._last += 1
        slab = self._last
        os.close(os.open(self._path(slab), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._ids.add(slab)
        return slab

    def open(self, slab: int) -> int:
        """A descriptor of the caller's own, which stays good on any thread, whatever happens to the slab."""
        return os.dup(self.file(slab))

    @property
    def growing(self) -> set[int]:
        """Slabs that will be referred to though nothing may do so yet."""
        return {self._shared, *self._reserved}

    def _advance(self, length: int) -> int:
        """Take room at the end of the shared slab; returns the position."""
        if not self._shared or self._tail + length > SEGMENT:
            self._shared, self._tail = self.create(), 0
        position = self._tail
        self._tail += length
        return position

    def append(self, data: bytes | memoryview) -> tuple[int, int]:
        """Store bytes in the shared slab; returns slab and position. Raises OSError(ENOSPC)."""
        position = self._advance(len(data))
        self.write(self._shared, position, data)
        self.used += len(data)
        return self._shared, position

    def reserve(self, length: int) -> Place:
        """Room in the shared slab, for a thread to write to; :meth:`settle` it afterwards. Raises OSError."""
        position = self._advance(length)
        place = Place(self._shared, position, length, self.open(self._shared))
        self._reserved[place.slab] += 1
        self.used += length
        return place

    def settle(self, place: Place, *, kept: bool) -> None:
        """What was reserved is written, and referred to if it is ``kept``."""
        os.close(place.fd)
        self._reserved[place.slab] -= 1
        self._reserved += Counter()
        if not kept:
            used = self.used
            self.punch(place.slab, place.position, place.length)
            self.used = max(0, used - place.length)

    def write(self, slab: int, position: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; ``used`` is the caller's to adjust. Raises OSError(ENOSPC)."""
        write_at(self.file(slab), position, [data])

    def read(self, slab: int, position: int, length: int) -> bytes:
        """Read exactly ``length`` bytes. Raises OSError(EIO) when the slab is shorter."""
        return read_at(self.file(slab), position, length)

    def punch(self, slab: int, position: int, length: int) -> None:
        """Give a range back to the disk."""
        if slab not in self._ids:
            return
        fd = self.file(slab)
        before = os.fstat(fd).st_blocks
        if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, position, length):
            code = ctypes.get_errno()
            if code != errno.EOPNOTSUPP:
                raise OSError(code, os.strerror(code))
        self.used = max(0, self.used - (before - os.fstat(fd).st_blocks) * 512)

    def delete(self, slab: int) -> None:
        """Delete a slab that nothing refers to."""
        if slab not in self._ids:
            return
        self.used = max(0, self.used - os.fstat(self.file(slab)).st_blocks * 512)
        os.close(self._files.pop(slab))
        os.unlink(self._path(slab))
        self._ids.discard(slab)
        if slab == self._shared:
            self._shared = 0

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
