"""From a path on the command line to what the server calls it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from mountfs import control, mounts
from mountfs.cli import live
from mountfs.errors import MountError, NotMounted, Pending

CATCH_UP = 15.0
"""Seconds a mount may take to show what was just committed."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A path in a mount, as far as there is something now."""

    record: mounts.Record
    shown: str
    """As it was given, but without what names a time or a version."""
    names: tuple[bytes, ...]
    """The path below the root of the bucket."""
    bucket: str
    directories: tuple[bytes, ...]
    """File ids from the root of the bucket on, down to the innermost directory of the path that exists."""
    left: tuple[bytes, ...]
    """The names behind that directory: all but perhaps the first stand for nothing."""
    file: bytes
    """File id of what the path names; empty when there is nothing."""
    mode: int
    moment: str
    """The time that a path through ``.versions/@…`` names."""
    version: str
    """The version that a path through ``.versions/NAME/…`` names."""


def target(path: str | os.PathLike[str]) -> Target:
    """Where a path leads, one through a directory of versions too.

    What is pending is sent first: history is what the server has. Raises ``MountError``: ``Pending`` when that does
    not go, at once when the server is known to be away.
    """
    shown = os.fspath(path)
    point = Path(os.path.abspath(os.path.expanduser(shown)))
    if point.parent != point:
        # Not the last component: of a symbolic link the link itself is meant.
        point = Path(os.path.realpath(point.parent), point.name)
    mounted = mounts.containing(point)
    record = live.record_at(mounted.point if mounted else point)
    _send_pending(record)
    params = {"path": os.path.relpath(point, record.mountpoint)}
    found = control.call(record.control, "locate", params, timeout=live.GRACE)
    if found["moment"] or found["version"]:
        shown = os.path.join(record.mountpoint, *([] if record.bucket else [found["bucket"]]), *found["names"])
    return Target(
        record,
        shown,
        tuple(map(os.fsencode, found["names"])),
        found["bucket"],
        tuple(map(bytes.fromhex, found["directories"])),
        tuple(map(os.fsencode, found["left"])),
        bytes.fromhex(found["file"]),
        found["mode"],
        found["moment"],
        found["version"],
    )


def _send_pending(record: mounts.Record) -> None:
    status = control.call(record.control, "status", timeout=live.GRACE)
    if not status["connected"]:
        raise MountError(f"{record.url} does not answer, and history is there; mountfs status tells since when")
    pending = live.drain(record, "sync", {}, deadline=record.drain_deadline)
    if pending:
        live.name_pending(pending)
        raise Pending(f"{record.mountpoint}: {len(pending)} not on the nodes yet")


def show_in_mount(place: Target, seq: int) -> None:
    """Return when the mount shows what commit ``seq`` did; warns when that takes too long."""
    params = {"bucket": place.bucket, "seq": seq, "deadline": CATCH_UP}
    try:
        shown = control.call(place.record.control, "catch-up", params, timeout=CATCH_UP + live.GRACE)["shown"]
    except NotMounted:
        shown = False
    if not shown:
        click.echo("mountfs: done on the server, but the mount does not show it yet", err=True)
