"""``mountfs log``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click

from mountfs.cli.history import versions
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import target
from mountfs.cli.history.show import local_time, print_json, printable, utc_time
from mountfs.cli.history.versions import short
from mountfs.cli.options import LocalPath, show_size
from nodeserver.protocol.wire import MAX_VERSIONS, Event, FileId, Version, VersionId

NUMBER = 100
"""Lines that are shown unless told otherwise."""
MOST = 100_000
"""Events that one line tells of at most."""
FEW = 5
"""So few events have a line each."""
NAMED = 4
"""How many of its files a line for many names."""
PAUSE = 10_000_000_000
"""Nanoseconds without an event that tell what was done at a time from what was done before."""


@click.command("log")
@click.argument("path", type=LocalPath(), default=".")
@click.option("-n", "number", type=click.IntRange(0), default=NUMBER, metavar="N", help="At most N lines; 0: all.")
@click.option("--each", is_flag=True, help="Every event on a line of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def command(path: Path, number: int, each: bool, as_json: bool) -> None:
    """Show what happened to PATH, newest first: a file with its versions, or everything below a directory.

    Also of what was deleted, wherever it was. Below a directory, what was done to many files in one go is one line,
    unless --each is given.
    """
    place = target(path)
    collected: list[dict[str, Any]] = []

    async def work(talk: Talk) -> bool:
        spot = await versions.find(talk, place)
        kept = {version.id: version for version in await versions.history(talk, spot)}
        shown = 0
        each_alone = each or as_json or not spot.is_dir
        async with aclosing(_runs(_events(talk, spot.file, number), 1 if each_alone else MOST)) as runs:
            async for run in runs:
                if number and shown == number:
                    return True
                shown += 1
                if as_json:
                    collected.append(plain(run[0], kept))
                elif len(run) < FEW:
                    for event in run:
                        click.echo(line(event, kept))
                else:
                    click.echo(summary(run))
        return False

    more = talk_of(place.record, place.bucket, work)
    if as_json:
        print_json(collected)
    elif more:
        click.echo(f"mountfs: there is more; -n 0 shows all (| less), -n {2 * number} twice as much", err=True)


async def _events(talk: Talk, file: FileId, number: int) -> AsyncGenerator[Event, None]:
    before, limit = 0, min(number + 1 if number else MAX_VERSIONS, MAX_VERSIONS)
    while True:
        page = await talk.client.log(talk.name, file, before, limit)
        for event in page.events:
            yield event
        before = page.before
        if not before:
            return


async def _runs(events: AsyncGenerator[Event, None], most: int) -> AsyncGenerator[list[Event], None]:
    """Events in lists of up to ``most`` that one line may tell: of a kind, by one client, without a pause."""
    run: list[Event] = []
    async with aclosing(events):
        async for event in events:
            if run and (len(run) >= most or _kind(event) != _kind(run[0]) or run[-1].time_ns - event.time_ns > PAUSE):
                yield run
                run = []
            run.append(event)
    if run:
        yield run


def _kind(event: Event) -> tuple[str, bytes]:
    return "write" if event.kind in ("create", "setattr") else event.kind, event.client


def plain(event: Event, kept: Mapping[VersionId, Version]) -> dict[str, Any]:
    """An event for programs."""
    version = kept.get(event.version)
    return {
        "time": utc_time(event.time_ns),
        "event": event.kind,
        "path": os.fsdecode(event.path),
        "new_path": os.fsdecode(event.new_path) or None,
        "version": event.version.hex() or None,
        "number": version.number if version else None,
        "size": event.size if event.version else None,
        "detail": event.detail,
        "author": event.author,
        "client": event.client_name,
        "file": event.file.hex(),
        "seq": event.seq,
    }


def summary(run: list[Event]) -> str:
    """Many events for people."""
    kinds = Counter(event.kind for event in run)
    paths = list(dict.fromkeys(event.new_path or event.path for event in run))
    top = os.path.commonpath([os.path.dirname(path) for path in paths])
    some = ", ".join(printable(os.path.basename(path)) for path in paths[:NAMED])
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    who = " on ".join(filter(None, (run[0].author, run[0].client_name)))
    names = f"{len(paths)} names: {some}" + (", …" if len(paths) > NAMED else "")
    return f"{local_time(run[0].time_ns)}  {what}  {printable(top) or '.'}/  {names}" + (f"  [{who}]" if who else "")


def line(event: Event, kept: Mapping[VersionId, Version]) -> str:
    """An event for people. ``kept`` has the versions whose numbers are known."""
    words = [printable(event.path)]
    if event.new_path:
        words.append(f"{'<->' if event.kind == 'exchange' else '->'} {printable(event.new_path)}")
    if event.version:
        version = kept.get(event.version)
        number = f"#{version.number} " if version else ""
        words += (f"{number}{short(event.version)}", show_size(event.size))
    if event.detail:
        words.append(f"({event.detail})")
    who = " on ".join(filter(None, (event.author, event.client_name)))
    return f"{local_time(event.time_ns)}  {event.kind:<8}  {'  '.join(words)}" + (f"  [{who}]" if who else "")
