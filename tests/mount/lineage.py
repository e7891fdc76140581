"""A desk on which files are saved in the ways of programs, and what history then lists of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mountfs import control
from tests.harness import Mount
from tests.mount.posix import RENAME_EXCHANGE, opened, renameat2

Batching = Literal["each call", "each save", "nothing"]
LINKS = ("current", "previous")
SETTLE = 20
"""Seconds for which a mount keeps changes to itself that nobody waits for: tests decide what one commit has."""


def commit(mount: Mount) -> None:
    """What ``mountfs sync`` does, without the time that the command takes to start."""
    assert control.call(mount.state / control.NAME, "sync", timeout=60) == {"pending": []}


def versions(place: Path) -> list[Path]:
    """The versions of a place, oldest first; none if it never had content."""
    directory = place.parent / ".versions" / place.name
    try:
        names = [name for name in os.listdir(directory) if name not in LINKS]
    except FileNotFoundError:
        return []
    stamps = [name.partition("_")[0] for name in names]
    assert stamps == sorted(stamps), f"{place} is not listed in the order of its names: {names}"
    return [directory / name for name in names]


def history(place: Path) -> list[str]:
    """What the versions of a place hold, oldest first. Looks also at what can be said of any listing."""
    found = [one.read_text() for one in versions(place)]
    sizes = [one.stat().st_size for one in versions(place)]
    assert sizes == [len(text.encode()) for text in found]
    if found:
        assert place.name in os.listdir(place.parent / ".versions")
    current, previous = (place.parent / ".versions" / place.name / name for name in LINKS)
    if found and place.is_file() and not place.is_symlink():
        assert current.read_text() == place.read_text()
    else:
        assert not current.exists()
    if previous.exists():
        assert previous.read_text() in found
    return found


class Desk:
    """Files in a folder, changed call by call.

    Expected listings are the same whether the server gets each call in a commit of its own or each save. When it gets
    many saves at once it cannot know what was between; then nothing may be listed that does not belong there, and the
    present content is.
    """

    def __init__(self, here: Path, mount: Mount, batching: Batching) -> None:
        self.here = here
        self.mount = mount
        self.batching = batching

    def saved(self) -> None:
        """A save is complete."""
        if self.batching != "nothing":
            commit(self.mount)

    def _called(self) -> None:
        if self.batching == "each call":
            commit(self.mount)

    # Calls

    def write(self, name: str, text: str, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
        """Open, write, close."""
        with opened(self.here / name, os.O_WRONLY | flags) as fd:
            os.write(fd, text.encode())
        self._called()

    def rename(self, old: str, new: str) -> None:
        (self.here / old).rename(self.here / new)
        self._called()

    def exchange(self, one: str, other: str) -> None:
        renameat2(self.here / one, self.here / other, RENAME_EXCHANGE)
        self._called()

    def unlink(self, name: str) -> None:
        (self.here / name).unlink()
        self._called()

    def link(self, old: str, new: str) -> None:
        os.link(self.here / old, self.here / new)
        self._called()

    def mkdir(self, name: str) -> None:
        (self.here / name).mkdir()
        self._called()

    def rmdir(self, name: str) -> None:
        (self.here / name).rmdir()
        self._called()

    def symlink(self, target: str, name: str) -> None:
        (self.here / name).symlink_to(target)
        self._called()

    # Whole steps

    def save(self, name: str, *texts: str) -> None:
        """Save in place, once for each text."""
        for text in texts:
            self.write(name, text)
            self.saved()

    def replace(self, name: str, *texts: str, temporary: str | None = None) -> None:
        """Save by rename: write a temporary file, give it the name."""
        for number, text in enumerate(texts):
            other = temporary or f".{name}.{number}"
            self.write(other, text)
            self.rename(other, name)
            self.saved()

    def move(self, old: str, new: str) -> None:
        self.rename(old, new)
        self.saved()

    def remove(self, name: str) -> None:
        self.unlink(name)
        self.saved()

    # What is expected

    def lists(self, name: str, *expected: str) -> None:
        """The history of a name is this, oldest first."""
        commit(self.mount)
        found = history(self.here / name)
        if self.batching != "nothing":
            assert found == list(expected), f"{name} lists {found}, should list {list(expected)}"
            return
        assert is_within(found, expected), f"{name} lists {found}, of which something does not belong to {expected}"
        now = _regular_content(self.here / name)
        assert not now or now in found, f"{name} lists {found}, not what it holds now: {now!r}"

    def passed(self, name: str, *expected: str) -> None:
        """As `lists`, of a name that no file had between two saves."""
        if self.batching == "each call":
            self.lists(name, *expected)
        else:
            self.lists(name)


def is_within(found: Iterable[str], whole: Iterable[str]) -> bool:
    """Whether the one is the other with some left out."""
    rest = iter(whole)
    return all(any(text == other for other in rest) for text in found)


def _regular_content(path: Path) -> str | None:
    try:
        return path.read_text() if stat.S_ISREG(path.lstat().st_mode) else None
    except FileNotFoundError:
        return None
