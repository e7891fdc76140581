"""``mountfs umount``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mountfs import mounts
from mountfs.cli import live
from mountfs.cli.options import LocalPath
from mountfs.cli.settings import absolute
from mountfs.errors import Busy, MountError, NotMounted, Pending
from mountfs.holders import holders, some


class Unknown(MountError):
    """The mount is that of another user, or a second one of a file system that is mounted elsewhere."""


@click.command("umount")
@click.argument("mountpoint", type=LocalPath())
@click.option("--deadline", type=click.FloatRange(0), metavar="SECONDS", help="How long to wait for what is pending.")
@click.option("--lazy", is_flag=True, help="Unmount even while processes use the mount.")
def command(mountpoint: Path, deadline: float | None, lazy: bool) -> None:
    """Send what is pending to the nodes, then unmount MOUNTPOINT.

    What cannot be sent before the deadline is named; it stays in the journal and is sent at the next mount.
    """
    unmount(mountpoint, deadline=deadline, lazy=lazy)


def unmount(mountpoint: Path, *, deadline: float | None, lazy: bool) -> None:
    """Unmount in order, waiting up to ``deadline`` seconds, None for what the mount has.

    Raises ``Pending`` when something could not be sent; ``Busy`` when it is used, unless ``lazy``; ``MountError``.
    """
    point = absolute(mountpoint)
    record = mounts.record_of(point)
    mounted = mounts.find(point)
    if not mounted and not record:
        raise NotMounted(f"{mountpoint}: not a mountfs mount")
    if not record or not record.running:
        if mounted and mounts.probe(point) != "dead":
            raise Unknown(f"{mountpoint}: its process is not known here: unmount as its user, or with umount -i")
        mounts.unmount(point, lazy=True)
        click.echo(f"{point}: its process had died; what it had accepted is sent at the next mount", err=True)
        return
    if mounted and not lazy and (names := holders(mounted, ignore=(record.pid, os.getpid()))):
        raise Busy(f"{point}: in use by {some(names)}")
    deadline = record.drain_deadline if deadline is None else deadline
    try:
        pending = live.drain(record, "stop", {"lazy": lazy}, deadline=deadline)
    except NotMounted:
        # It went away while it was asked; what counts is whether it is gone.
        pending = []
    if not live.wait_for_end(record, live.GRACE):
        raise NotMounted(f"{point}: process {record.pid} does not end; kill it and run the command again")
    if pending:
        live.name_pending(pending)
        raise Pending(f"{point}: unmounted, {len(pending)} not on the nodes yet; they are sent at the next mount")
