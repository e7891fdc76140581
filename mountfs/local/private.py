"""Directories that nobody else may look into."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from mountfs.errors import MountError

log = logging.getLogger(__name__)


def make_private(directory: Path, known: set[str]) -> None:
    """Make a directory for its owner alone; an open one is closed if it is empty, or has a file ``known``, which says
    that it is ours. Raises MountError when it is somebody else's, OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = directory.stat().st_mode
    if not mode & 0o077:
        return
    names = set(os.listdir(directory)) - {"lost+found"}
    if names and known.isdisjoint(names):
        raise MountError(
            f"state directory {directory} is open to other users, and what is in it is not a mount's: "
            "chmod 700, or take another"
        )
    try:
        os.chmod(directory, stat.S_IMODE(mode) & 0o700)
        for entry in os.scandir(directory):
            if entry.is_file(follow_symlinks=False):
                os.chmod(entry.path, 0o600)
    except PermissionError:
        raise MountError(f"state directory {directory} is open to other users, and belongs to one of them") from None
    log.warning("%s was open to other users (mode %o): it is not any more", directory, stat.S_IMODE(mode))
