"""Who asks the file system for something."""

from __future__ import annotations

from typing import NamedTuple


class Caller(NamedTuple):
    """User and group of the calling process. The kernel has checked what it may do."""

    uid: int
    gid: int
