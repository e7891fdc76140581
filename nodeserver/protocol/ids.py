"""Identifiers: UUIDv7 (RFC 9562), and the inode number derived from one."""

from __future__ import annotations

import os
import time

ROOT_INO = 1
"""The inode number FUSE gives the root of a mount."""


def new_id() -> bytes:
    """A fresh UUIDv7 as 16 bytes: 48 bits of milliseconds, 12 of the fraction of one, then 62 random bits.

    Ids made one after the other sort in that order (RFC 9562, section 6.2, method 3).
    """
    millis, rest = divmod(time.time_ns(), 1_000_000)
    value = bytearray(
        millis.to_bytes(6, "big") + (0x7000 | (rest << 12) // 1_000_000).to_bytes(2, "big") + os.urandom(8)
    )
    value[8] = 0x80 | value[8] & 0x3F
    return bytes(value)


def ino_of(file_id: bytes) -> int:
    """The inode number of a file: the 62 random bits at the end of its id, never 0 or ``ROOT_INO``.

    Derived, so that it is the same in every mount and after every restart without a table.
    Two files collide with probability n²/2⁶³ for n files; who stores inodes must still check.
    """
    ino = int.from_bytes(file_id[8:], "big") & (1 << 62) - 1
    return ino if ino > ROOT_INO else ino + (1 << 62)
