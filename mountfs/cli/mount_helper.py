"""``mount.mountfs``: what mount(8) calls for a line of fstab."""

from __future__ import annotations

import getopt
import sys
from pathlib import Path

import click

from mountfs.cli import launch, options, settings
from mountfs.errors import MountError

USAGE = 1
FAILED = 32
"""Exit codes, as mount(8) has them."""


def main() -> None:
    """``mount.mountfs SOURCE TARGET [-sfnv] [-o OPTIONS]``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Mount as told; returns the exit code."""
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
        config = settings.build(source, Path(target), options.parse(given, sloppy="-s" in flags))
        if "-f" not in flags:
            launch.background(config)
    except MountError as error:
        click.echo(f"mount.mountfs: {error}", err=True)
        return FAILED
    return 0
