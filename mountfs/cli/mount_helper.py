"""``mount.mountfs``: what mount(8) calls for a line of fstab; as ``mount.fuse.mountfs`` also to remount."""

from __future__ import annotations

import ctypes
import errno
import getopt
import os
import sys
from pathlib import Path
from typing import Any

import click

from mountfs import control
from mountfs.cli import launch, live, options, settings
from mountfs.errors import Busy, MountError

USAGE = 1
FAILED = 32
"""Exit codes, as mount(8) has them."""


FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}
"""What a remount can change, as bits of mount(2) and statvfs(3)."""
NO_ATIME = 1024 | 2048
RELATIME = 4096, 1 << 21
"""In statvfs(3), in mount(2)."""
REMOUNT = 32


def main() -> None:
    """``mount.mountfs SOURCE TARGET [-sfnv] [-o OPTIONS]``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Mount, or mount again, as told; returns the exit code."""
    try:
        found, positional = getopt.gnu_getopt(arguments, "sfnvN:o:t:h", ["help"])
        source, target = positional
    except (getopt.GetoptError, ValueError) as error:
        reason = error.msg if isinstance(error, getopt.GetoptError) else "a source and a target are needed"
        click.echo(f"mount.mountfs: {reason}\nUsage: mount.mountfs URL[/BUCKET] TARGET [-sfnv] [-o OPTIONS]", err=True)
        return USAGE
    flags = {name for name, _ in found}
    given = options.split(value for name, value in found if name == "-o")
    try:
        wanted = options.parse(given, sloppy="-s" in flags)
        if "remount" in given:
            remount(Path(target), wanted)
            return 0
        config = settings.build(source, Path(target), wanted)
        if "-f" not in flags:
            launch.background(config)
    except MountError as error:
        click.echo(f"mount.mountfs: {error}", err=True)
        return FAILED
    return 0


def remount(target: Path, wanted: dict[str, Any]) -> None:
    """Make a mount read-only or not, and what else the kernel enforces. Raises ``MountError`` for other changes."""
    record = live.record_at(target)
    point = os.fsencode(record.mountpoint)
    if os.geteuid():
        raise MountError("only root may remount: unmount it, and mount it again")
    rest = {key: str(value) if key == "state" else value for key, value in wanted.items() if key not in FLAGS}
    control.call(record.control, "compare", rest)
    now = os.statvfs(point).f_flag
    bits = REMOUNT | now & NO_ATIME | (RELATIME[1] if now & RELATIME[0] else 0)
    for name, bit in FLAGS.items():
        bits |= bit if wanted.get(name, now & bit) else 0
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, point, None, ctypes.c_ulong(bits), None):
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            raise Busy(f"{record.mountpoint}: a file in it is open for writing")
        raise MountError(f"{record.mountpoint}: {os.strerror(code)}")
