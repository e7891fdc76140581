"""``D/.versions/@TIME``: the tree as it was, to any depth."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Node
from tests.mount.conftest import Folder
from tests.mount.past import called, versions
from tests.mount.posix import fails_with

Seen = dict[str, tuple[object, ...]]


@pytest.fixture(autouse=True)
def only_mounted(folder: Folder) -> None:
    """A plain directory has no past."""
    if folder.mount is None:
        pytest.skip("there is no past in a plain directory")


def now(folder: Folder) -> str:
    """The name of this moment, at which everything is committed."""
    folder.sync()
    return called(time.time_ns())


def seen(top: Path) -> Seen:
    """All that can be seen of a tree, but for inode numbers and change times."""
    found: Seen = {}
    links: dict[int, str] = {}
    for at, directories, files in os.walk(top):
        directories.sort()
        for name in (".", *directories, *sorted(files)):
            path = Path(at, name)
            if name != "." and path.is_dir() and not path.is_symlink():
                continue
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            what: object = None
            if kind == stat.S_IFREG:
                what = path.read_bytes()
            elif kind == stat.S_IFLNK:
                what = os.readlink(path)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(listed(path))}
            first = links.setdefault(status.st_ino, str(path.relative_to(top)))
            found[str(path.relative_to(top))] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size, status.st_mtime_ns),
                *(status.st_blocks, status.st_rdev, what, tuple(xattrs.items()), first),
            )
    return found


def listed(path: Path) -> list[str]:
    """Names of extended attributes."""
    return os.listxattr(path, follow_symlinks=False)


def fill(top: Path) -> None:
    """A tree with everything that a tree can hold."""
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/c/deep").write_text("deep")
    (top / "file").write_bytes(os.urandom(100_000))
    (top / "empty").touch()
    (top / "program").write_text("#!/bin/sh\necho it ran\n")
    os.chmod(top / "program", 0o4755)
    os.link(top / "file", top / "a/same file")
    os.symlink("../file", top / "a/link")
    os.mkfifo(top / "pipe", 0o640)
    os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(top / "a/b", 0o2750)
    os.chown(top / "a/b/c/deep", 4321, 1234)
    os.setxattr(top / "file", "user.note", b"mine")
    os.utime(top / "a/b/c/deep", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top / "a", ns=(1, 987_654_321))


def disturb(top: Path) -> None:
    """Change everything in it."""
    (top / "a/b/c/deep").write_text("something else")
    (top / "a/b").rename(top / "moved")
    (top / "file").unlink()
    (top / "file").mkdir()
    (top / "file/in the way").write_text("new")
    (top / "empty").write_text("no more")
    (top / "a/link").unlink()
    (top / "a/link").write_text("a file now")
    os.truncate(top / "a/same file", 10)
    (top / "program").unlink()
    (top / "pipe").rename(top / "a/pipe")
    os.setxattr(top / "a/same file", "user.note", b"other")


def test_the_tree_of_a_moment_is_exactly_what_it_was(here: Path, folder: Folder) -> None:
    fill(here)
    folder.sync()
    before = seen(here)
    moment = now(folder)
    disturb(here)
    after = now(folder)
    past = here / ".versions" / moment
    # of files that exist still, the present mode and owner count too, and they did not change
    assert seen(past) == before
    assert seen(here / ".versions" / after) == seen(here)
    assert (past / "a/same file").stat().st_ino == (past / "file").stat().st_ino
    assert subprocess.run([past / "program"], capture_output=True, text=True, check=True).stdout == "it ran\n"
    for _ in range(2):
        (here / "moved/c/deep").unlink(missing_ok=True)
        (here / "device").unlink(missing_ok=True)
        folder.sync()
        folder.remount()
    assert seen(past) == before
    assert {path.lstat().st_ino for path in past.rglob("*")} == numbers(past)


def numbers(top: Path) -> set[int]:
    """The inode numbers that listings tell."""
    found: set[int] = set()
    for at, _, _ in os.walk(top):
        found |= {entry.inode() for entry in os.scandir(at)}
    return found


def test_copies_of_a_moment_are_whole(here: Path, there: Path, folder: Folder) -> None:
    fill(here)
    moment = now(folder)
    subprocess.run(["cp", "-a", here, there / "before"], check=True, timeout=60)
    disturb(here)
    folder.sync()
    past = here / ".versions" / moment
    subprocess.run(["cp", "-a", past, there / "after"], check=True, timeout=60)
    ignored = {"st_blocks": 6}

    def comparable(tree: Seen) -> Seen:
        return {path: (*what[: ignored["st_blocks"]], *what[7:]) for path, what in tree.items() if path != "."}

    assert comparable(seen(there / "after")) == comparable(seen(there / "before"))
    done = subprocess.run(["diff", "-r", "--no-dereference", past / "a", there / "before/a"], check=False, timeout=60)
    assert done.returncode == 0


def test_every_way_to_write_a_time(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("times"))
    (mount.path / "file").write_text("x")
    mount.sync()
    versions = mount.path / ".versions"
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for name in (
        "@now",
        "@-0s",
        f"@{tomorrow:%Y-%m-%dT%H-%MZ}",
        f"@{tomorrow:%Y-%m-%dT%H:%M:%SZ}",
        f"@{tomorrow:%Y-%m-%dT%H-%M-%S.123}+0000",
        f"@GMT-{tomorrow:%Y.%m.%d-%H.%M.%S}",
        f"@{tomorrow + timedelta(days=2):%Y-%m-%d}",
    ):
        assert os.listdir(versions / name) == ["file"], name
    for name in "@-1h", "@-90m", "@-2d", "@-1w3d", "@yesterday", "@2020-11-22", "@2020-11-22T14-15Z", "@1969-01-01Z":
        assert os.listdir(versions / name) == [], "before the first commit there was nothing"
        assert (versions / name).stat().st_nlink == 2
        with fails_with(errno.ENOENT):
            os.stat(versions / name / "file")
    for name in "@", "@-1", "@tomorrow", "@2020-11-32", "@\xff", os.fsdecode(b"@\xff"), "@" + "n" * 254:
        with fails_with(errno.ENOENT):
            os.stat(versions / name)


def test_local_times_are_of_the_zone_of_the_mount(
    node: Node, make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-14")
    mount = make_mount(node, node.create_bucket("zones"))
    (mount.path / "file").touch()
    mount.sync()
    here_and_now = datetime.now(UTC) + timedelta(hours=14, minutes=1)
    assert os.listdir(mount.path / f".versions/@{here_and_now:%Y-%m-%dT%H-%M}") == ["file"]
    assert os.listdir(mount.path / f".versions/@{here_and_now - timedelta(hours=1):%Y-%m-%dT%H-%M}") == []


def test_a_directory_is_itself_wherever_it_was(here: Path, folder: Folder) -> None:
    nothing = now(folder)
    (here / "old").mkdir()
    (here / "old/file").write_text("x")
    made = now(folder)
    (here / "old").rename(here / "new")
    (here / "new/file").unlink()
    (here / "old").mkdir()
    folder.sync()
    assert os.listdir(here / "new/.versions" / made) == ["file"]
    assert os.listdir(here / ".versions" / made) == ["old"]
    with fails_with(errno.ENOENT):
        os.listdir(here / "new/.versions" / nothing)
    with fails_with(errno.ENOENT):
        os.listdir(here / "old/.versions" / made)
    with fails_with(errno.ENOENT):
        os.stat(here / ".versions" / made / ".versions")
    (here / "pending").mkdir()
    assert os.listdir(here / "pending/.versions") == []
    with fails_with(errno.ENOENT):
        os.listdir(here / "pending/.versions/@2020-01-01")


def test_a_relative_time_stays_what_it_was_for_who_holds_it(here: Path, folder: Folder) -> None:
    (here / "file").write_text("then")
    folder.sync()
    fd = os.open(here / ".versions/@now", os.O_RDONLY)
    try:
        (here / "file").write_text("and later")
        (here / "more").touch()
        folder.sync()
        assert os.listdir(fd) == ["file"]
        with open("file", opener=lambda path, flags: os.open(path, flags, dir_fd=fd)) as file:
            assert file.read() == "then"
        assert sorted(os.listdir(here / ".versions/@now")) == ["file", "more"]
    finally:
        os.close(fd)
    assert (here / ".versions/@now/file").read_text() == "and later"


def test_only_what_is_committed_is_in_it(here: Path, folder: Folder) -> None:
    (here / "file").write_text("committed")
    folder.sync()
    with open(here / "file", "w") as file:
        file.write("written, still open")
        file.flush()
        assert (here / ".versions/@now/file").read_text() == "committed"


def test_large_directories_of_then(here: Path, folder: Folder) -> None:
    names = {f"{number:05} {'n' * 50}" for number in range(6000)}
    for name in names:
        (here / name).touch()
    (here / "00010 file").write_text("x")
    moment = now(folder)
    (here / "00010 file").unlink()
    past = here / ".versions" / moment
    assert (past / max(names)).stat().st_size == 0
    with fails_with(errno.ENOENT):
        os.stat(past / "zzz")
    found = os.listdir(past)
    assert len(found) == 6001
    assert set(found) == names | {"00010 file"}


@pytest.mark.parametrize("walk", [os.walk, os.fwalk])
def test_the_past_of_the_past_is_not_there(here: Path, folder: Folder, walk: Callable[[Path], object]) -> None:
    (here / "a/b").mkdir(parents=True)
    moment = now(folder)
    assert [names for _, names, *_ in walk(here / ".versions" / moment)] == [["a"], ["b"], []]  # type: ignore[attr-defined]


def test_facts_of_versions_are_told_but_not_listed(here: Path, folder: Folder) -> None:
    (here / "file").write_text("x")
    os.setxattr(here / "file", "user.own", b"1")
    moment = now(folder)
    (here / "file").write_text("y")
    folder.sync()
    path = here / ".versions" / moment / "file"
    assert os.listxattr(path) == ["user.own"]
    [one, _] = versions(here / "file")
    for name in "version_id", "checksum", "committed_at", "author", "client", "number", "base", "is_current":
        assert os.getxattr(path, f"user.mountfs.{name}") == os.getxattr(one, f"user.mountfs.{name}")
    assert os.getxattr(path, "user.own") == b"1"
    with fails_with(errno.ENODATA):
        os.getxattr(path.parent, "user.mountfs.version_id")
