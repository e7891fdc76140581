"""What a mount is started with, after command line, environment and configuration file are merged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class MountOptions:
    """The ``-o`` options, as in mount(8)."""

    ro: bool = False
    allow_other: bool = False
    uid: int | None = None
    """Show every file as owned by this user."""
    gid: int | None = None
    umask: int | None = None
    """Permission bits taken away from what files show."""
    noexec: bool = False
    """Run no programs from the mount."""
    nosuid: bool = False
    """Programs gain no privileges; always so unless root mounts."""
    nodev: bool = False
    """Device nodes do not open; always so unless root mounts."""
    xattr: bool = True
    writeback: bool = True
    """Let the kernel collect small writes."""
    close: Literal["local", "cluster"] = "local"
    """What close(2) waits for: the journal on this machine, or the nodes as fsync(2) does."""
    max_stale: float | None = None
    """Seconds for which what is known is shown while nobody says what others changed; None: for ever."""
    versions: Literal["hidden", "root", "off"] = "hidden"
    """Where the past can be looked up: in every directory, in the root of a bucket, or nowhere."""
    versions_name: str = ".versions"
    """What it is called there. No listing shows it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MountConfig:
    """Everything a mount daemon needs to know. Sizes in bytes, times in seconds."""

    url: str
    bucket: str | None
    """None mounts all buckets, as directories of the root."""
    mountpoint: Path
    token: str
    token_file: str = ""
    """Where it was read, as the command line said; for messages."""
    state: Path
    """Directory of the local database, journal and cache; one daemon at a time."""
    cache_size: int = 10 * GIB
    options: MountOptions = MountOptions()
    metadata_deadline: float = 10.0
    data_deadline: float = 60.0
    drain_deadline: float = 300.0
    """How long umount, SIGTERM and SIGINT wait for the journal to drain."""
    settle: float = 0.5
    """How long a change waits for others to join it before it is sent."""
