"""``mountfs status``."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mountfs import control, mounts
from mountfs.cli import live
from mountfs.cli.options import show_size
from mountfs.errors import MountError, NotMounted

ANSWER = 10.0
"""Seconds a mount may take to answer."""


@click.command("status")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or without MOUNTPOINT an array of them.")
def command(mountpoint: Path | None, as_json: bool) -> None:
    """Show how a mount is doing, or all of them."""
    if mountpoint:
        record = live.record_at(mountpoint)
        found = [control.call(record.control, "status", timeout=ANSWER)]
    else:
        found = [_ask(record) for record in mounts.records()]
    if as_json:
        click.echo(json.dumps(found[0] if mountpoint else found, indent=2))
    elif found:
        for number, status in enumerate(found):
            if number:
                click.echo()
            _show(status)
    else:
        click.echo("nothing is mounted")
    if broken := [status["mountpoint"] for status in found if "problem" in status]:
        raise NotMounted(f"no answer from {', '.join(broken)}")


def _ask(record: mounts.Record) -> dict[str, Any]:
    """A mount's status; of one that does not answer, what its record knows and the problem."""
    try:
        if not record.running:
            raise NotMounted("its process has died; mount it again, or unmount it")
        return control.call(record.control, "status", timeout=ANSWER)
    except MountError as error:
        return {
            "mountpoint": record.mountpoint,
            "url": record.url,
            "bucket": record.bucket,
            "pid": record.pid,
            "state": record.state,
            "problem": str(error),
        }


def _show(status: dict[str, Any]) -> None:
    for name, value in _rows(status):
        click.echo(f"{name:<13}{value}")


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a status, as label and text."""
    source = status["url"] + (f"/{status['bucket']}" if status.get("bucket") else "")
    rows = [("mount point", status["mountpoint"]), ("source", source)]
    if "problem" in status:
        return [*rows, ("problem", status["problem"])]
    pending, cache = status["pending"], status["cache"]
    since = f"since {_moment(status['since'])}"
    rows += [
        ("server", f"connected {since}" if status["connected"] else f"NOT connected {since}; changes are kept here"),
        *_nodes(status.get("nodes", [])),
        ("requests", str(status["requests"])),
        ("pending", f"{pending['operations']} operations, {show_size(pending['bytes'])}"),
        *(("", name) for name in pending["files"][: live.SHOWN]),
        *([("", f"and {len(pending['files']) - live.SHOWN} more")] if len(pending["files"]) > live.SHOWN else []),
        *(
            ("lost", f"{name}: bytes of it are gone, reading them fails; write it anew or delete it")
            for name in status["lost"]
        ),
        ("cache", f"{show_size(cache['used'])} of {show_size(cache['cap'])}, {show_size(cache['dirty'])} not yet sent"),
        ("process", f"{status['pid']}, running since {_moment(status['started'])}"),
        ("state", status["state"]),
    ]
    return rows + [("error", f"{_moment(error['time'])}: {error['text']}") for error in status["errors"]]


def _nodes(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How many nodes there are, and which of them are not up; nothing of a server alone."""
    if len(nodes) < 2:
        return []
    rest = [f"{node['id'][-8:]} {node['state']}" for node in nodes if node["state"] != "up"]
    up = f"{len(nodes) - len(rest)} of {len(nodes)} up"
    return [("nodes", f"{up} ({', '.join(rest)})" if rest else up)]


def _moment(seconds: float) -> str:
    """A time for people: the time of day, with the date when it is not today's."""
    moment = datetime.fromtimestamp(seconds, UTC).astimezone()
    recent = time.time() - seconds < 12 * 3600
    return moment.strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M:%S")
