"""Real processes for the tests: a node server, mounts of it, and the one place that polls.

Everything here can be killed at any moment and leaves no mount behind: `Mount.destroy` ends the daemon and
detaches the mount point whatever state they are in, and `Watchdog` does so for a test that takes too long,
because a system call that waits for a stuck daemon cannot be interrupted in any other way.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx

from nodeserver.protocol.ids import new_id

BIN = Path(sys.executable).parent
"""Where the installed commands are."""
START = 30.0
"""Seconds a server or a mount may take to become ready on a slow machine."""

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """The first true value of ``condition``. Raises AssertionError when ``timeout`` seconds pass without one."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.02)


def command(*args: str | Path, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands (``mountfs``, ``nodeserver``) to its end, output captured."""
    name, *rest = map(str, args)
    return subprocess.run([BIN / name, *rest], capture_output=True, text=True, timeout=timeout, check=False)


def tail(log: Path, lines: int = 60) -> str:
    """The end of a log file, for messages."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


class Node:
    """A node server process on a data directory of its own; it keeps its port over restarts."""

    new_database: ClassVar[Callable[[], str] | None] = None
    """Makes the metadata database of a server that is told of none, if that is not to be the one in its directory."""

    def __init__(self, data: Path, *, options: Sequence[str] = (), prefix: Sequence[str] = ()) -> None:
        """``prefix``: a program that runs the server, with its arguments."""
        self.data = data
        self.prefix = tuple(prefix)
        self.log = data.with_name(data.name + ".log")
        self.options = tuple(options)
        if Node.new_database and "--metadata" not in options:
            self.options += ("--metadata", Node.new_database())
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def token_file(self) -> Path:
        return self.data / "admin.token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def start(self) -> Node:
        """Start the process and wait for its ``ready`` line."""
        assert self._process is None, "the server is running"
        listen = self.url.removeprefix("http://") or "127.0.0.1:0"
        serve: list[str | Path] = [BIN / "nodeserver", "serve", "--data", self.data, "--listen", listen]
        args = [*self.prefix, *serve, *self.options]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        line = _first_line(self._process, START)
        if not (match := re.fullmatch(r"ready (http://\S+)", line)):
            self.kill()
            raise AssertionError(f"nodeserver said {line!r} instead of being ready:\n{tail(self.log)}")
        self.url = match[1]
        return self

    def stop(self) -> None:
        """SIGTERM, and the promise that it ends in order."""
        assert (code := self._end(signal.SIGTERM)) == 0, f"nodeserver ended with {code}:\n{tail(self.log)}"

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End it with ``sig`` and start it again on the same port."""
        self._end(sig)
        self.start()

    def destroy(self) -> None:
        """End it if it runs."""
        if self._process is not None:
            self.kill()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One JSON request with the admin's token. Raises httpx.HTTPStatusError when it is refused."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.request(
            method,
            f"{self.url}/v1{path}",
            headers=headers,
            json=body,
            timeout=30,
            trust_env=False,
            verify=False,  # no TLS here, and loading the authorities takes its time
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create_bucket(self, name: str) -> str:
        """Create a bucket; returns its name."""
        owner = {"uid": os.geteuid(), "gid": os.getegid()}
        self.api("PUT", f"/buckets/{name}", {"id": base64.b64encode(new_id()).decode(), **owner})
        return name

    def set_quota(self, bucket: str, quota: int | None) -> None:
        """Limit a bucket to ``quota`` bytes, None for no limit."""
        self.api("PATCH", f"/buckets/{bucket}", {"quota_bytes": quota})

    def usage(self, bucket: str) -> dict[str, int]:
        """What the server says the bucket holds."""
        usage: dict[str, int] = self.api("GET", f"/buckets/{bucket}")["usage"]
        return usage

    def _end(self, sig: signal.Signals) -> int:
        assert self._process is not None, "the server is not running"
        process, self._process = self._process, None
        return _end(process, sig, timeout=30)


class Mount:
    """A ``mountfs mount --foreground`` process, its mount point and its state directory."""

    live: ClassVar[set[Mount]] = set()

    def __init__(
        self,
        url: str,
        path: Path,
        *,
        token_file: Path,
        state: Path,
        options: Mapping[str, object] | None = None,
        arguments: Sequence[str] = (),
        cache_size: str | None = None,
        raises: bool = False,
        program: Sequence[str | Path] = (BIN / "mountfs",),
    ) -> None:
        self.url = url
        self.path = path
        self.token_file = token_file
        self.state = state
        self.options = dict(options or {})
        self.arguments = tuple(arguments)
        self.cache_size = cache_size
        self.program = tuple(program)
        self.raises = raises
        """Whether a traceback in the log is what the test is about."""
        self.log = state.with_name(state.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the mount is not running"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def mounted(self) -> bool:
        """Whether the kernel has a mount here, of a live daemon or of a dead one."""
        return is_mount(self.path)

    def arguments_of_mount(self) -> list[str]:
        """The command line, without ``--foreground``."""
        args = ["mount", self.url, str(self.path), "--token-file", str(self.token_file), "--state", str(self.state)]
        if self.cache_size:
            args += ["--cache-size", self.cache_size]
        if self.options:
            args += ["-o", ",".join(key if value is True else f"{key}={value}" for key, value in self.options.items())]
        return [*args, *self.arguments]

    def start(self) -> Mount:
        """Start the daemon and wait until the mount point answers."""
        assert self._process is None, "the mount is running"
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(parents=True)
        Mount.live.add(self)
        args = [*self.program, *self.arguments_of_mount(), "--foreground"]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        process = self._process
        eventually(lambda: process.poll() is not None or self._answers(), START, f"{self.path} is mounted")
        if process.poll() is not None:
            self._process = None
            raise AssertionError(f"mountfs mount ended with {process.returncode}:\n{tail(self.log)}")
        return self

    def refused(self, *words: str) -> None:
        """The mount command fails with one line that has the words, and leaves no mount."""
        result = command("mountfs", *self.arguments_of_mount(), timeout=20)
        assert result.returncode != 0
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert all(word in result.stderr for word in words), result.stderr
        assert not self.mounted

    def stop(self) -> None:
        """SIGTERM: drains, unmounts, ends with 0."""
        code = self.end(signal.SIGTERM)
        assert code == 0, f"mountfs mount ended with {code}:\n{tail(self.log)}"
        assert not self.mounted

    def unmount(self) -> None:
        """``mountfs umount``, which waits for the daemon's end."""
        result = command("mountfs", "umount", self.path)
        assert result.returncode == 0, result.stderr + tail(self.log)
        assert self._process is not None
        process, self._process = self._process, None
        assert (code := process.wait(timeout=30)) == 0, f"mountfs mount ended with {code}:\n{tail(self.log)}"
        assert not self.mounted

    def kill(self) -> None:
        """SIGKILL to the daemon and all its children; the dead mount stays."""
        self.end(signal.SIGKILL)

    def remount(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon with ``sig`` and mount again with the same state."""
        if sig == signal.SIGTERM:
            self.stop()
        else:
            self.end(sig)
        self.start()

    def sync(self, path: Path | None = None, timeout: float = 60.0) -> None:
        """``mountfs sync``: everything under ``path`` is on the server when this returns."""
        result = command("mountfs", "sync", path or self.path, timeout=timeout)
        assert result.returncode == 0, result.stderr + tail(self.log)

    def status(self) -> dict[str, Any]:
        """``mountfs status --json``."""
        result = command("mountfs", "status", self.path, "--json")
        assert result.returncode == 0, result.stderr
        status: dict[str, Any] = json.loads(result.stdout)
        return status

    def destroy(self) -> None:
        """Kill what runs and detach what is mounted."""
        if self._process is not None:
            self.kill()
        while self.mounted:
            detach = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*detach, self.path], check=True, capture_output=True)
        Mount.live.discard(self)

    def _answers(self) -> bool:
        try:
            # not stat: of a dead mount that is still there the kernel may know the attributes
            return is_mount(self.path) and os.statvfs(self.path).f_namemax > 0
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
            return False

    def end(self, sig: signal.Signals) -> int:
        """Send ``sig`` and wait for the daemon's end; its exit code."""
        assert self._process is not None, "the mount is not running"
        process, self._process = self._process, None
        return _end(process, sig, timeout=60)


class Watchdog:
    """Kills every mount daemon when a test overruns, so that its system calls fail instead of waiting for ever."""

    def __init__(self, seconds: float) -> None:
        self.barked = False
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon = True

    def _bark(self) -> None:
        self.barked = True
        for mount in list(Mount.live):
            if mount.alive:
                os.killpg(mount.pid, signal.SIGKILL)

    def __enter__(self) -> Watchdog:
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()


def is_mount(path: Path) -> bool:
    """Whether something is mounted at ``path``; asks the kernel's table, never the file system itself."""
    with open("/proc/self/mountinfo") as table:
        return str(path) in (line.split()[4] for line in table)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of ``size`` (as in mount(8)) at ``path``, until the end of the block. Needs root."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def disk_use(directory: Path) -> int:
    """Bytes that the files below a directory occupy."""
    paths = (os.path.join(at, name) for at, _, names in os.walk(directory) for name in names)
    blocks = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            blocks += os.lstat(path).st_blocks
    return blocks * 512


def stuck(pid: int) -> list[str]:
    """Threads of a process, and of its children, that are in uninterruptible sleep (state D)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            stat = (task / "stat").read_text()
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] == "D":
            found.append(stat.partition(" ")[0])
        for child in children:
            with contextlib.suppress(FileNotFoundError):
                found += stuck(int(child))
    return found


def _first_line(process: subprocess.Popen[bytes], timeout: float) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    return process.stdout.readline().decode().strip() if ready else ""


def _end(process: subprocess.Popen[bytes], sig: signal.Signals, timeout: float) -> int:
    with contextlib.suppress(ProcessLookupError):
        if sig == signal.SIGKILL:
            os.killpg(process.pid, sig)
        else:
            process.send_signal(sig)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()
