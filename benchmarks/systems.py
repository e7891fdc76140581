"""The systems under test. Each is started empty in a directory of its own and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from benchmarks.measures import LOCAL, OURS, RIVAL
from mountfs import control, mounts

BIN = Path(sys.executable).parent
"""Where the commands of the virtual environment are."""
PATIENCE = 600
"""Seconds any one step may take."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Failed(Exception):
    """A command ended with an error; the message is its output."""


def command(*args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return its output. Raises ``Failed``."""
    done = subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{Path(args[0]).name} {args[1]}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def can_drop_caches() -> bool:
    """Whether this process may empty the kernel's caches."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Empty the kernel's caches, where that is permitted."""
    os.sync()
    if can_drop_caches():
        DROP_CACHES.write_text("3")


def tree_size(path: Path) -> int:
    """The bytes that the files below ``path`` take on disk."""
    return sum(
        os.lstat(os.path.join(place, name)).st_blocks * 512 for place, _, names in os.walk(path) for name in names
    )


Kind = TypeVar("Kind", bound="System")


class System(ABC):
    """A folder to measure, and what stands behind it."""

    name: str

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "mnt"
        """The folder."""
        self.path.mkdir()

    @abstractmethod
    def start(self) -> None:
        """Make the folder ready, empty."""

    @abstractmethod
    def durable(self) -> None:
        """Return when everything written is where the system keeps it."""

    @abstractmethod
    def cold(self) -> None:
        """Forget everything that is cached on this machine; the data stays in the store."""

    @abstractmethod
    def stored(self) -> int:
        """The bytes that the store takes on disk."""


class Local(System):
    """A plain directory."""

    name = LOCAL

    def start(self) -> None:
        pass

    def durable(self) -> None:
        os.sync()

    def cold(self) -> None:
        drop_caches()

    def stored(self) -> int:
        return tree_size(self.path)


class JuiceFS(System):
    """JuiceFS with its defaults: SQLite metadata, files as the object store.

    It writes its blocks to the store at close and at fsync, so nothing is left to wait for; it does not fsync them.
    """

    name = RIVAL
    program = BIN / "juicefs"

    def start(self) -> None:
        command(
            self.program, "--quiet", "format", "--storage", "file",
            "--bucket", f"{self.base}/store/", self._metadata, "bench",
        )  # fmt: skip
        self._mount()

    def durable(self) -> None:
        pass

    def cold(self) -> None:
        command(self.program, "--quiet", "umount", self.path)
        shutil.rmtree(self.base / "cache", ignore_errors=True)
        drop_caches()
        self._mount()

    def stored(self) -> int:
        return tree_size(self.base / "store")

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.base}/meta.db"

    def _mount(self) -> None:
        command(
            self.program, "--quiet", "mount", "--background", "--no-usage-report", "--no-syslog",
            "--log", self.base / "log", "--cache-dir", self.base / "cache", self._metadata, self.path,
        )  # fmt: skip


class MountFS(System):
    """This product with its defaults: one node server on the loopback interface, and a mount of a bucket of it."""

    name = OURS

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.pid = 0
        """The mount daemon's process id."""
        self._server: subprocess.Popen[str] | None = None
        self.url = ""
        """The server's."""
        self.env = {f"XDG_{kind}_HOME": str(base / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")}

    @property
    def state(self) -> Path:
        return self.base / "mount-state"

    @property
    def token(self) -> str:
        """The admin's."""
        return (self._data / "admin.token").read_text().strip()

    @property
    def _data(self) -> Path:
        return self.base / "node"

    @property
    def _credentials(self) -> tuple[str, Path]:
        return "--token-file", self._data / "admin.token"

    def start(self) -> None:
        with open(self.base / "node.log", "w") as log:
            self._server = subprocess.Popen(
                [BIN / "nodeserver", "serve", "--data", self._data, "--listen", "127.0.0.1:0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.env},
            )
        assert self._server.stdout is not None
        ready = re.fullmatch(r"ready (http://\S+)\n", self._server.stdout.readline())
        if ready is None:
            raise Failed(f"nodeserver serve: {(self.base / 'node.log').read_text()[-2000:]}")
        self.url = ready[1]
        command(BIN / "mountfs", "bucket", "create", "bench", "--url", self.url, *self._credentials, env=self.env)
        self._mount()

    def durable(self) -> None:
        # As `mountfs sync` does, without the time that starting a command takes.
        answer = control.call(self.state / control.NAME, "sync", {"deadline": PATIENCE}, timeout=PATIENCE)
        if answer.get("pending"):
            raise Failed(f"mountfs sync: {len(answer['pending'])} files are still pending")

    def cold(self) -> None:
        self.durable()
        command(BIN / "mountfs", "umount", self.path, env=self.env)
        shutil.rmtree(self.state)
        drop_caches()
        self._mount()

    def stored(self) -> int:
        return tree_size(self._data)

    def requests(self) -> int:
        """How many the mount has sent to the server."""
        return int(control.call(self.state / control.NAME, "status")["requests"])

    def _mount(self) -> None:
        command(
            BIN / "mountfs", "mount", f"{self.url}/bench", self.path, "--state", self.state, *self._credentials,
            env=self.env,
        )  # fmt: skip
        self.pid = control.call(self.state / control.NAME, "status")["pid"]


def unmount(path: Path) -> None:
    """Take whatever is mounted at ``path`` off, even while it is used."""
    while any(mount.point == path for mount in mounts.mounted()):
        mounts.unmount(path, lazy=True)


def _kill_users(base: Path) -> None:
    """End the processes that have the directory, whose name is unique, on their command line; wait until they have."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(base) + b"/" not in (process / "cmdline").read_bytes():
                continue
            with open(os.pidfd_open(int(process.name)), "rb") as descriptor:
                signal.pidfd_send_signal(descriptor.fileno(), signal.SIGKILL)
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(10_000)


@contextlib.contextmanager
def running(kind: type[Kind], base: Path) -> Iterator[Kind]:
    """A started system in the new directory ``base``, which is gone afterwards. Raises ``Failed``."""
    base.mkdir()
    system = kind(base)
    try:
        system.start()
        yield system
    finally:
        # Nothing of it is of interest any more: neither system gets time to write back what it holds.
        unmount(system.path)
        _kill_users(base)
        shutil.rmtree(base, ignore_errors=True)
