"""``mountfs doctor``."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import click

from mountfs import control, mounts
from mountfs.cli import deep as looking
from mountfs.cli import settings
from mountfs.cli.bucket import ask, server_options
from mountfs.cli.finding import Finding
from mountfs.cli.options import LocalPath, show_size
from mountfs.errors import MountError
from nodeserver.client import BadAnswer, Refused, Unreachable
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import PROTOCOL, Server

SKEW = 5.0
"""Seconds two clocks may differ before times of files mislead."""
ROOM = 0.1
"""Part of the disk that has to stay free."""
LATELY = 3600.0
"""Seconds for which an error of a mount is worth a warning."""
FUSE_DEVICE = Path("/dev/fuse")


@click.command("doctor")
@click.option("--state", metavar="DIR", type=LocalPath(), help="Also check this state directory.")
@click.option("--deep", is_flag=True, help="Also read every cached chunk of the state directories, and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@server_options
def command(state: Path | None, deep: bool, as_json: bool, url: str | None, token_file: str | None) -> None:
    """Check what mountfs needs on this machine, the mounts, and their servers; say how to mend what fails.

    Checks the server at --url, or those of all mounts. Exit code 1 when a check fails.
    """
    findings = []
    for finding in chain(examine(state, url, token_file), examine_content(state) if deep else ()):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    if any(finding.outcome == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


def examine(state: Path | None, url: str | None, token_file: str | None) -> Iterator[Finding]:
    """Run the checks, each as it is asked for."""
    yield check_device()
    yield check_helper()
    yield check_library()
    yield check_directory(mounts.state_root(), "state directory")
    if state:
        yield check_directory(state, "state")
    records = mounts.records()
    for record in records:
        yield check_mount(record)
        yield check_directory(Path(record.state), f"state of {record.mountpoint}")
    if url:
        address, bucket = settings.parse_source(url)
        yield from check_server(address, lambda: _token(address, bucket, token_file, state))
    else:
        for address in sorted({record.url for record in records}):
            record = next(record for record in records if record.url == address)
            yield from check_server(address, lambda: settings.find_token(token_file, None, Path(record.state)))  # noqa: B023


def examine_content(state: Path | None) -> Iterator[Finding]:
    """Look at the content in the state directory given, or in those of all mounts."""
    for path in [state.absolute()] if state else sorted({Path(record.state) for record in mounts.records()}):
        yield from looking.examine(path)


def check_device() -> Finding:
    """FUSE in the kernel, and the permission to use it."""
    name = "FUSE device"
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            cure = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        else:
            cure = f"chmod 666 {FUSE_DEVICE}; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding(name, "failed", f"{FUSE_DEVICE}: {error.strerror}", cure)
    return Finding(name, "ok", f"{FUSE_DEVICE} can be opened")


def check_helper() -> Finding:
    """fusermount3, which mounts for those who are not root."""
    name = "fusermount3"
    found = shutil.which(name)
    if not found:
        return Finding(name, "failed", "not installed", "apt-get install fuse3")
    if os.geteuid() and not os.stat(found).st_mode & stat.S_ISUID:
        return Finding(name, "failed", f"{found} is not setuid root", f"chown root {found} && chmod 4755 {found}")
    return Finding(name, "ok", found)


def check_library() -> Finding:
    """The Python binding of libfuse."""
    try:
        import pyfuse3
    except ImportError as error:
        return Finding("libfuse", "failed", str(error), "apt-get install fuse3 libfuse3-dev, then make setup")
    return Finding("libfuse", "ok", f"pyfuse3 {pyfuse3.__version__}")


def check_directory(path: Path, what: str) -> Finding:
    """That a directory, or the nearest that exists above it, can be written and has room."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        return Finding(what, "failed", f"{path}: no permission in {place}", f"chown {os.geteuid()} {place}")
    usage = shutil.disk_usage(place)
    detail = f"{path}: {show_size(usage.free)} of {show_size(usage.total)} free"
    if usage.free < usage.total * ROOM:
        return Finding(
            what, "warning", detail, "make room: the cache leaves a tenth of the disk free and shrinks for it"
        )
    return Finding(what, "ok", detail)


def check_mount(record: mounts.Record) -> Finding:
    """That a mount answers."""
    name = f"mount {record.mountpoint}"
    source = record.url + (f"/{record.bucket}" if record.bucket else "")
    again = f"mountfs mount {source} {record.mountpoint} --state {record.state}"
    if not record.running:
        return Finding(name, "failed", "its process has died", again)
    if mounts.probe(Path(record.mountpoint)) == "silent":
        return Finding(name, "failed", "does not answer", f"kill {record.pid}, then {again}")
    try:
        status = control.call(record.control, "status")
    except MountError as error:
        return Finding(name, "failed", str(error), f"kill {record.pid}, then {again}")
    if not status["connected"]:
        return Finding(name, "warning", "works without its server", "see the checks of the server")
    if lost := [f"bucket {it['bucket']}: {it['text']}" for it in status.get("rewound", ()) if it["lost"]]:
        return Finding(name, "warning", "; ".join(lost), f"all names: mountfs status --json {record.mountpoint}")
    if full := status.get("full"):
        return Finding(name, "warning", "; ".join(full), "make room where it says")
    lately = [error["text"] for error in status["errors"] if time.time() - error["time"] < LATELY]
    if lately:
        return Finding(name, "warning", lately[-1], f"mountfs status {record.mountpoint} tells what else there was")
    return Finding(name, "ok", f"process {record.pid}, connected")


def check_server(url: str, token: Callable[[], str]) -> Iterator[Finding]:
    """That a server answers, takes the token, and has about our time."""
    reachable, accepted = f"server {url}", f"token for {url}"
    try:
        secret = token()
    except MountError as error:
        yield Finding(accepted, "failed", str(error), "take the server's DIR/admin.token, mode 0600")
        return
    began = time.time()
    try:
        answer = ask(url, secret, lambda client: client.server())
    except MountError as error:
        yield from _explain(error.__cause__, reachable, accepted)
        return
    yield Finding(reachable, "ok", f"nodeserver {answer.version}, {show_size(answer.free_bytes)} free")
    yield Finding(accepted, "ok", "accepted")
    yield check_protocol(url, answer)
    yield check_clock(url, answer.time_ns / 1e9, (began + time.time()) / 2)
    if answer.epoch:
        yield check_nodes(url, secret)


def check_nodes(url: str, token: str) -> Finding:
    """That the nodes are up and chunks have the pieces they should."""
    name = f"nodes of {url}"
    try:
        found = ask(url, token, lambda client: client.status())
    except MountError as error:
        return Finding(name, "warning", str(error), "ask another node: nodeserver status")
    if found.healthy:
        return Finding(name, "ok", f"{found.up} of {found.nodes} are up")
    cure = "start the nodes that are down; nodeserver status and nodeserver workers show how repairs go"
    return Finding(name, "warning", "; ".join(found.problems), cure)


def check_protocol(url: str, server: Server) -> Finding:
    """That both sides speak the same protocol."""
    name = f"protocol of {url}"
    if server.protocol != PROTOCOL:
        return Finding(
            name, "failed", f"{server.protocol}, this is {PROTOCOL}", "install the same release on both sides"
        )
    return Finding(name, "ok", str(PROTOCOL))


def check_clock(url: str, theirs: float, ours: float) -> Finding:
    """That the clocks agree. Both in seconds."""
    name, skew = f"clock of {url}", theirs - ours
    detail = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW:
        return Finding(name, "failed", detail, "run a time service on both: apt-get install systemd-timesyncd")
    return Finding(name, "ok", detail)


def _explain(error: BaseException | None, reachable: str, accepted: str) -> Iterator[Finding]:
    if isinstance(error, Refused) and error.code in (Code.UNAUTHORIZED, Code.FORBIDDEN):
        yield Finding(reachable, "ok", "answers")
        yield Finding(accepted, "failed", str(error), "take the server's DIR/admin.token, mode 0600")
    elif isinstance(error, Unreachable):
        yield Finding(reachable, "failed", str(error), "start it: nodeserver serve --data DIR --listen HOST:PORT")
    elif isinstance(error, BadAnswer):
        yield Finding(reachable, "failed", str(error), "check the address: what answers is no nodeserver")
    else:
        yield Finding(reachable, "failed", str(error), "see the server's log")


def _token(address: str, bucket: str | None, given: str | None, state: Path | None) -> str:
    configured = settings.from_files(address, bucket, None).get("token_file")
    return settings.find_token(given, configured, state or settings.default_state(address, bucket))


def _show(finding: Finding) -> None:
    color = {"ok": "green", "warning": "yellow", "failed": "red"}[finding.outcome]
    click.echo(f"{click.style(f'{finding.outcome:8}', fg=color)}{finding.check}: {finding.detail}")
    if finding.cure:
        click.echo(f"        → {finding.cure}")
