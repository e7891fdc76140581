"""``mountfs mount``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mountfs.cli import launch, options, settings


@click.command("mount")
@click.argument("source", metavar="URL[/BUCKET]")
@click.argument("mountpoint", type=options.LocalPath())
@click.option(
    "--token-file", metavar="FILE", help="File with the token (default: $MOUNTFS_TOKEN_FILE, or the last used)."
)
@click.option("--state", metavar="DIR", help="Directory of the local database, journal and cache.")
@click.option("--cache-size", type=options.Size(), help="Most bytes the cache may take, such as 20G.")
@click.option("-o", "mount_options", metavar="OPT,…", multiple=True, help="Mount options, as in mount(8).")
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@click.option("--debug", is_flag=True, help="Log more.")
def command(
    source: str,
    mountpoint: Path,
    mount_options: tuple[str, ...],
    foreground: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Mount the buckets of a node server, or one of them, at MOUNTPOINT.

    Without BUCKET the buckets are the directories of the root. Returns once the mount answers.
    """
    config = settings.build(
        source,
        mountpoint,
        options.parse(options.split(mount_options)) | {key: value for key, value in given.items() if value is not None},
    )
    if foreground:
        launch.foreground(config, debug=debug)
    else:
        launch.background(config, debug=debug)
