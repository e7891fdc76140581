"""``mountfs up``: a private node server and a mount of it, kept alive until a signal ends them in order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
from pathlib import Path
from typing import Any

import click

from mountfs import mounts
from mountfs.cli import live, options, settings
from mountfs.cli.bucket import ask
from mountfs.cli.supervise import MEMORY, STOP, Mount, Server, Signals, remembered
from mountfs.config import MountConfig, MountOptions
from mountfs.errors import Misused, MountError
from mountfs.notify import notify
from nodeserver.client import Client

FIRST_BUCKET = "files"


@click.command("up")
@click.argument("mountpoint", type=options.LocalPath(), default="~/Buckets")
@click.option("--data", metavar="DIR", type=options.LocalPath(), help="Directory of the server's data.")
@click.option("--cache-size", type=options.Size(), help="Most bytes the cache may take, such as 20G.")
@click.option("-o", "mount_options", metavar="OPT,…", multiple=True, help="Mount options, as in mount(8).")
def command(mountpoint: Path, data: Path | None, cache_size: int | None, mount_options: tuple[str, ...]) -> None:
    """Serve a folder from this machine and mount it at MOUNTPOINT (default: ~/Buckets).

    Starts a private node server, mounts it and stays in the foreground. Ctrl-C sends what is pending, unmounts and
    stops the server; the next start finds the same files.
    """
    data = Path(os.path.abspath(data.expanduser())) if data else _data_home() / "mountfs/server"
    state = mounts.state_root() / f"up-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    values = options.parse(options.split(mount_options)) | ({"cache_size": cache_size} if cache_size else {})
    if misplaced := values.keys() & {"state", "token_file"}:
        raise Misused(f"mount option {min(misplaced)} has no place here: mountfs up has its own")
    point = settings.absolute(mountpoint)
    with mounts.locked(state / "up.lock", f"mountfs up is running already: {data}"), Signals() as signals:
        _end_leftovers(state)
        _make_folder(point)
        with Server(data, state) as server:
            mount = Mount(_config(server, point, state, values))
            mount.start()
            click.echo(f"Your folder is {point}. The directories in it are buckets: put files into these,")
            click.echo(f"for example into {point}/{FIRST_BUCKET}. mkdir makes another bucket, with a lower-case name.")
            click.echo("Ctrl-C stops; your files stay.")
            notify("READY=1")
            while not signals.stop:
                pause = min(server.tend(), mount.tend())
                if mount.unmounted:
                    break
                signals.wait(pause)
            notify("STOPPING=1")
            mount.stop()


def _config(server: Server, point: Path, state: Path, values: dict[str, Any]) -> MountConfig:
    """The mount of ``server``, which gets a first bucket when it has none."""
    token = settings.read_token(server.data / "admin.token")

    async def first_bucket(client: Client) -> None:
        if not await client.buckets():
            await client.create_bucket(FIRST_BUCKET, uid=os.getuid(), gid=os.getgid())

    ask(server.url, token, first_bucket)
    fields = MountOptions.__dataclass_fields__.keys()
    chosen = MountOptions(**{key: value for key, value in values.items() if key in fields})
    rest = {key: value for key, value in values.items() if key not in fields}
    return MountConfig(url=server.url, bucket=None, mountpoint=point, token=token, state=state, options=chosen, **rest)


def _end_leftovers(state: Path) -> None:
    """End what a killed run left: its mount, which is draining, then its server."""
    for record in mounts.records():
        if record.state == str(state) and record.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGTERM)
            if not live.wait_for_end(record, MountConfig.drain_deadline):
                raise MountError(f"{record.mountpoint}: process {record.pid} of an earlier run does not end; kill it")
    memory = remembered(state / MEMORY)
    pid = memory.get("pid", 0)
    if pid and mounts.process_start(pid) == memory["start"]:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            os.kill(pid, signal.SIGTERM)
            if not select.select([process], [], [], STOP)[0]:
                os.kill(pid, signal.SIGKILL)
            os.close(process)


def _make_folder(point: Path) -> None:
    """The mount point as an empty directory. Raises ``MountError``."""
    if mounts.find(point):
        return
    try:
        point.mkdir(parents=True, exist_ok=True)
        empty = not any(os.scandir(point))
    except OSError as error:
        raise MountError(f"{point}: {error.strerror}") from None
    if not empty:
        raise MountError(f"{point} is not empty: mounting would hide what is in it; choose another folder")


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"))
