"""Taking a mount off the tree. All of it blocks while the kernel waits for the mount: to be called in a thread."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

from mountfs import mounts
from mountfs.errors import Busy
from mountfs.holders import elsewhere, holders, other_mounts, some
from mountfs.mounts import Mounted

log = logging.getLogger(__name__)


def leave(point: Path, device: str) -> None:
    """Unmount the file system ``device`` at ``point``, which ends it.

    Raises Busy when something still uses it, also when it is off ``point`` but mounted elsewhere; MountError.
    """
    mount = _ours(point, device)
    if mount is None:
        raise Busy(f"{point}: unmounted already, and still in use")
    if names := other_mounts(mount):
        raise Busy(f"{point}: in use by {some(names)}")
    try:
        mounts.unmount(point)
    except Busy:
        names = holders(mount, ignore=(os.getpid(),))
        raise Busy(f"{point}: in use by {some(names) or 'something that this user cannot see'}") from None
    if elsewhere(device):
        raise Busy(f"{point}: unmounted, but mounted elsewhere too, and goes on there")


def detach(point: Path, device: str) -> None:
    """Unmount whatever uses it. What the kernel has collected of writes is handed over. Raises MountError."""
    if _ours(point, device) and (top := mounts.top(point)) and top.device == device:
        root = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.unmount(point, lazy=True)
            _syncfs(root, point)
        finally:
            os.close(root)


def flush(point: Path) -> None:
    """Make the kernel hand over what it has collected of writes."""
    try:
        root = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.info("%s: %s", point, error.strerror)  # it is going already
        return
    try:
        _syncfs(root, point)
    finally:
        os.close(root)


def _syncfs(root: int, point: Path) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(root):
        # It tells errors of long ago too. What is pending decides.
        log.info("syncfs %s: %s", point, os.strerror(ctypes.get_errno()))


def _ours(point: Path, device: str) -> Mounted | None:
    return next((one for one in reversed(mounts.mounted()) if one.point == point and one.device == device), None)
