"""``mountfs undo``."""

from __future__ import annotations

import stat
from pathlib import Path

import click

from mountfs.cli.history import restoring, versions
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import Target, target
from mountfs.cli.history.restoring import Outcome
from mountfs.cli.options import LocalPath
from mountfs.cli.progress import Count, counting
from mountfs.cli.restore import finish
from mountfs.errors import MountError
from nodeserver.protocol.wire import MAX_VERSIONS, Occupant, Version

PAUSE = 60_000_000_000
"""Nanoseconds without a removal that tell one deletion of a directory from an earlier one in it."""


@click.command("undo")
@click.argument("path", type=LocalPath())
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(path: Path, as_json: bool) -> None:
    """Take the last change of a file's content back, or bring back what was deleted.

    A second undo takes back the first.
    """
    place = target(path)
    if place.moment or place.version:
        raise MountError(f"{path}: give the path of the file itself; mountfs restore takes this one")
    if place.file and stat.S_ISDIR(place.mode):
        raise MountError(f"{path}: is a directory; mountfs restore {path} --at TIME makes it what it was")
    if place.file and not stat.S_ISREG(place.mode):
        raise MountError(f"{path}: keeps no versions; mountfs restore {path} --at TIME makes it what it was")

    async def work(talk: Talk, count: Count) -> Outcome:
        return await _step_back(talk, place) if place.file else await _bring_back(talk, place, count)

    outcome = counting(
        f"restoring {path}", lambda count: talk_of(place.record, place.bucket, lambda talk: work(talk, count))
    )
    finish(place, place, outcome, dry_run=False, as_json=as_json)


async def _step_back(talk: Talk, place: Target) -> Outcome:
    """The version before the present one; a file that only came back from deletion is deleted again."""
    spot = await versions.find(talk, place)
    history = await versions.history(talk, spot)
    now = next((number for number, version in enumerate(history) if version.current), len(history) - 1)
    if history and await _only_came_back(talk, spot, history[: now + 1]):
        return await restoring.remove(talk, spot)
    if now < 1:
        raise MountError(f"{place.shown}: there is no version before this one")
    was = restoring.Was(await versions.file_of(talk, history[now - 1]), [], history[now - 1].seq)
    return await restoring.put_back(talk, place, was, None, delete=False, dry_run=False, count=Count())


async def _only_came_back(talk: Talk, spot: versions.Spot, history: list[Version]) -> bool:
    """Whether a file was deleted before, and has since been what it was then."""
    *earlier, here = await talk.client.occupants(talk.name, spot.directory, spot.name)
    if (
        not earlier
        or earlier[-1].until_seq == here.since_seq
        or [it for it in history[:-1] if it.seq >= here.since_seq]
    ):
        return False
    before = await versions.lookup_at(talk, spot.directory, [spot.name], earlier[-1].until_seq - 1)
    if not before or not before[0].version:
        return False
    return (await talk.client.version(talk.name, before[0].version)).hash == history[-1].hash


async def _bring_back(talk: Talk, place: Target, count: Count) -> Outcome:
    spot = await versions.find(talk, place)
    last = (await talk.client.occupants(talk.name, spot.directory, spot.name))[-1]
    seq = (await _first_removal(talk, last) if stat.S_ISDIR(last.mode) else last.until_seq) - 1
    was = await restoring.was_at(talk, place, seq, "the time before it was deleted")
    return await restoring.put_back(talk, place, was, None, delete=False, dry_run=False, count=count)


async def _first_removal(talk: Talk, directory: Occupant) -> int:
    """The commit that began to remove a directory with all that was in it, which is many removals in a row."""
    first, time_ns, client = directory.until_seq, directory.until_ns, b""
    before = directory.until_seq + 1
    while before:
        page = await talk.client.log(talk.name, directory.file, before, MAX_VERSIONS)
        for event in page.events:
            if event.kind == "setattr" and stat.S_ISDIR(event.mode):
                continue
            if event.kind != "unlink" or (client and event.client != client) or time_ns - event.time_ns > PAUSE:
                return first
            first, time_ns, client = event.seq, event.time_ns, event.client
        before = page.before
    return first
