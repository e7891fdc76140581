"""``umount.fuse.mountfs``: what umount(8) calls, so that it returns when what is pending is sent."""

from __future__ import annotations

import getopt
import sys
from pathlib import Path

import click

from mountfs import mounts
from mountfs.cli import umount
from mountfs.cli.settings import absolute
from mountfs.errors import MountError

USAGE = 1
"""The exit code, as umount(8) has it."""


def main() -> None:
    """``umount.fuse.mountfs MOUNTPOINT [-flnrv] [-N NAMESPACE] [-t TYPE]``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Unmount as told; returns the exit code, which is that of ``mountfs umount``."""
    try:
        found, [target] = getopt.gnu_getopt(arguments, "flnrvN:t:")
    except (getopt.GetoptError, ValueError):
        click.echo("Usage: umount.fuse.mountfs MOUNTPOINT [-flnrv]", err=True)
        return USAGE
    flags = {name for name, _ in found}
    point, lazy = Path(target), bool(flags & {"-f", "-l"})
    try:
        try:
            umount.unmount(point, deadline=0 if "-f" in flags else None, lazy=lazy)
        except umount.Unknown:
            mounts.unmount(absolute(point), lazy=lazy)
    except MountError as error:
        click.echo(f"umount.fuse.mountfs: {error}", err=True)
        return error.exit_code
    return 0
