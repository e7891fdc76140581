"""File operations that survive a loss of power once they have returned."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


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


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def read_at(fd: int, length: int, offset: int) -> bytes:
    """``length`` bytes at ``offset``; fewer where the file ends before."""
    data = os.pread(fd, length, offset)
    if 0 < len(data) < length:
        data += read_at(fd, length - len(data), offset + len(data))
    return data
