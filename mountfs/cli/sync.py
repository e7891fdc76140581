"""``mountfs sync``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mountfs.cli import live
from mountfs.cli.options import LocalPath
from mountfs.errors import MountError, Pending


@click.command("sync")
@click.argument("path", type=LocalPath(), default=".")
@click.option("--deadline", type=click.FloatRange(0), metavar="SECONDS", help="How long to wait.")
def command(path: Path, deadline: float | None) -> None:
    """Wait until everything under PATH (default: the current directory) is durable on the nodes."""
    record = live.record_at(path)
    deadline = record.drain_deadline if deadline is None else deadline
    target = Path(os.path.abspath(path.expanduser()))
    if not target.is_relative_to(record.mountpoint):
        target = Path(os.path.realpath(target))
    if not os.path.lexists(target):
        raise MountError(f"{path}: no such file or directory")
    pending = live.drain(record, "sync", {"path": str(target)}, deadline=deadline)
    if pending:
        live.name_pending(pending)
        raise Pending(f"{path}: {len(pending)} not on the nodes yet; see mountfs status")
    if refused := live.refused(record, target)["refused"]:
        for one in refused[: live.SHOWN]:
            click.echo(f"refused: {one['path']}: {one['reason']}", err=True)
        raise Pending(f"{path}: {len(refused)} refused by the server, the rest is on the nodes; see mountfs refused")
