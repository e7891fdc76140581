"""The past cannot be changed, shows nobody what he may not see, and is in the way of no program."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Node, eventually
from tests.mount.conftest import Folder, need
from tests.mount.past import as_nobody, called, versions
from tests.mount.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, fails_with, opened, renameat2


@pytest.fixture(autouse=True)
def only_mounted(folder: Folder) -> None:
    """A plain directory has no past."""
    if folder.mount is None:
        pytest.skip("there is no past in a plain directory")


@pytest.fixture
def past(here: Path, folder: Folder) -> Path:
    """``.versions`` of a directory with two versions of ``file``, and a directory."""
    for content in "one", "two":
        (here / "file").write_text(content)
        folder.sync()
    (here / "directory").mkdir()
    os.symlink("file", here / "link")
    folder.sync()
    return here / ".versions"


def version_of(past: Path) -> Path:
    """The first version of the file."""
    return versions(past.parent / "file")[0]


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda path: os.open(path, os.O_WRONLY),
    "update": lambda path: os.open(path, os.O_RDWR),
    "empty": lambda path: os.open(path, os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 1),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chown": lambda path: os.chown(path, 1, 1),
    "utime": os.utime,
    "setxattr": lambda path: os.setxattr(path, "user.x", b"1"),
    "removexattr": lambda path: os.removexattr(path, "user.mountfs.number"),
    "unlink": os.unlink,
    "rename": lambda path: path.rename(path.parent / "other"),
    "link": lambda path: os.link(path, path.parent / "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_of_the_past_cannot_be_changed(past: Path, change: str) -> None:
    for path in version_of(past), past / "@now/file":
        with fails_with(errno.EROFS):
            CHANGES[change](path)
    assert version_of(past).read_text() == "one"
    assert (past / "@now/file").read_text() == "two"


def test_directories_of_the_past_cannot_be_changed(past: Path, here: Path) -> None:
    for directory in past, past / "file", past / "@now", past / "@now/directory":
        for change in (
            lambda path: path.mkdir(),
            lambda path: path.touch(),
            lambda path: os.symlink("x", path),
            os.mkfifo,
            lambda path: os.link(here / "directory/../file", path),
            lambda path: (here / "file").rename(path),
            lambda path: renameat2(here / "file", path, RENAME_NOREPLACE),
        ):
            with fails_with(errno.EROFS):
                change(directory / "new")
        for change in (os.rmdir, os.utime, lambda path: os.chmod(path, 0o700), lambda path: path.rename(here / "out")):
            with fails_with(errno.EROFS):
                change(directory)
        with opened(directory, os.O_RDONLY) as fd:
            os.fsync(fd)
    for path in past / "file/current", past / "@now/link":
        with fails_with(errno.EROFS):
            path.unlink()
    assert subprocess.run(["rm", "-rf", past / "@now"], capture_output=True, check=False, timeout=60).returncode
    assert sorted(os.listdir(past / "@now")) == ["directory", "file", "link"]


def test_open_versions_are_like_files_on_a_disk(past: Path) -> None:
    path = version_of(past)
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
        assert os.fstat(fd).st_size == 3
        assert os.pread(fd, 10, 1) == b"ne"
        assert os.pread(fd, 10, 3) == b""
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            assert view[:] == b"one"
        with fails_with(errno.EBADF):
            os.write(fd, b"x")
    assert os.statvfs(path) == os.statvfs(past.parent)


def test_the_name_is_taken(past: Path, here: Path) -> None:
    (here / "other").mkdir()
    with fails_with(errno.EEXIST):
        past.mkdir()
    with fails_with(errno.EEXIST):
        os.open(past, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails_with(errno.EEXIST):
        os.link(here / "file", past)
    with fails_with(errno.EEXIST):
        os.symlink("x", past)
    with fails_with(errno.EEXIST):
        os.mkfifo(past)
    with fails_with(errno.EEXIST, errno.ENOTEMPTY):
        (here / "other").rename(past)
    with fails_with(errno.EEXIST):
        renameat2(here / "other", past, RENAME_NOREPLACE)
    with fails_with(errno.EISDIR):
        (here / "file").rename(past)
    with fails_with(errno.EROFS, errno.EEXIST):
        renameat2(here / "other", past, RENAME_EXCHANGE)
    with fails_with(errno.EISDIR):
        past.unlink()
    assert sorted(os.listdir(here)) == ["directory", "file", "link", "other"]


def test_programs_that_walk_do_not_see_it(past: Path, here: Path, there: Path, folder: Folder) -> None:
    need("rsync", "git", "find", "du")

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout

    assert os.listdir(past / "file")
    names = {line.removeprefix(str(here)) for line in run("find", here).splitlines()}
    assert names == {"", "/file", "/directory", "/link"}
    assert run("du", "-ab", here).splitlines()[-1].split()[0] == str(3 + 4)
    run("git", "-C", here, "init", "-q")
    assert run("git", "-C", here, "status", "--porcelain").split() == ["??", "file", "??", "link"]
    shutil.rmtree(here / ".git")
    (there / "only").write_text("x")
    run("rsync", "-a", "--delete", f"{there}/", here)
    assert os.listdir(here) == ["only"]
    assert version_of(past).read_text() == "one", "what was deleted has its past"
    run("rsync", "-a", "--delete", f"{here}/", there)
    assert os.listdir(there) == ["only"]
    run("rm", "-r", here)
    assert not here.exists()
    folder.sync()
    here.mkdir()
    assert os.listdir(past) == [], "another directory has another past"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
READ, LIST = "open(path).read()", "os.listdir(path)"


@needs_root
def test_tightening_a_file_covers_its_past(past: Path, here: Path, folder: Folder) -> None:
    os.chmod(here, 0o755)
    paths = version_of(past), past / "@now/file", past / "file/previous"
    assert [as_nobody(READ, path, here) for path in paths] == ["", "", ""]
    moment = past / "@now"
    with opened(moment, os.O_RDONLY):
        os.chmod(here / "file", 0o600)

        def refused() -> bool:
            return [as_nobody(READ, path, here) for path in paths] == ["EACCES"] * 3

        eventually(refused, 3, "nobody else reads it, committed or not")
        folder.sync()
        assert refused()
    assert stat.S_IMODE(version_of(past).stat().st_mode) == 0o600
    os.chmod(here / "file", 0o644)
    folder.sync()
    eventually(lambda: [as_nobody(READ, path, here) for path in paths] == ["", "", ""], 3)
    (here / "file").unlink()
    folder.sync()
    assert as_nobody(READ, version_of(past), here) == ""


@needs_root
def test_a_file_that_was_tightened_and_deleted_stays_secret(past: Path, here: Path, folder: Folder) -> None:
    folder.sync()
    path = past / called(time.time_ns()) / "file"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    os.chmod(here / "file", 0o600)
    (here / "file").unlink()
    eventually(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600, 3, "not committed yet")
    folder.sync()
    eventually(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600, 3, "committed")
    (here / "other").touch()
    folder.sync()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_root
def test_a_file_that_was_secret_stays_so(here: Path, folder: Folder) -> None:
    os.chmod(here, 0o755)
    (here / "file").touch()
    os.chmod(here / "file", 0o600)
    (here / "file").write_text("secret")
    folder.sync()
    os.chmod(here / "file", 0o644)
    (here / "file").write_text("public")
    folder.sync()
    one, two = versions(here / "file")
    assert as_nobody(READ, one, here) == "EACCES"
    assert as_nobody(READ, two, here) == ""


@needs_root
def test_who_may_not_search_a_directory_does_not_see_its_past(past: Path, here: Path) -> None:
    os.chmod(here, 0o711)
    assert as_nobody(LIST, past, here) == "EACCES"
    assert as_nobody(LIST, past / "file", here) == "EACCES"
    assert as_nobody(READ, version_of(past), here) == ""
    os.chown(here, 4321, 1234)
    os.chmod(here, 0o2750)
    eventually(lambda: past.stat().st_uid == 4321, 3)
    status = past.stat()
    assert (status.st_mode, status.st_gid) == (stat.S_IFDIR | 0o550, 1234)
    assert as_nobody(READ, version_of(past), here) == "EACCES"


@needs_root
def test_tightening_elsewhere_covers_the_past_here(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("tighter")
    one = make_mount(node, bucket)
    two = make_mount(node, bucket, options={"allow_other": True})
    os.chmod(one.path, 0o755)
    (one.path / "file").write_text("secret")
    one.sync()
    version = version_of(two.path / ".versions")
    paths = version, two.path / ".versions" / called(time.time_ns()) / "file"
    assert [as_nobody(READ, path, two.path) for path in (*paths, two.path / "file")] == ["", "", ""]
    os.chmod(one.path / "file", 0o600)
    one.sync()
    eventually(lambda: [as_nobody(READ, path, two.path) for path in paths] == ["EACCES", "EACCES"], 5)


@needs_root
def test_options_of_owner_and_mode_hold_for_the_past(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("owners"), options={"uid": 4321, "gid": 1234, "umask": "077"})
    (mount.path / "file").write_text("x")
    mount.sync()
    past = mount.path / ".versions"
    for path in past, past / "file", version_of(past), past / "@now/file":
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o077) == (4321, 1234, 0), path
