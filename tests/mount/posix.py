"""Calls of Linux that the standard library lacks."""

from __future__ import annotations

import ctypes
import errno
import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
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
