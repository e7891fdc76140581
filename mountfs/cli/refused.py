"""``mountfs refused``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from mountfs import mounts
from mountfs.cli import live
from mountfs.errors import MountError

PATH = click.argument("path", type=click.Path(path_type=Path), default=".")


@click.group("refused")
def command() -> None:
    """What the server refuses for good: it stays here, can be read, and holds up nothing else.

    It is tried again when its file changes again, and goes when its file is deleted.
    """


@command.command("list")
@PATH
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(path: Path, as_json: bool) -> None:
    """List what is refused of PATH (default: the current directory) and what is below it."""
    found = live.refused(*_place(path))["refused"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        _show(found)
    else:
        click.echo("nothing is refused")


@command.command("retry")
@PATH
def retry(path: Path) -> None:
    """Send what is refused of PATH and below again, for instance after the server was upgraded."""
    record, target = _place(path)
    if not live.refused(record, target, "refused-retry")["refused"]:
        click.echo("nothing is refused")
        return
    pending = live.drain(record, "sync", {}, deadline=record.drain_deadline)
    found = live.refused(record, target)["refused"]
    if found:
        _show(found)
        raise MountError(f"{path}: {len(found)} refused again")
    if pending:
        live.name_pending(pending)
    click.echo("nothing is refused any more")


@command.command("drop")
@PATH
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(path: Path, yes: bool) -> None:
    """Give up what is refused of PATH and below, with all that needs it: the mount shows what the server has.

    Content and names that only this mount has are lost. Asks first.
    """
    record, target = _place(path)
    found = live.refused(record, target)["refused"]
    if not found:
        click.echo("nothing is refused")
        return
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise MountError(f"{path}: {len(found)} changes would be lost; --yes does it without asking")
        _show(found)
        if not click.confirm(f"Give up {len(found)} changes and what needs them?", err=True):
            raise MountError(f"{path}: nothing was given up")
    for name in live.refused(record, target, "refused-drop")["paths"]:
        click.echo(f"given up: {name}")


def _place(path: Path) -> tuple[mounts.Record, Path]:
    """The mount that a path lies in, and the path as that knows it."""
    record = live.record_at(path)
    target = Path(os.path.abspath(path.expanduser()))
    return record, target if target.is_relative_to(record.mountpoint) else Path(os.path.realpath(target))


def _show(found: list[dict[str, Any]]) -> None:
    for one in found:
        needed = f"; {one['needed_by']} later changes need it" if one["needed_by"] else ""
        click.echo(f"{one['path']}: {one['operation']}: {one['reason']}{needed}")
