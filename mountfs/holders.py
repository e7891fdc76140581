"""What still uses a mount: processes, other mounts of it, mounts below it, loop devices; as far as this user may see.

Nothing here asks the file system itself, which may not answer: the kernel tells of each open file which mount it is in.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from mountfs.mounts import Mounted, table

T = TypeVar("T")

PROC = Path("/proc")
LOOPS = Path("/sys/block")


PATIENCE = 1.0
"""Seconds that something has to go on using a mount to count: indexers open files, and new namespaces start with all
the mounts of the old one."""


def _lasting(look: Callable[[], T]) -> T:
    """The first empty or false answer of ``look``, or its last within ``PATIENCE``."""
    until = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def holders(mount: Mounted, ignore: Collection[int] = ()) -> list[str]:
    """Words for all that uses the file system of a mount of this process, but for the processes ``ignore``.

    What goes when the mount goes does not count: its copies in namespaces that the unmounting reaches.
    """
    return _lasting(lambda: _holders(mount, ignore))


def other_mounts(mount: Mounted) -> list[str]:
    """The part of :func:`holders` that the kernel does not refuse to unmount for: other mounts; also those below."""
    return _lasting(lambda: list(dict.fromkeys(_mounts(mount, dict(_tables())))))


def elsewhere(device: str) -> bool:
    """Whether a file system is mounted anywhere."""
    return _lasting(lambda: any(mount.device == device for _, mounts in _tables() for mount in mounts))


def some(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _holders(mount: Mounted, ignore: Collection[int]) -> list[str]:
    tables = dict(_tables())
    found = dict.fromkeys(_mounts(mount, tables))
    points = {one.point for mounts in tables.values() for one in mounts if one.device == mount.device}
    found |= dict.fromkeys(_loops(points | {mount.point}))
    for pid, mounts in tables.items():
        if pid not in ignore and _inside(pid, {one.id for one in mounts if one.device == mount.device}, mount.device):
            found[f"{_name(pid)} ({pid})"] = None
    return list(found)


def _tables() -> Iterator[tuple[int, list[Mounted]]]:
    """By process: what it sees mounted. Those that share a namespace get one list."""
    known: dict[tuple[str, str] | str, list[Mounted]] = {}
    for process in PROC.iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                key = _view(process) or process.name
                if key not in known:
                    text = (process / "mountinfo").read_text(errors="surrogateescape")
                    if not text:
                        continue  # it is ending
                    known[key] = table(text)
                yield int(process.name), known[key]


def _view(process: Path) -> tuple[str, str] | None:
    """What decides which mounts a process sees; None when this user may not know."""
    try:
        return os.readlink(process / "ns/mnt"), os.readlink(process / "root")
    except PermissionError:
        return None


def _mounts(mount: Mounted, tables: dict[int, list[Mounted]]) -> Iterator[str]:
    """Other mounts of the file system, and file systems mounted below it."""
    ours = tables[os.getpid()]
    reached = _reached(mount, ours, tables)
    seen = {mount.id}
    for pid, mounts in sorted(tables.items(), key=lambda item: item[1] is not ours):
        where = "" if mounts is ours else f" for {_name(pid)} ({pid})"
        by_id = {one.id: one for one in mounts}
        for one in mounts:
            if one.id in seen:
                continue
            seen.add(one.id)
            above = by_id.get(one.parent)
            if one.device == mount.device and not (above and above.groups & reached):
                yield f"its mount at {one.point}{where}"
            if above and above.device == mount.device:
                yield f"the {one.fstype} mounted at {one.point}{where}"


def _reached(mount: Mounted, ours: list[Mounted], tables: dict[int, list[Mounted]]) -> set[str]:
    """The groups (as in ``Mounted.groups``) that hear when the mount is taken off what it is mounted on."""
    above = next((one for one in ours if one.id == mount.parent), None)
    numbers = {
        group.removeprefix("shared:") for group in (above.groups if above else ()) if group.startswith("shared:")
    }
    every = {one.groups for mounts in tables.values() for one in mounts}
    while True:
        words = {f"{kind}:{number}" for number in numbers for kind in ("shared", "master", "propagate_from")}
        more = {
            group.removeprefix("shared:")
            for groups in every
            if groups & words
            for group in groups
            if group.startswith("shared:")
        }
        if more <= numbers:
            return words
        numbers |= more


def _inside(pid: int, ids: set[int], device: str) -> bool:
    """Whether a process has a file, a directory or a mapping of the mounts ``ids`` of a device."""
    process = PROC / str(pid)
    with contextlib.suppress(OSError):
        for info in (process / "fdinfo").iterdir():
            with contextlib.suppress(OSError):
                if _mount_id(info) in ids:
                    return True
    for link in "cwd", "root", "exe":
        with contextlib.suppress(OSError):
            file = os.open(process / link, os.O_PATH | os.O_CLOEXEC)
            try:
                if _mount_id(PROC / f"self/fdinfo/{file}") in ids:
                    return True
            finally:
                os.close(file)
    major, minor = map(int, device.split(":"))
    with contextlib.suppress(OSError):
        mapped = f" {major:02x}:{minor:02x} "
        return mapped in (process / "maps").read_text(errors="surrogateescape")
    return False


def _mount_id(info: Path) -> int:
    """The mount in an ``fdinfo`` file of an open file."""
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return -1


def _loops(points: set[Path]) -> Iterator[str]:
    for backing in LOOPS.glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = Path(backing.read_text(errors="surrogateescape").rstrip("\n"))
            if any(file.is_relative_to(point) for point in points):
                yield f"/dev/{backing.parents[1].name} on {file}"


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "comm").read_text().strip()
    return "?"
