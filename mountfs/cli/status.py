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
from mountfs.cli.options import LocalPath, show_size
from mountfs.errors import MountError, NotMounted

STALE = 60.0
"""Seconds after which it is told that nothing was heard of what others change: twice as long as a server is silent."""
ANSWER = 10.0
"""Seconds a mount may take to answer."""


@click.command("status")
@click.argument("mountpoint", type=LocalPath(), required=False)
@click.option("--all", "every", is_flag=True, help="All mounts, also when called in one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or without MOUNTPOINT an array of them.")
def command(mountpoint: Path | None, every: bool, as_json: bool) -> None:
    """Show how a mount is doing: the one at MOUNTPOINT, the one you are in, or all of them."""
    others = 0
    if mountpoint:
        record = live.record_at(mountpoint)
        found = [control.call(record.control, "status", timeout=ANSWER)]
    else:
        records = mounts.records()
        here = [] if every else [record for record in records if record == _around()]
        found = [_ask(record) for record in here or records]
        others = len(records) - len(found)
    if as_json:
        click.echo(json.dumps(found[0] if mountpoint else found, indent=2))
    elif found:
        for number, status in enumerate(found):
            if number:
                click.echo()
            _show(status)
        if others:
            click.echo(f"\nand {others} more mount{'s' if others > 1 else ''}: mountfs status --all")
    else:
        click.echo("nothing is mounted")
    if broken := [status["mountpoint"] for status in found if "problem" in status]:
        raise NotMounted(f"no answer from {', '.join(broken)}")


def _around() -> mounts.Record | None:
    """The mount that the current directory is in."""
    try:
        return live.record_at(Path.cwd())
    except (MountError, OSError):  # in none, or in one that is dead
        return None


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
    if status["draining"]:
        rows.append(("draining", "it ends when what is pending is sent, or its time is over"))
    rows += [
        ("server", f"connected {since}" if status["connected"] else f"NOT connected {since}; changes are kept here"),
        *_names(status),
        *_nodes(status.get("nodes", [])),
        ("requests", str(status["requests"])),
        ("pending", f"{pending['operations']} operations, {show_size(pending['bytes'])}"),
        *(("", name) for name in pending["files"][: live.SHOWN]),
        *([("", f"and {len(pending['files']) - live.SHOWN} more")] if len(pending["files"]) > live.SHOWN else []),
        *((("refused" if first else ""), line) for first, line in _refused(status.get("refused", []))),
        *(
            ("lost", f"{name}: bytes of it are gone, reading them fails; write it anew or delete it")
            for name in status["lost"]
        ),
        ("cache", f"{show_size(cache['used'])} of {show_size(cache['cap'])}, {show_size(cache['dirty'])} not yet sent"),
        *(("full", reason) for reason in status.get("full", [])),
        ("process", f"{status['pid']}, running since {_moment(status['started'])}"),
        ("state", status["state"]),
    ]
    rows += [
        ("restored", f"{_moment(it['time'])}: bucket {it['bucket']}: {it['text']}") for it in status.get("rewound", ())
    ]
    return rows + [("error", f"{_moment(error['time'])}: {error['text']}") for error in status["errors"]]


def _refused(refused: list[dict[str, Any]]) -> list[tuple[bool, str]]:
    """What the server refuses for good, and whether it is the first line."""
    lines = [f"{one['path']}: {one['reason']}" for one in refused[: live.SHOWN]]
    if len(refused) > live.SHOWN:
        lines.append(f"and {len(refused) - live.SHOWN} more, see mountfs refused list")
    return [(not number, line) for number, line in enumerate(lines)]


def _names(status: dict[str, Any]) -> list[tuple[str, str]]:
    """How old what is shown may be; nothing while that is what it is now."""
    heard, bound = status.get("heard"), status.get("max_stale")
    if heard and status["connected"] and time.time() - heard < min(STALE, bound or STALE):
        return []
    text = f"as of {_moment(heard)}" if heard else "as of nobody knows when"
    text += ": what others changed since is not shown"
    if bound and heard:
        text += f", and from {_moment(heard + bound)} on nothing is (EIO)"
    return [("names", text)]


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
