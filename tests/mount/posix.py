"""Calls of Linux that the standard library lacks, and two helpers for those it has."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
AT_FDCWD = -100


class NotSupported(OSError):
    """EOPNOTSUPP: this file system does not do that."""


_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(source: bytes | str | os.PathLike[str], target: bytes | str | os.PathLike[str], flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        raise OSError(number := ctypes.get_errno(), os.strerror(number))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError, NotSupported."""
    call = _libc.fallocate64
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, mode, offset, length):
        kind = NotSupported if ctypes.get_errno() == errno.EOPNOTSUPP else OSError
        raise kind(number := ctypes.get_errno(), os.strerror(number))


@contextlib.contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """Raises AssertionError unless the block raises OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at below
        yield
    assert errno.errorcode[caught.value.errno or 0] in [errno.errorcode[number] for number in numbers]


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A file descriptor for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
