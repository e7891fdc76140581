"""The tree of a moment is what it was, whatever happened since: captured trees, and random operations."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis.stateful import invariant, precondition, rule

from tests.conftest import MakeMount
from tests.harness import Node
from tests.mount.conftest import Folder, need
from tests.mount.lineage import SETTLE, commit
from tests.mount.model import OnDisk, Sight, Tree, any_path, differences, mode, owner, read_tree, which
from tests.mount.past import called
from tests.mount.posix import RENAME_EXCHANGE, renameat2
from tests.mount.test_model import OnPlain, check, profile

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes of owner need root")


@pytest.fixture(scope="module")
def folder(module_node: Node, make_module_mount: MakeMount) -> Folder:
    """A mount that sends nothing unless someone waits for it."""
    mount = make_module_mount(module_node, module_node.create_bucket("moments"), options={"settle": SETTLE})
    return Folder(mount.path, mount, module_node)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# A history of changes, each followed by a capture


def furnish(top: Path) -> None:
    """Something of every kind."""
    (top / "project/source/deep").mkdir(parents=True)
    (top / "project/source/main.c").write_text("int main(void) { return 0; }\n")
    (top / "project/source/deep/data").write_bytes(os.urandom(700_000))
    (top / "project/read me").write_text("hello\n")
    (top / "project/empty").touch()
    (top / "project/sparse").touch()
    os.truncate(top / "project/sparse", 3 << 20)
    os.link(top / "project/read me", top / "project/source/also read me")
    (top / "project/latest").symlink_to("source/main.c")
    os.mkfifo(top / "project/pipe")
    os.setxattr(top / "project/read me", "user.colour", b"blue")
    os.utime(top / "project/source", ns=(1, 1_234_567_890_987_654_321))


def rename_directories(top: Path) -> None:
    (top / "project/source").rename(top / "project/src")
    (top / "project").rename(top / "renamed")
    (top / "project").mkdir()
    (top / "project/read me").write_text("another project\n")


def delete_and_make_again(top: Path) -> None:
    (top / "renamed/read me").unlink()
    (top / "renamed/read me").write_text("new\n")
    shutil.rmtree(top / "renamed/src/deep")
    (top / "renamed/src/deep").mkdir()
    (top / "renamed/src/deep/data").write_text("small now\n")


def change_types(top: Path) -> None:
    (top / "renamed/empty").unlink()
    (top / "renamed/empty").mkdir()
    (top / "renamed/empty/file").touch()
    (top / "renamed/latest").unlink()
    (top / "renamed/latest").write_text("a file now\n")
    (top / "renamed/pipe").unlink()
    (top / "renamed/pipe").symlink_to("src")


def change_content(top: Path) -> None:
    os.truncate(top / "renamed/sparse", 10)
    with open(top / "renamed/src/main.c", "a") as file:
        file.write("/* the end */\n")
    os.truncate(top / "renamed/src/deep/data", 0)


def change_links(top: Path) -> None:
    os.link(top / "renamed/src/main.c", top / "main.c")
    (top / "renamed/src/also read me").unlink()
    (top / "renamed/pipe").unlink()
    (top / "renamed/pipe").symlink_to("nowhere at all")


def change_attributes(top: Path) -> None:
    """Nothing that takes anything from anybody: that the past would show too."""
    (top / "main.c").chmod(0o755)
    (top / "renamed").chmod(0o777)
    os.utime(top / "renamed", ns=(2, -5))
    os.setxattr(top / "main.c", "user.colour", b"red")
    os.setxattr(top / "renamed/sparse", "user.new", b"")


def exchange(top: Path) -> None:
    renameat2(top / "project", top / "renamed", RENAME_EXCHANGE)
    renameat2(top / "main.c", top / "project/sparse", RENAME_EXCHANGE)


def remove_everything(top: Path) -> None:
    for path in top.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


CHANGES = [
    furnish,
    rename_directories,
    delete_and_make_again,
    change_types,
    change_content,
    change_links,
    change_attributes,
    exchange,
    remove_everything,
]


def test_trees_captured_then_are_there_whatever_happened_since(folder: Folder, here: Path, there: Path) -> None:
    need("rsync")
    assert folder.mount
    captures: dict[Path, str] = {}
    for change in CHANGES:
        change(here)
        commit(folder.mount)
        run("cp", "-a", here, captured := there / change.__name__)
        captures[captured] = called(time.time_ns())
    for remounted in False, True:
        for captured, moment in captures.items():
            for past in here / ".versions" / moment, folder.path / ".versions" / moment / here.name:
                compare(past, captured, remounted)
        folder.remount()


def compare(past: Path, captured: Path, briefly: bool) -> None:
    """Raises AssertionError unless a tree of the past is the one that was captured."""
    found = unlike(read_tree(OnDisk(os.fsencode(past))), read_tree(OnDisk(os.fsencode(captured))))
    assert not found, f"{past}, captured after {captured.name}: {found}"
    if not briefly:
        run("diff", "-r", "--no-dereference", "--exclude=pipe", past, captured)
        assert run("rsync", "-aHAXnci", "--delete", f"{past}/", f"{captured}/") == ""
        assert run("rsync", "-aHAXnci", "--delete", f"{captured}/", f"{past}/") == ""


def unlike(past: Tree, captured: Tree) -> list[str]:
    """What the one has otherwise than the other, times to the nanosecond."""
    found = differences(past, captured)
    both = past.keys() & captured.keys()
    return found + [f"{path!r}: mtime is not exact" for path in both if past[path].mtime != captured[path].mtime]


# Random operations

Access = tuple[int, tuple[int, int]]
"""Permission bits and type, owner and group."""


OFTEN = 6
"""Steps from one capture to the next."""


class Capture(NamedTuple):
    """A synced tree and the file that each path was, as of a moment."""

    moment: str
    tree: Tree
    inos: dict[bytes, int]


class OnHistory(OnPlain):
    """The steps of the model on a mount and a directory, with looks back at what was captured earlier."""

    def __init__(self, folder: Folder, real: Path) -> None:
        super().__init__(folder, real)
        self.captures: list[Capture] = []
        self.due = OFTEN
        self.access: dict[int, Access] = {}
        """Who might do what with a file, as it is, or was last."""
        self.fresh = False
        """The mount remembers nothing of what it showed."""

    def commit(self) -> None:
        assert self.folder.mount
        commit(self.folder.mount)

    @invariant()
    def the_trees_agree(self) -> None:
        super().the_trees_agree()
        for path, ino in self.inos().items():
            status = self.tested.lstat(path)
            self.access[ino] = status.st_mode, (status.st_uid, status.st_gid)
        if len(self.steps) >= self.due:
            self.capture()

    def inos(self) -> dict[bytes, int]:
        return {path: self.tested.lstat(path).st_ino for path in self.tree}

    @rule(path=any_path, mode=mode)
    def chmod(self, path: bytes, mode: int) -> None:
        """At once on the server, or it might not come to know what a file was when it was deleted."""
        super().chmod(path, mode)
        self.commit()

    @rule(path=any_path, uid=owner, gid=owner)
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        super().chown(path, uid, gid)
        self.commit()

    def capture(self) -> None:
        self.close_all()
        self.steps.append(f"capture {len(self.captures)}")
        self.commit()
        self.captures.append(Capture(called(time.time_ns()), read_tree(self.tested), self.inos()))
        self.due = len(self.steps) + OFTEN

    @precondition(lambda self: self.captures)
    @rule(number=which)
    def look_back(self, number: int) -> None:
        capture = self.captures[number % len(self.captures)]
        self.close_all()
        self.commit()
        top = self.folder.path / ".versions" / capture.moment / self.roots[0].name
        past = read_tree(OnDisk(os.fsencode(top)))
        inos = set(self.inos().values())
        expected: Tree = {}
        for path, then in capture.tree.items():
            ino = capture.inos[path]
            expected[path] = self.shown(then, past.get(path), ino, live=ino in inos)
        if found := unlike(past, expected):
            self.differ(
                "\n".join([f"of capture {number % len(self.captures)}, {capture.moment}, there is now:", *found])
            )

    def shown(self, then: Sight, shown: Sight | None, ino: int, *, live: bool) -> Sight:
        """What is to be seen of what was ``then``: as much as its present mode and owner allow too.

        Of what is gone, what came after it may take more away; and the mount remembers for a while what was said of it.
        """
        bits, owners = restricted(octal(then.mode), then.owner, *self.access[ino])
        if shown is not None and not live:
            if octal(shown.mode) & ~(bits if self.fresh else octal(then.mode)):
                self.differ(f"{shown.mode} is shown of what was {then.mode} and {self.access[ino]} at last")
            return then._replace(mode=shown.mode, owner=shown.owner)
        return then._replace(mode=then.mode[0] + stat.filemode(bits)[1:], owner=owners)

    def teardown(self) -> None:
        for number in range(len(self.captures)):
            self.look_back(number)
        for root in self.roots:
            for path in root.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.tree = read_tree(self.real)
        self.folder.remount()
        self.fresh = True
        for number in range(len(self.captures)):
            self.look_back(number)
        super().teardown()


def octal(text: str) -> int:
    """The permission bits that ``ls -l`` shows so."""
    bits = sum(0o400 >> place for place in range(9) if text[1 + place] not in "-ST")
    return bits | sum(0o4000 >> place for place in range(3) if text[3 + 3 * place] in "sStT")


def restricted(then: int, owners: tuple[int, int], now: int, present: tuple[int, int]) -> Access:
    """The mode, and the owners, of what had the mode ``then`` and has ``now``."""
    if owners == present:
        return then & now & 0o7777, present
    user = then >> 6 if owners[0] == present[0] else then
    group = then >> 3 if owners[1] == present[1] else then
    return ((user & 7) << 6 | (group & 7) << 3 | then & 7) & now, present


@needs_root
def test_random_operations_change_nothing_in_the_past(folder: Folder, tmp_path: Path, soak: int) -> None:
    check(lambda: OnHistory(folder, tmp_path), profile(soak, examples=4, steps=35))
