"""Mounts that run, as the verbs that command them see them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mountfs import control, mounts
from mountfs.cli.progress import waiting
from mountfs.cli.settings import absolute
from mountfs.errors import MountError, NotMounted

GRACE = 30.0
"""Seconds a mount may take to answer beyond the deadline that it was given."""
SHOWN = 20
"""How many pending names a message lists."""


def record_at(path: Path) -> mounts.Record:
    """The mount that ``path`` lies in. Raises ``NotMounted``."""
    point = absolute(path)
    mounted = mounts.find(point) or mounts.containing(point)
    record = mounts.record_of(mounted.point) if mounted else mounts.record_of(point)
    if record is None:
        raise NotMounted(
            f"{path}: mounted, but not by this user, or its record is lost"
            if mounted
            else f"{path}: not in a mountfs mount"
        )
    if not record.running:
        raise NotMounted(f"{record.mountpoint}: its process has died; mount it again, or unmount it")
    return record


def drain(record: mounts.Record, command: str, params: dict[str, Any], *, deadline: float) -> list[str]:
    """Ask the mount to send what is pending; returns the names of what is left when the deadline passes."""

    def remaining() -> int | None:
        with contextlib.suppress(MountError, KeyError):
            return int(control.call(record.control, "status", timeout=1.0)["pending"]["bytes"])
        return None

    answer = waiting(
        f"sending changes to {record.url}",
        lambda: control.call(record.control, command, {**params, "deadline": deadline}, timeout=deadline + GRACE),
        remaining,
    )
    pending: list[str] = answer.get("pending", [])
    if told := answer.get("told"):
        for text in told:
            click.echo(text["text"], err=True)
        if any(text["lost"] for text in told):
            raise MountError("what was lost is named by mountfs status")
    return pending


def refused(record: mounts.Record, target: Path, command: str = "refused") -> dict[str, Any]:
    """Ask the mount what the server refuses of ``target`` and what is below it, or command something about that."""
    below = str(target.relative_to(record.mountpoint))
    return control.call(record.control, command, {"below": "" if below == "." else below}, timeout=GRACE)


def name_pending(names: Iterable[str]) -> None:
    """List what is not on the nodes yet, on standard error."""
    names = list(names)
    for name in names[:SHOWN]:
        click.echo(f"pending: {name}", err=True)
    if len(names) > SHOWN:
        click.echo(f"pending: and {len(names) - SHOWN} more", err=True)


def wait_for_end(record: mounts.Record, timeout: float) -> bool:
    """Whether the daemon ends within ``timeout`` seconds."""
    import select

    if not record.running:
        return True
    try:
        process = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], timeout)[0])
    finally:
        os.close(process)
