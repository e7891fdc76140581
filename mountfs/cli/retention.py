"""``mountfs retention``."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from mountfs.cli.bucket import server, server_options
from mountfs.cli.history import policy as policies
from mountfs.cli.history.node import Talk, talk, talk_of
from mountfs.cli.history.paths import target
from mountfs.cli.history.show import print_json, say
from mountfs.cli.options import show_size
from mountfs.cli.progress import waiting
from mountfs.errors import Misused, MountError, NotMounted
from nodeserver.protocol.names import valid_bucket
from nodeserver.protocol.wire import FileId, Policy, RetentionReport

T = TypeVar("T")

ACTIONS = ("show", "set", "unset", "run")
RUN = 3600.0
"""Seconds a run may take; a preview too."""


class Place(NamedTuple):
    """A directory whose policy is asked about."""

    shown: str
    directories: tuple[FileId, ...]
    """From the root of its bucket on; empty for the root itself, whatever its id."""
    talk: Callable[[Callable[[Talk], Awaitable[Any]]], Any]


class Found(NamedTuple):
    """The policy that applies, and where it was set."""

    policy: Policy
    origin: str
    """``here``, ``above``, ``bucket``, ``default``."""
    directory: FileId


@click.command("retention")
@click.argument("action", metavar="[show|set|unset|run]", required=False)
@click.argument("where", metavar="BUCKET|DIR", required=False)
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Tell what would go now, and take nothing out.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@server_options
def command(
    action: str | None,
    where: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    url: str | None,
    token_file: str | None,
) -> None:
    """Show or set which versions of files are kept, and for how long.

    A policy holds for a directory and all below it, up to the next directory that has its own. set changes the
    settings named, unset takes the whole policy away, run applies the policy at once.
    """
    action, where = _in_order(action, where)
    if bool(settings) != (action == "set"):
        raise click.UsageError("set needs KEY=VALUE" if action == "set" else f"{action} takes no KEY=VALUE")
    if dry_run and action in ("set", "unset"):
        raise MountError(f"{action} with --dry-run: the server can only tell what goes under a policy that is set")
    place = _place(where, url, token_file)

    async def work(talk: Talk) -> dict[str, Any]:
        directory = place.directories[-1] if place.directories else talk.bucket.root
        under = directory if directory != talk.bucket.root else b""
        report: RetentionReport | None = None
        if action in ("set", "unset"):
            base = (await _applying(talk, place)).policy
            if directory != talk.bucket.root:
                base = msgspec.structs.replace(base, max_share=None)  # only a whole bucket has it
            new = policies.changed(base, settings) if action == "set" else None
            await talk.client.set_retention(talk.name, directory, new)
        elif dry_run:
            report = await talk.client.retention_preview(talk.name, under, deadline=RUN)
        elif action == "run":
            report = await talk.client.run_retention(talk.name, under, deadline=RUN)
        return _plain(place, await _applying(talk, place), report)

    answer = waiting(f"retention of {where}", lambda: place.talk(work))
    if as_json:
        print_json(answer)
    else:
        _show(answer, dry_run=dry_run)


def _in_order(action: str | None, where: str | None) -> tuple[str, str]:
    """What to do, and where: as given, the other way round, or the place alone."""
    if action not in ACTIONS or where is None:
        action, where = where or "show", action
    if where is None or action not in ACTIONS:
        raise click.UsageError(f"give one of {', '.join(ACTIONS)}, then a bucket or a directory")
    return action, where


def _place(where: str, url: str | None, token_file: str | None) -> Place:
    """A bucket by name, or a directory in a mount. Raises ``MountError``."""
    try:
        if url is None and os.path.lexists(where):
            here = target(where)
            if not here.file or not stat.S_ISDIR(here.mode):
                raise MountError(f"{where}: not a directory")
            return Place(where, here.directories, lambda work: talk_of(here.record, here.bucket, work))
    except NotMounted:
        if "/" in where or not valid_bucket(where):
            raise
    if not valid_bucket(where):
        raise Misused(f"{where}: no such directory, and no name of a bucket")
    address, token = server(url, token_file)
    return Place(where, (), lambda work: talk(address, token, where, work))


async def _applying(talk: Talk, place: Place) -> Found:
    answer = await talk.client.retention(talk.name)
    set_at = dict(answer.policies)
    for directory in reversed(place.directories or (talk.bucket.root,)):
        if directory in set_at:
            here = directory == (place.directories or (talk.bucket.root,))[-1]
            origin = "here" if here else "bucket" if directory == talk.bucket.root else "above"
            return Found(set_at[directory], origin, directory)
    return Found(answer.default, "default", b"")


ORIGINS = {
    "here": "set here",
    "above": "set in a directory above",
    "bucket": "set for the bucket",
    "default": "the default",
}


def _plain(place: Place, found: Found, report: RetentionReport | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "path": place.shown,
        "policy": policies.shown(found.policy),
        "origin": found.origin,
        "directory": found.directory.hex() or None,
    }
    if report:
        answer["report"] = {"versions": report.versions, "files": report.files, "bytes": report.bytes}
    return answer


def _show(answer: dict[str, Any], *, dry_run: bool) -> None:
    if report := answer.get("report"):
        verb = "would go" if dry_run else "went"
        click.echo(
            f"{report['versions']} versions of {report['files']} files {verb},"
            f" {show_size(report['bytes'])} {'would come' if dry_run else 'come'} free"
        )
        return
    say(f"{answer['path']}: {ORIGINS[answer['origin']]}")
    for name, value in answer["policy"].items():
        click.echo(f"{name}={value}")
