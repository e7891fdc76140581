"""``mountfs purge``."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import click

from mountfs.cli.history import versions
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import show_in_mount, target
from mountfs.cli.history.show import local_time, print_json, say
from mountfs.cli.options import LocalPath, show_size
from mountfs.errors import MountError
from nodeserver.protocol.wire import Purge, Purged, Version

SHOWN = 20
"""Versions that are named before they go."""


@click.command("purge")
@click.argument("path", type=LocalPath())
@click.option("--version", "ids", metavar="ID", multiple=True, help="Only this version; can be given again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(path: Path, ids: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Destroy the history of a file for good: all versions but what it holds now, or those given.

    Of a deleted file everything. The log keeps that it was done, and by whom. Asks first.
    """
    place = target(path)
    if place.moment:
        raise MountError(f"{path}: give the path of the file itself")
    ids += (place.version,) if place.version else ()

    async def look(talk: Talk) -> tuple[versions.Spot, list[Version]]:
        spot = await versions.find(talk, place)
        if not stat.S_ISREG(spot.mode):
            raise MountError(f"{path}: only files have versions; name the files to purge")
        history = await versions.history(talk, spot)
        if not ids:
            return spot, [version for version in history if not version.current]
        return spot, list({it.id: it for it in (versions.pick(history, text, place.shown) for text in ids)}.values())

    spot, going = talk_of(place.record, place.bucket, look)
    if not going:
        raise MountError(f"{path}: there are no versions but what it holds now")
    if not yes:
        _ask(str(path), going, spot.live)

    async def work(talk: Talk) -> Purged:
        chosen = [version.id for version in going] if ids else []
        return await talk.client.purge(talk.name, Purge(spot.directory, spot.name, chosen))

    answer = talk_of(place.record, place.bucket, work)
    show_in_mount(place, answer.seq)
    if as_json:
        print_json({"path": place.shown, "versions": answer.versions, "bytes": answer.bytes, "seq": answer.seq})
    else:
        say(f"{path}: {answer.versions} versions destroyed, {show_size(answer.bytes)} come free")


def _ask(path: str, going: list[Version], live: bool) -> None:
    """Tell what goes, and go on only when a person says so."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise MountError(f"{path}: {len(going)} versions would be destroyed for good; --yes does it without asking")
    for version in going[:SHOWN]:
        words = (
            local_time(version.committed_ns),
            f"#{version.number} {versions.short(version.id)}",
            show_size(version.size),
        )
        click.echo("  ".join(words), err=True)
    if len(going) > SHOWN:
        click.echo(f"and {len(going) - SHOWN} more", err=True)
    click.echo(
        f"{path}: what it holds now stays." if live else f"{path}: it is deleted and cannot come back.", err=True
    )
    if not click.confirm(f"Destroy {len(going)} versions for good?", err=True):
        raise MountError(f"{path}: nothing was destroyed")
