"""What is mounted: the kernel's table, and a record per mount that leads other processes to its daemon."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mountfs.config import MountConfig
from mountfs.control import NAME as CONTROL
from mountfs.errors import Busy, MountError

FSTYPE = "fuse.mountfs"
"""The type our mounts have in the kernel's table (``subtype=mountfs``)."""
MOUNTINFO = Path("/proc/self/mountinfo")

Health = Literal["alive", "dead", "silent"]


@dataclass(frozen=True)
class Mounted:
    """A line of the kernel's table."""

    point: Path
    fstype: str
    source: str
    id: int = field(default=0, compare=False)
    parent: int = field(default=0, compare=False)
    device: str = field(default="", compare=False)
    """``major:minor`` of the file system: the same in all its mounts."""
    groups: frozenset[str] = field(default=frozenset(), compare=False)
    """How mounts and unmounts below propagate: ``shared:N``, ``master:N``, ``propagate_from:N``."""


@dataclass(frozen=True)
class Record:
    """What a mount daemon tells other processes about itself; never a secret."""

    mountpoint: str
    pid: int
    started: int
    """When the process began, in clock ticks since boot: tells it from a later process of the same id."""
    state: str
    url: str
    bucket: str | None
    drain_deadline: float
    """Seconds its end waits for what is pending unless told otherwise."""

    @property
    def control(self) -> Path:
        """The control socket."""
        return Path(self.state) / CONTROL

    @property
    def running(self) -> bool:
        """Whether the daemon lives."""
        return process_start(self.pid) == self.started


def table(mountinfo: str) -> list[Mounted]:
    """The mounts in the text of a ``mountinfo`` file, later ones on top of earlier ones."""
    found = []
    for line in mountinfo.rstrip("\n").split("\n"):
        before, _, after = line.partition(" - ")
        fields, (fstype, source, *_) = before.split(" "), after.split(" ")
        number, parent, device = int(fields[0]), int(fields[1]), fields[2]
        mount = Mounted(
            Path(_unescape(fields[4])), fstype, _unescape(source), number, parent, device, frozenset(fields[6:])
        )
        found.append(mount)
    return found


def mounted() -> list[Mounted]:
    """Every mount this process sees."""
    return table(MOUNTINFO.read_text(errors="surrogateescape"))


def find(point: Path) -> Mounted | None:
    """Our mount exactly at ``point``, None when there is another or none. Never touches the file system itself."""
    found = top(point)
    return found if found and found.fstype == FSTYPE else None


def top(point: Path) -> Mounted | None:
    """What is mounted at ``point`` and not covered by another."""
    return next((mount for mount in reversed(mounted()) if mount.point == point), None)


def containing(path: Path) -> Mounted | None:
    """Our mount that ``path`` (absolute) lies in, None when another file system holds it."""
    holders = [mount for mount in mounted() if path.is_relative_to(mount.point)]
    inmost = max(reversed(holders), key=lambda mount: len(mount.point.parts), default=None)
    return inmost if inmost and inmost.fstype == FSTYPE else None


def probe(point: Path, timeout: float = 5.0) -> Health:
    """Whether the daemon behind a mount point answers: ``dead`` when it is gone, ``silent`` when it stays mute."""
    outcome: list[Health] = []

    def ask() -> None:
        try:
            os.statvfs(point)
        except OSError as error:
            outcome.append("dead" if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else "alive")
        else:
            outcome.append("alive")

    # The call cannot be interrupted: a thread that is left behind waits in our place.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return outcome[0] if outcome else "silent"


def unmount(point: Path, *, lazy: bool = False) -> None:
    """Take a mount off the tree; ``lazy`` even while it is used. Raises ``Busy`` or ``MountError``."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(point), 2 if lazy else 0) == 0:  # MNT_DETACH
            return
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            raise Busy(f"{point}: in use")
        raise MountError(f"{point}: {os.strerror(code)}")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(point)]
    try:
        result = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise MountError("fusermount3 is missing: apt-get install fuse3") from None
    if result.returncode:
        text = result.stderr.strip()
        raise Busy(f"{point}: in use") if "busy" in text else MountError(text or f"{point}: cannot unmount")


def runtime_dirs() -> list[Path]:
    """Where records can be, the place for our own first."""
    if only := os.environ.get("MOUNTFS_RUNTIME_DIR"):
        return [Path(only)]
    dirs = [Path(runtime) / "mountfs"] if (runtime := os.environ.get("XDG_RUNTIME_DIR")) else []
    system = Path("/run/mountfs")
    return [*dirs, system] if os.geteuid() == 0 or dirs else [state_root() / "run", system]


def state_root() -> Path:
    """The directory of the states of this user's mounts."""
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "mountfs"
    # Not below root's home: at boot, when fstab is mounted, the environment may not name it.
    return Path("/var/lib/mountfs") if os.geteuid() == 0 else Path.home() / ".local/state/mountfs"


def register(config: MountConfig) -> None:
    """Record this process as the daemon of the mount; replaces what a dead one left."""
    record = Record(
        mountpoint=str(config.mountpoint),
        pid=os.getpid(),
        started=process_start(os.getpid()) or 0,
        state=str(config.state),
        url=config.url,
        bucket=config.bucket,
        drain_deadline=config.drain_deadline,
    )
    file = _record_file(runtime_dirs()[0], config.mountpoint)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(record)))
    fresh.replace(file)


def unregister(config: MountConfig) -> None:
    """Drop our record; another daemon's stays."""
    file = _record_file(runtime_dirs()[0], config.mountpoint)
    record = _load(file)
    if record and record.pid == os.getpid():
        file.unlink(missing_ok=True)


def records() -> list[Record]:
    """The known mounts, dead ones that are still in the tree included; records of others are cleared away."""
    found: dict[str, Record] = {}
    for directory in runtime_dirs():
        for file in sorted(directory.glob("*.json")):
            record = _load(file)
            if record and (record.running or find(Path(record.mountpoint))):
                found.setdefault(record.mountpoint, record)
            else:
                with contextlib.suppress(OSError):
                    file.unlink()
    return list(found.values())


def record_of(point: Path) -> Record | None:
    """The record of the mount at ``point``."""
    return next((record for record in records() if record.mountpoint == str(point)), None)


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is no such process, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[int]:
    """Hold a lock file; yields its descriptor. Raises ``Busy``, naming the process that holds ``what``."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 4096, 0).decode(errors="replace").strip()
            raise Busy(f"{what} is in use by process {holder or '(unknown)'}") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _record_file(directory: Path, point: Path) -> Path:
    return directory / (hashlib.sha256(os.fsencode(point)).hexdigest()[:16] + ".json")


def _load(file: Path) -> Record | None:
    try:
        return Record(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
