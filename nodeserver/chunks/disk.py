"""File operations that survive a loss of power once they have returned."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
"""Bytes that direct writes are aligned to: no disk asks for more."""
PIECE = 4 << 20
"""Bytes in one direct write."""
_IDLE = (1, 0, 3 << 13)
"""IOPRIO_WHO_PROCESS, the calling thread, IOPRIO_CLASS_IDLE."""

log = logging.getLogger(__name__)


class _Aligned(threading.local):
    """A buffer for each thread that writes."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, PIECE)


_aligned = _Aligned()


def sync_dir(path: Path | str) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path) -> None:
    """Create a directory and its parents, durably. One that exists is left as it is."""
    if path.is_dir():
        return
    make_dir(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    # Also when another thread made it: that one may not have got to this line yet.
    sync_dir(path.parent)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def write_new(fd: int, data: bytes) -> None:
    """Write all of ``data`` to an empty file, durable on return.

    Past the page cache where the file system lets it: on a virtual machine, where fresh pages are dear, that takes a
    third of the processor time, and what is stored is rarely read soon.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        _write_direct(fd, data)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        write_at(fd, data, 0)
    os.fdatasync(fd)


def _write_direct(fd: int, data: bytes) -> None:
    """Through a buffer whose address and length are as disks want them."""
    view = memoryview(data)
    for offset in range(0, len(view), PIECE):
        piece = view[offset : offset + PIECE]
        _aligned.buffer[: len(piece)] = piece
        write_at(fd, memoryview(_aligned.buffer)[: -(-len(piece) // BLOCK) * BLOCK], offset)
    os.ftruncate(fd, len(view))  # what the last block has behind the end goes


def idle_priority() -> None:
    """Have the disk serve all others before this thread, where its scheduler knows priorities (bfq, mq-deadline).

    By ioprio_set(2), for which the C library has no function.
    """
    number = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
    if number is not None and ctypes.CDLL(None, use_errno=True).syscall(number, *_IDLE) < 0:
        log.info("ioprio_set: %s", os.strerror(ctypes.get_errno()))


def read_at(fd: int, length: int, offset: int) -> bytes:
    """``length`` bytes at ``offset``; fewer where the file ends before."""
    data = os.pread(fd, length, offset)
    if 0 < len(data) < length:
        data += read_at(fd, length - len(data), offset + len(data))
    return data
