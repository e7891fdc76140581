"""From a path on the command line to what the server calls it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from mountfs import control, mounts
from mountfs.cli import live
from mountfs.errors import MountError, NotMounted, Pending

VERSIONS = ".versions"
"""The directory of versions, unless a mount gives it another name."""
CATCH_UP = 15.0
"""Seconds a mount may take to show what was just committed."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A path in a mount, as far as there is something now."""

    record: mounts.Record
    shown: str
    """As it was given."""
    relative: str
    """Below the mount point."""
    bucket: str
    directories: tuple[bytes, ...]
    """File ids from the root of the bucket on, down to the innermost directory of the path that exists."""
    left: tuple[bytes, ...]
    """The names behind that directory: all but perhaps the first stand for nothing."""
    file: bytes
    """File id of what the path names; empty when there is nothing."""
    mode: int
    moment: str = ""
    """The time that a path through ``.versions/@…`` names."""
    version: str = ""
    """The version that a path through ``.versions/NAME/…`` names."""

    @property
    def names(self) -> tuple[bytes, ...]:
        """The whole path below the root of the bucket."""
        parts = [part for part in os.fsencode(self.relative).split(b"/") if part not in (b"", b".")]
        return tuple(parts) if self.record.bucket else tuple(parts[1:])


def target(path: str | os.PathLike[str]) -> Target:
    """Where a path leads, one through a directory of versions too. Raises ``MountError``."""
    shown = os.fspath(path)
    plain, moment, version = split_versions(os.path.expanduser(shown))
    point = Path(os.path.abspath(plain))
    if point.parent != point:
        # Not the last component: of a symbolic link the link itself is meant.
        point = Path(os.path.realpath(point.parent), point.name)
    mounted = mounts.containing(point)
    record = live.record_at(mounted.point if mounted else point)
    relative = os.path.relpath(point, record.mountpoint)
    found = control.call(record.control, "locate", {"path": relative}, timeout=live.GRACE)
    return Target(
        record,
        shown,
        relative,
        found["bucket"],
        tuple(map(bytes.fromhex, found["directories"])),
        tuple(map(os.fsencode, found["left"])),
        bytes.fromhex(found["file"]),
        found["mode"],
        moment,
        version,
    )


def split_versions(path: str, versions: str = VERSIONS) -> tuple[str, str, str]:
    """A path through a directory of versions as a plain one, and the time or the version that it names.

    ``a/.versions/@-1h/b`` is ``a/b`` at ``@-1h``, ``a/.versions/b/NAME`` the version ``NAME`` of ``a/b``.
    """
    parts = path.split("/")
    if versions not in parts[:-1]:
        return path, "", ""
    at = parts.index(versions)
    before, first, rest = parts[:at], parts[at + 1], parts[at + 2 :]
    if first.startswith("@") and not first.startswith("@@"):
        return "/".join([*before, *rest]) or ("/" if path.startswith("/") else "."), first, ""
    name = first.removeprefix("@") if first.startswith("@@") else first
    if len(rest) > 1:
        raise MountError(f"{path}: not a version")
    return "/".join([*before, name]), "", rest[0] if rest else ""


def send_pending(place: Target) -> None:
    """Send what is pending in the mount: history is what the server has. Raises ``Pending`` when it does not go."""
    deadline = place.record.drain_deadline
    pending = live.drain(place.record, "sync", {}, deadline=deadline)
    if pending:
        live.name_pending(pending)
        raise Pending(f"{place.record.mountpoint}: {len(pending)} not on the nodes within {deadline:g} s")


def show_in_mount(place: Target, seq: int) -> None:
    """Return when the mount shows what commit ``seq`` did; warns when that takes too long."""
    params = {"bucket": place.bucket, "seq": seq, "deadline": CATCH_UP}
    try:
        shown = control.call(place.record.control, "catch-up", params, timeout=CATCH_UP + live.GRACE)["shown"]
    except NotMounted:
        shown = False
    if not shown:
        click.echo("mountfs: done on the server, but the mount does not show it yet", err=True)
