"""``mountfs restore``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mountfs.cli.history import restoring, versions
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import Target, show_in_mount, target
from mountfs.cli.history.restoring import Outcome
from mountfs.cli.history.show import local_time, parse_time, print_json, printable, say
from mountfs.cli.options import LocalPath
from mountfs.cli.progress import Count, counting
from mountfs.errors import MountError

SIGNS = {"create": "+", "link": "+", "content": "~", "attributes": "~", "replace": "~", "delete": "-"}
"""How a change is shown."""


@click.command("restore")
@click.argument("path", type=LocalPath())
@click.option("--version", "version", metavar="ID", help="The version of a file to restore, as mountfs log shows it.")
@click.option("--at", "at", metavar="TIME", help="Restore what was there at this time.")
@click.option("--to", "to", metavar="DEST", type=LocalPath(), help="Restore here, a free name.")
@click.option("--delete", is_flag=True, help="Also remove what was not there then.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(
    path: Path, version: str | None, at: str | None, to: Path | None, delete: bool, dry_run: bool, as_json: bool
) -> None:
    """Make a file or a whole directory what it was, also a deleted one.

    History goes on: what is there now stays in it, and mountfs undo takes a restored version back. No content moves
    over the network. Files made since stay, unless --delete is given.
    """
    place = target(path)
    version, at = version or (place.version if not at else None), at or (place.moment if not version else None)
    if bool(version) == bool(at):
        raise click.UsageError("give either --version or --at")
    goal = target(to) if to else None
    time_ns = parse_time(at) if at else None

    async def work(talk: Talk, count: Count) -> Outcome:
        if time_ns is None:
            was = await restoring.was_version(talk, place, version or "")
        else:
            then = await versions.moment(talk, time_ns)
            was = await restoring.was_at(talk, place, then.seq, local_time(time_ns))
        return await restoring.put_back(talk, place, was, goal, delete=delete, dry_run=dry_run, count=count)

    outcome = counting(
        f"restoring {path}", lambda count: talk_of(place.record, place.bucket, lambda talk: work(talk, count))
    )
    finish(place, goal or place, outcome, dry_run=dry_run, as_json=as_json)


def finish(place: Target, goal: Target, outcome: Outcome, *, dry_run: bool, as_json: bool) -> None:
    """Wait for the mount, and tell what was done. Raises ``MountError`` when some of it was not."""
    if outcome.seq:
        show_in_mount(place, outcome.seq)
    changes = sorted(outcome.plan.changes.items(), key=lambda change: change[0].split(b"/"))
    top = os.fsencode(goal.shown)
    if as_json:
        print_json(
            {
                "path": goal.shown,
                "dry_run": dry_run,
                "changes": [{"path": os.fsdecode(_join(top, at)), "change": kind} for at, kind in changes],
                "unlinked": [os.fsdecode(_join(top, at)) for at in outcome.plan.unlinked],
                "problems": [{"path": os.fsdecode(_join(top, at)), "problem": it} for at, it in outcome.problems],
                "seq": outcome.seq,
            }
        )
    else:
        _show(goal, outcome, changes, dry_run)
    if outcome.problems:
        at, problem = outcome.problems[0]
        more = f" (and {len(outcome.problems) - 1} more)" if len(outcome.problems) > 1 else ""
        raise MountError(f"{printable(_join(top, at))}: {problem}{more}")


def _show(goal: Target, outcome: Outcome, changes: list[tuple[bytes, Any]], dry_run: bool) -> None:
    top = os.fsencode(goal.shown)
    if dry_run:
        for at, kind in changes:
            click.echo(f"{SIGNS[kind]} {printable(_join(top, at))}" + ("" if SIGNS[kind] != "~" else f" ({kind})"))
    for at in outcome.plan.unlinked:
        click.echo(f"mountfs: {printable(_join(top, at))}: restored, but no hard link; --delete makes it one", err=True)
    if not changes:
        say(f"{goal.shown}: the same already; nothing to do")
        return
    counts = [
        f"{sum(SIGNS[kind] == sign for _, kind in changes)} {word}"
        for sign, word in (("+", "back"), ("~", "changed"), ("-", "removed"))
        if any(SIGNS[kind] == sign for _, kind in changes)
    ]
    say(f"{goal.shown}: {', '.join(counts)}" + (" (dry run: nothing was done)" if dry_run else ""))


def _join(top: bytes, path: bytes) -> bytes:
    return b"/".join(filter(None, (top, path)))
