"""The processes of ``mountfs up``: a node server and a mount that are started again when they die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mountfs import mounts
from mountfs.cli import launch, live
from mountfs.config import MountConfig
from mountfs.errors import MountError, NotMounted, Pending

MEMORY = "up.json"
"""The file in the state directory that leads the next run to the port, and to a server that was left running."""
START = 30.0
STOP = 30.0
"""Seconds a server may take to be ready, and to end."""
BACKOFF = (1.0, 30.0)
"""Seconds until what died is started again: the first time, and at most."""
SETTLED = 60.0
"""Seconds after which a process counts as healthy again."""


class Signals:
    """Turns signals into a flag and wakes the one place that waits."""

    def __init__(self) -> None:
        self.stop = False

    def __enter__(self) -> Signals:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)
        signal.signal(signal.SIGCHLD, self._wake)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._read.close()
        self._write.close()

    def _wake(self, *_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            self._write.send(b"\0")

    def _end(self, *_: object) -> None:
        self.stop = True
        self._wake()
        # Once more means: do not wait any longer.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait(self, seconds: float) -> None:
        """Return when a signal came or the time is over."""
        select.select([self._read], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass


class _Backoff:
    """When something that died may be started again."""

    def __init__(self) -> None:
        self._delay = 0.0
        self._next = 0.0
        self.started = time.monotonic()

    def died(self) -> None:
        """Note a death; each soon after a start doubles the delay."""
        healthy = time.monotonic() - self.started > SETTLED
        self._delay = BACKOFF[0] if healthy or not self._delay else min(self._delay * 2, BACKOFF[1])
        self._next = time.monotonic() + self._delay

    def left(self) -> float:
        """Seconds until the next start."""
        return max(0.0, self._next - time.monotonic())


class Server:
    """The node server as a child process, on the same port over restarts and, when it is free, over runs."""

    def __init__(self, data: Path, state: Path) -> None:
        self.data = data
        self.log = state / "server.log"
        self._memory = state / MEMORY
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = _Backoff()
        self.url = ""

    def __enter__(self) -> Server:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        port = remembered(self._memory).get("port", 0)
        self._start(port if _is_free(port) else 0)
        try:
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def tend(self) -> float:
        """Start it again when it is down and the time has come; seconds until it is worth looking again."""
        if self._process and self._process.poll() is not None:
            click.echo(f"the server ended with {self._process.returncode}; see {self.log}", err=True)
            self._process = None
            self._backoff.died()
        if self._process is None and not (left := self._backoff.left()):
            self._start(int(self.url.rpartition(":")[2]))
            click.echo("the server is started again", err=True)
            return BACKOFF[1]
        return left if self._process is None else BACKOFF[1]

    def _start(self, port: int) -> None:
        program = Path(sys.executable).with_name("nodeserver")
        if self.log.exists() and self.log.stat().st_size > launch.LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [program, "serve", "--data", self.data, "--listen", f"127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,  # Ctrl-C is for us: the mount drains first
                env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
            )
        self._backoff.started = time.monotonic()
        memory = remembered(self._memory) | {
            "pid": self._process.pid,
            "start": mounts.process_start(self._process.pid),
        }
        _remember(self._memory, memory)

    def _await_ready(self) -> None:
        assert self._process
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], START)
        line = self._process.stdout.readline().decode(errors="replace").strip() if readable else ""
        word, _, self.url = line.partition(" ")
        if word != "ready":
            last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise MountError(f"the server did not start: {last or 'no answer'} (see {self.log})")
        _remember(self._memory, remembered(self._memory) | {"port": int(self.url.rpartition(":")[2])})


class Mount:
    """The mount daemon as a child process."""

    def __init__(self, config: MountConfig) -> None:
        self.config = config
        self.unmounted = False
        self._pid: int | None = None
        self._backoff = _Backoff()

    def start(self) -> None:
        """Mount; the directory underneath becomes read-only, so that nothing is stored there by mistake."""
        with launch.prepared(self.config):
            self._start()
        self._backoff.started = time.monotonic()

    def _start(self) -> None:
        os.chmod(self.config.mountpoint, 0o700)
        with _directory(self.config.mountpoint) as underneath:
            self._pid = launch.background(self.config, detach=False)
            os.fchmod(underneath, 0o500)

    def tend(self) -> float:
        """Mount again when the daemon died and the time has come; seconds until it is worth looking again."""
        if self._pid and (status := _ended(self._pid)) is not None:
            self._pid = None
            self.unmounted = status in (0, Pending.exit_code)
            if not self.unmounted:
                log = self.config.state / launch.LOG
                click.echo(f"the mount ended with {status}; see {log}", err=True)
                self._backoff.died()
        if self._pid or self.unmounted:
            return BACKOFF[1]
        if not (left := self._backoff.left()):
            try:
                self.start()
                click.echo(f"{self.config.mountpoint} is mounted again", err=True)
            except MountError as error:
                click.echo(f"mountfs: {error}", err=True)
                self._backoff.died()
            return BACKOFF[1] if self._pid else self._backoff.left()
        return left

    def stop(self) -> None:
        """Drain and unmount. Raises ``Pending`` when something could not be sent."""
        if not self._pid:
            return
        record = mounts.record_of(self.config.mountpoint)
        pending: list[str] = []
        if record and record.running:
            with contextlib.suppress(NotMounted):
                try:
                    pending = live.drain(record, "stop", {"lazy": True}, deadline=self.config.drain_deadline)
                except KeyboardInterrupt:
                    pending = live.drain(record, "stop", {"lazy": True}, deadline=0)
        if record is None or not live.wait_for_end(record, live.GRACE):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            if mounts.find(self.config.mountpoint):
                mounts.unmount(self.config.mountpoint, lazy=True)
            raise MountError(f"{self.config.mountpoint}: the mount did not end and was killed; nothing is lost")
        os.waitpid(self._pid, 0)
        if pending:
            live.name_pending(pending)
            raise Pending(f"{len(pending)} changes are not on the server yet; they are sent at the next start")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory that stays its own when something is mounted over it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ended(pid: int) -> int | None:
    """The exit code of a child, negative for a signal; None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remembered(file: Path) -> dict[str, Any]:
    """What a run left for the next one in a file; nothing when it cannot be read."""
    try:
        memory: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return memory


def _remember(file: Path, memory: dict[str, Any]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(memory))
    fresh.replace(file)
