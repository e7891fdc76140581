"""``mountfs log``."""

from __future__ import annotations

import os
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
from mountfs.cli.options import show_size
from nodeserver.protocol.wire import MAX_VERSIONS, Event, FileId, Version, VersionId

NUMBER = 100
"""Events that are shown unless told otherwise."""


@click.command("log")
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("-n", "number", type=click.IntRange(0), default=NUMBER, metavar="N", help="At most N events; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def command(path: Path, number: int, as_json: bool) -> None:
    """Show what happened to PATH, newest first: a file with its versions, or everything below a directory.

    Also of what was deleted, wherever it was.
    """
    place = target(path)
    collected: list[dict[str, Any]] = []

    async def work(talk: Talk) -> bool:
        spot = await versions.find(talk, place)
        kept = {version.id: version for version in await versions.history(talk, spot)}
        shown = 0
        async with aclosing(_events(talk, spot.file, number)) as events:
            async for event in events:
                if number and shown == number:
                    return True
                shown += 1
                if as_json:
                    collected.append(plain(event, kept))
                else:
                    click.echo(line(event, kept))
        return False

    more = talk_of(place.record, place.bucket, work)
    if as_json:
        print_json(collected)
    elif more:
        click.echo(f"mountfs: there is more; -n 0 shows all, -n {2 * number} twice as much", err=True)


async def _events(talk: Talk, file: FileId, number: int) -> AsyncGenerator[Event, None]:
    before, limit = 0, min(number + 1 if number else MAX_VERSIONS, MAX_VERSIONS)
    while True:
        page = await talk.client.log(talk.name, file, before, limit)
        for event in page.events:
            yield event
        before = page.before
        if not before:
            return


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
