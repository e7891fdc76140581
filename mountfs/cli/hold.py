"""``mountfs hold``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mountfs import control
from mountfs.cli.history import versions
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import Target, target
from mountfs.cli.history.show import local_time, print_json, say, utc_time
from mountfs.cli.live import GRACE
from mountfs.cli.options import LocalPath
from mountfs.errors import MountError
from nodeserver.protocol.wire import Hold


@click.command("hold")
@click.argument("path", type=LocalPath(), default=".")
@click.option("--note", default="", metavar="TEXT", help="Why it is held.")
@click.option("--release", is_flag=True, help="End the hold.")
@click.option("--list", "list_", is_flag=True, help="List what is held in the bucket of PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of what is held.")
def command(path: Path, note: str, release: bool, list_: bool, as_json: bool) -> None:
    """Keep all history of PATH, a file or a directory with all below it, until the hold is released.

    Neither retention nor purge takes anything out of what is held.
    """
    if release + list_ + bool(note) > 1:
        raise click.UsageError("--note, --release and --list exclude each other")
    if not list_ and click.get_current_context().get_parameter_source("path") is click.core.ParameterSource.DEFAULT:
        raise click.UsageError("name the PATH to hold")
    place = target(path)

    async def work(talk: Talk) -> list[Hold]:
        if list_:
            return await talk.client.holds(talk.name)
        return await _release(talk, place) if release else await _hold(talk, place, note)

    holds = talk_of(place.record, place.bucket, work)
    paths = _paths(place, holds)
    if as_json:
        print_json([_plain(hold, paths) for hold in holds])
        return
    for hold in holds:
        what = paths.get(hold.file, f"file {hold.file.hex()}") if list_ else place.shown
        words = (local_time(hold.time_ns), what, hold.note, f"[{hold.author}]")
        say("  ".join(filter(None, words)) if list_ else f"{what}: {'no longer held' if release else 'held'}")


async def _hold(talk: Talk, place: Target, note: str) -> list[Hold]:
    spot = await versions.find(talk, place)
    return [await talk.client.hold(talk.name, spot.file, note)]


async def _release(talk: Talk, place: Target) -> list[Hold]:
    """End the holds of what has the path, and of all whose history that continues."""
    spot = await versions.find(talk, place)
    files = {spot.file, *(version.file for version in await versions.history(talk, spot))}
    if spot.directory:
        files |= {one.file for one in await talk.client.occupants(talk.name, spot.directory, spot.name)}
    holds = [hold for hold in await talk.client.holds(talk.name) if hold.file in files]
    if not holds:
        raise MountError(f"{place.shown}: not held itself; mountfs hold --list shows what is")
    for hold in holds:
        await talk.client.release(talk.name, hold.file)
    return holds


def _paths(place: Target, holds: list[Hold]) -> dict[bytes, str]:
    """Where what is held is in the mount, as far as that knows."""
    params = {"files": [hold.file.hex() for hold in holds]}
    found = control.call(place.record.control, "paths", params, timeout=GRACE)["paths"]
    return {bytes.fromhex(file): path for file, path in found.items()}


def _plain(hold: Hold, paths: dict[bytes, str]) -> dict[str, Any]:
    return {
        "file": hold.file.hex(),
        "path": paths.get(hold.file),
        "time": utc_time(hold.time_ns),
        "author": hold.author,
        "note": hold.note,
    }
