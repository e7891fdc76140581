"""What the kernel's interface promises about names, directories and attributes, one promise a test."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import eventually
from tests.mount.conftest import Folder, need
from tests.mount.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, fails_with, opened, renameat2


def test_names_may_be_255_arbitrary_bytes(here: Path, folder: Folder) -> None:
    every = bytes(value for value in range(1, 256) if value != ord("/"))
    names = {every, b"\xff" * 255, b"\n" * 255, "\N{SNOWMAN}".encode() * 85, b" ", b"...", b".versions2", b"-rf", b"*"}
    for name in names:
        with opened(os.fsencode(here) + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            os.write(fd, name)
    folder.remount()
    assert set(os.listdir(os.fsencode(here))) == names
    for name in names:
        with opened(os.fsencode(here) + b"/" + name, os.O_RDONLY) as fd:
            assert os.read(fd, 300) == name
    for number, call in enumerate((os.mkdir, os.mkfifo, os.unlink, os.lstat)):
        with fails_with(errno.ENAMETOOLONG):
            call(os.fsencode(here) + b"/" + b"n" * (256 + number))


def test_paths_may_be_4096_bytes(here: Path, folder: Folder) -> None:
    room = 4095 - len(os.fsencode(here))
    parts = ["d" * 199] * (room // 200 - 1)
    last = "f" * (room - 200 * len(parts) - 1)
    if len(last) > 255:
        parts, last = [*parts, "e" * 99], last[:-100]
    directory = here.joinpath(*parts)
    directory.mkdir(parents=True)
    path = f"{directory}/{last}"
    assert len(path) == 4095
    Path(path).write_text("deep")
    folder.remount()
    assert Path(path).read_text() == "deep"
    with fails_with(errno.ENAMETOOLONG):
        os.stat(path + "x")
    Path(path).rename(here / "shallow")
    assert (here / "shallow").read_text() == "deep"
    directory.rmdir()


def test_a_symlink_holds_4095_bytes(here: Path, folder: Folder) -> None:
    target = "t/" * 2047 + "t"
    (here / "link").symlink_to(target)
    folder.remount()
    assert os.readlink(here / "link") == target
    assert (here / "link").lstat().st_size == 4095


def test_a_large_directory_lists_what_stays_exactly_once_while_it_changes(here: Path) -> None:
    count = 10_000
    for number in range(count):
        os.mknod(here / f"stays-{number}")
    seen: list[str] = []
    with os.scandir(here) as entries:
        for step, entry in enumerate(entries):
            seen.append(entry.name)
            if step % 10 == 0:
                os.mknod(here / f"comes-{step}")
                if step % 20 == 0:
                    os.unlink(here / f"comes-{step}")
    stays = [name for name in seen if name.startswith("stays-")]
    assert len(stays) == len(set(stays)) == count
    assert len(seen) == len(set(seen))


def test_two_listings_of_a_directory_have_the_same_order(here: Path) -> None:
    for number in range(500):
        (here / f"{number * 7919 % 500}").touch()
    assert os.listdir(here) == os.listdir(here)


def test_a_directory_can_be_emptied_while_it_is_listed(here: Path) -> None:
    for number in range(3_000):
        os.mknod(here / str(number))
    with os.scandir(here) as entries:
        for entry in entries:
            os.unlink(entry)
    assert os.listdir(here) == []
    here.rmdir()


def test_fifos_and_sockets_work(here: Path, folder: Folder) -> None:
    os.mkfifo(here / "fifo", 0o640)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((here / "fifo").read_bytes()))
    reader.start()
    (here / "fifo").write_bytes(b"through the pipe")
    reader.join()
    assert received == [b"through the pipe"]
    previous = os.open(".", os.O_RDONLY)
    os.chdir(here)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
            peer, _ = server.accept()
            with peer:
                client.sendall(b"hello")
                assert peer.recv(5) == b"hello"
    finally:
        os.fchdir(previous)
        os.close(previous)
    folder.remount()
    assert stat.S_ISFIFO(os.stat(here / "fifo").st_mode)
    assert stat.S_ISSOCK(os.stat(here / "socket").st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_device_nodes_keep_their_numbers(here: Path, folder: Folder) -> None:
    os.mknod(here / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(here / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    folder.remount()
    assert (os.stat(here / "null").st_rdev, stat.S_ISCHR(os.stat(here / "null").st_mode)) == (os.makedev(1, 3), True)
    assert os.stat(here / "disk").st_rdev == os.makedev(259, 70_000)


def test_rename_replaces_what_posix_lets_it_replace(here: Path) -> None:
    for name in "file", "other":
        (here / name).write_text(name)
    for name in "directory", "empty", "full/inner":
        (here / name).mkdir(parents=True)
    with fails_with(errno.EISDIR):
        os.rename(here / "file", here / "empty")
    with fails_with(errno.ENOTDIR):
        os.rename(here / "directory", here / "file")
    with fails_with(errno.ENOTEMPTY):
        os.rename(here / "directory", here / "full")
    with fails_with(errno.EINVAL):
        os.rename(here / "full", here / "full/inner/below")
    with fails_with(errno.ENOENT):
        os.rename(here / "absent", here / "file")
    os.rename(here / "full", here / "empty")
    os.rename(here / "file", here / "other")
    os.link(here / "other", here / "same")
    os.rename(here / "other", here / "same")
    assert sorted(os.listdir(here)) == ["directory", "empty", "other", "same"]
    assert (here / "other").read_text() == "file"
    assert os.listdir(here / "empty") == ["inner"]


def test_rename_noreplace_and_exchange(here: Path, folder: Folder) -> None:
    (here / "a").write_text("a")
    (here / "b/c").mkdir(parents=True)
    with fails_with(errno.EEXIST):
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    renameat2(here / "a", here / "b/a", RENAME_NOREPLACE)
    renameat2(here / "b/a", here / "b/c", RENAME_EXCHANGE)
    folder.remount()
    assert (here / "b/c").read_text() == "a"
    assert (here / "b/a").is_dir()
    with fails_with(errno.ENOENT):
        renameat2(here / "b", here / "absent", RENAME_EXCHANGE)
    with fails_with(errno.EINVAL):
        renameat2(here / "b", here / "b/a", RENAME_EXCHANGE)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_rename_whiteout_leaves_a_device_in_the_same_commit(here: Path, folder: Folder) -> None:
    for name in "one", "two", "replaced":
        (here / name).write_text(name)
    (here / "directory").mkdir()
    folder.sync()
    before = folder.node.api("GET", "/buckets/programs")["seq"] if folder.node else 0
    renameat2(here / "one", here / "directory/moved", RENAME_WHITEOUT)
    folder.sync()
    if folder.node:
        assert folder.node.api("GET", "/buckets/programs")["seq"] == before + 1
    renameat2(here / "two", here / "replaced", RENAME_WHITEOUT)
    with fails_with(errno.EEXIST):
        renameat2(here / "directory/moved", here / "replaced", RENAME_WHITEOUT | RENAME_NOREPLACE)
    with fails_with(errno.EINVAL):
        renameat2(here / "directory/moved", here / "replaced", RENAME_WHITEOUT | RENAME_EXCHANGE)
    folder.remount()
    for name in "one", "two":
        status = os.lstat(here / name)
        assert (status.st_mode, status.st_rdev, status.st_uid) == (stat.S_IFCHR, 0, 0)
    assert ((here / "directory/moved").read_text(), (here / "replaced").read_text()) == ("one", "two")
    (here / "one").unlink()
    (here / "one").touch()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_an_overlay_keeps_its_upper_directory_in_the_folder(here: Path, there: Path, folder: Folder) -> None:
    lower, merged = there / "lower", there / "merged"
    for path in lower / "gone", lower / "renamed/below", merged, here / "upper", here / "work":
        path.mkdir(parents=True)
    for name in "changed", "removed", "moved", "gone/file", "renamed/below/file":
        (lower / name).write_text("lower")
    layers = f"lowerdir={lower},upperdir={here}/upper,workdir={here}/work,redirect_dir=on"

    @contextlib.contextmanager
    def overlay() -> Iterator[None]:
        done = subprocess.run(
            ["mount", "-t", "overlay", "-o", layers, "overlay", merged], capture_output=True, check=False
        )
        if done.returncode and b"unknown filesystem" in done.stderr:
            pytest.skip("the kernel has no overlayfs")
        assert done.returncode == 0, done.stderr
        try:
            yield
        finally:
            subprocess.run(["umount", merged], check=True)

    def tree() -> dict[str, str]:
        return {str(path.relative_to(merged)): path.read_text() for path in merged.rglob("*") if path.is_file()}

    with overlay():
        (merged / "changed").write_text("upper")
        (merged / "removed").unlink()
        (merged / "moved").rename(merged / "renamed/moved")
        (merged / "renamed").rename(merged / "directory")
        shutil.rmtree(merged / "gone")
        (merged / "gone").mkdir()
        found = tree()
    assert found == {"changed": "upper", "directory/moved": "lower", "directory/below/file": "lower"}
    folder.remount()
    with overlay():
        assert tree() == found
        assert sorted(os.listdir(merged)) == ["changed", "directory", "gone"]
    assert os.listdir(lower / "gone") == ["file"]


def test_times_are_kept_to_the_nanosecond(here: Path, folder: Folder) -> None:
    times = [(0, 1), (1_234_567_890_123_456_789, 987_654_321_987_654_321), (-5_000_000_001, 4_500_000_000_999_999_999)]
    for number, pair in enumerate(times):
        (here / str(number)).touch()
        os.utime(here / str(number), ns=pair)
    folder.remount()
    assert [((now := os.stat(here / str(n))).st_atime_ns, now.st_mtime_ns) for n in range(3)] == times


def test_times_out_of_range_become_the_nearest_in_it(here: Path, there: Path, folder: Folder) -> None:
    first, last = -(1 << 63), (1 << 63) - 1  # nanoseconds: 1677 to 2262
    early, late = -(10**10) * 10**9, 10**11 * 10**9
    (here / "file").touch()
    (here / "directory").mkdir()
    (here / "link").symlink_to("file")
    for name in "file", "directory", "link":
        for asked, kept in ((early, late), (first, last)), ((late, first - 1), (last, first)):
            os.utime(here / name, ns=asked, follow_symlinks=False)
            eventually(lambda: times(here / name) == kept)  # noqa: B023
    folder.remount()
    assert [times(here / name) for name in ("file", "directory", "link")] == [(last, first)] * 3
    (there / "old").touch()
    os.utime(there / "old", ns=(late, late))
    if times(there / "old")[1] > last:  # else that file system has narrower limits
        for program in ("cp", "-p"), ("rsync", "-a"):
            need(program[0])
            subprocess.run([*program, there / "old", here / program[0]], check=True)
            eventually(lambda: times(here / program[0])[1] == last)  # noqa: B023


def times(path: Path) -> tuple[int, int]:
    """Of access and modification, in nanoseconds."""
    status = os.lstat(path)
    return status.st_atime_ns, status.st_mtime_ns


@pytest.mark.skipif(os.geteuid() != 0, reason="changes of owner need root")
def test_extremes_of_numbers_are_kept_or_refused(here: Path, folder: Folder) -> None:
    most = (1 << 32) - 2  # 2³² - 1 means: do not change
    (here / "owned").touch(0o7777)
    os.chown(here / "owned", most, most)
    os.chmod(here / "owned", 0o7777)
    os.mknod(here / "device", 0o600 | stat.S_IFBLK, os.makedev(0xFFF, 0xFFFFF))
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as fd:
        with fails_with(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        os.lseek(fd, (1 << 63) - 1, os.SEEK_SET)
        with contextlib.suppress(OSError):
            os.listdir(fd)
    with opened(here / "owned", os.O_RDONLY) as fd:
        assert os.pread(fd, 10, (1 << 63) - 11) == b""
    folder.remount()
    status = os.stat(here / "owned")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (most, most, 0o7777)
    assert os.stat(here / "device").st_rdev == os.makedev(0xFFF, 0xFFFFF)
    folder.sync()


def test_extended_attributes_are_kept(here: Path, folder: Folder) -> None:
    path = here / "file"
    path.touch()
    os.setxattr(path, "user.text", b"value")
    os.setxattr(path, b"user.\xff", bytes(range(256)))
    os.setxattr(path, "user.empty", b"")
    os.setxattr(here, "user.directory", b"too")
    with fails_with(errno.EEXIST):
        os.setxattr(path, "user.text", b"x", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(path, "user.absent", b"x", os.XATTR_REPLACE)
    with fails_with(errno.ENODATA):
        os.removexattr(path, "user.absent")
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.absent")
    os.setxattr(path, "user.text", b"other", os.XATTR_REPLACE)
    folder.remount()
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
        "user.text": b"other",
        os.fsdecode(b"user.\xff"): bytes(range(256)),
        "user.empty": b"",
    }
    os.removexattr(path, "user.text")
    assert "user.text" not in os.listxattr(path)
    assert os.listxattr(here) == ["user.directory"]


def test_extended_attributes_have_limits(here: Path, folder: Folder) -> None:
    if folder.mount is None:
        pytest.skip("other file systems have others")
    path = here / "file"
    path.touch()
    with fails_with(errno.E2BIG):
        os.setxattr(path, "user.large", bytes(65_537))
    with fails_with(errno.ERANGE):
        os.setxattr(path, "user." + "x" * 251, b"")
    for name in ("one", "other"):  # what the call takes, the server takes
        os.setxattr(path, f"user.{name}", bytes(40_000))
    os.setxattr(path, "user.third", bytes(65_536))
    os.setxattr(path, "user.fourth", bytes(65_536))
    with fails_with(errno.ENOSPC):
        os.setxattr(path, "user.fifth", bytes(65_536))
    os.setxattr(path, "user.one", b"")
    os.setxattr(path, "user.fifth", bytes(65_536))

    many = here / "many"
    many.touch()
    with fails_with(errno.ENOSPC):
        for number in range(300):
            os.setxattr(many, f"user.{number:0249}", b"")
    assert len(os.listxattr(many)) == 65_536 // 255
    folder.remount()
    assert sorted(os.listxattr(path)) == [f"user.{name}" for name in ("fifth", "fourth", "one", "other", "third")]
    assert len(os.listxattr(many)) == 65_536 // 255


def test_hard_links_are_one_file(here: Path, folder: Folder) -> None:
    (here / "one").write_text("one")
    os.link(here / "one", here / "two")
    (here / "two").write_text("changed")
    os.chmod(here / "one", 0o611)
    folder.remount()
    assert (here / "one").read_text() == "changed"
    one, two = os.stat(here / "one"), os.stat(here / "two")
    assert (one.st_ino, one.st_nlink, stat.S_IMODE(two.st_mode)) == (two.st_ino, 2, 0o611)
    (here / "one").unlink()
    assert os.stat(here / "two").st_nlink == 1
    with fails_with(errno.EPERM):
        os.link(here, here.with_name(here.name + "-link"))


def test_inode_numbers_survive_a_remount(here: Path, folder: Folder) -> None:
    for name in "abc":
        (here / name).touch()
    before = [(here / name).stat().st_ino for name in "abc"]
    folder.remount()
    assert [(here / name).stat().st_ino for name in "abc"] == before
    assert {entry.name: entry.inode() for entry in os.scandir(here)} == dict(zip("abc", before, strict=True))


def test_statfs_tells_the_truth(here: Path) -> None:
    facts = os.statvfs(here)
    assert facts.f_namemax == 255
    assert facts.f_bsize >= 512
    assert 0 < facts.f_bavail <= facts.f_bfree <= facts.f_blocks
    subprocess.run(["df", here], check=True, capture_output=True)


def test_directory_link_counts_allow_find_to_optimise(here: Path) -> None:
    for name in "ab":
        (here / name / "below").mkdir(parents=True)
    assert here.stat().st_nlink in (1, 4)
    (here / "a/below").rmdir()
    (here / "a").rmdir()
    assert here.stat().st_nlink in (1, 3)


def test_setgid_directories_hand_down_their_group(here: Path) -> None:
    os.chown(here, 0, 1234)
    os.chmod(here, 0o2775)
    (here / "directory").mkdir()
    (here / "file").touch()
    assert (here / "directory").stat().st_gid == (here / "file").stat().st_gid == 1234
    assert (here / "directory").stat().st_mode & stat.S_ISGID


NOBODY = 65534


@pytest.fixture
def as_nobody(here: Path) -> Callable[[str], str]:
    """Runs a line of Python as an unprivileged user; its value is the name of the errno it fails with, or ''."""
    if os.geteuid() != 0:
        pytest.skip("another user needs root")

    def call(line: str) -> str:
        script = (
            "import errno, os, sys\nos.chdir(sys.argv[1])\nos.setgroups([])\n"
            f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY})\nos.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
            f"try:\n    {line}\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
        )
        result = subprocess.run([sys.executable, "-ISc", script, here], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    return call


def test_modes_keep_other_users_out(here: Path, as_nobody: Callable[[str], str]) -> None:
    os.chmod(here, 0o755)
    (here / "secret").write_text("x")
    os.chmod(here / "secret", 0o600)
    (here / "public").write_text("x")
    (here / "closed").mkdir(0o700)
    (here / "closed/file").touch()
    (here / "open").mkdir()
    os.chmod(here / "open", 0o1777)
    (here / "open/of-root").touch()
    assert as_nobody("open('secret')") == "EACCES"
    assert as_nobody("open('public').read()") == ""
    assert as_nobody("open('public', 'w')") == "EACCES"
    assert as_nobody("open('new', 'w')") == "EACCES"
    assert as_nobody("os.unlink('public')") == "EACCES"
    assert as_nobody("os.chmod('public', 0o777)") == "EPERM"
    assert as_nobody("os.chown('public', 1, 1)") == "EPERM"
    assert as_nobody("os.stat('closed/file')") == "EACCES"
    assert as_nobody("os.listdir('closed')") == "EACCES"
    assert as_nobody("os.unlink('open/of-root')") == "EPERM"
    assert as_nobody("open('open/mine', 'w').write('x')") == ""
    assert as_nobody("os.utime('public')") == "EACCES"
    assert as_nobody("os.utime('public', (1, 1))") == "EPERM"
    mine = (here / "open/mine").stat()
    assert (mine.st_uid, mine.st_gid) == (NOBODY, NOBODY)
    assert as_nobody("os.unlink('open/mine')") == ""


def test_writing_as_another_user_takes_the_setuid_bit_away(here: Path, as_nobody: Callable[[str], str]) -> None:
    (here / "program").write_text("x")
    os.chmod(here / "program", 0o4777)
    assert as_nobody("open('program', 'a').write('more')") == ""
    assert stat.S_IMODE((here / "program").stat().st_mode) == 0o777
    os.chmod(here / "program", 0o4755)
    os.chown(here / "program", NOBODY, NOBODY)
    assert stat.S_IMODE((here / "program").stat().st_mode) == 0o755


def test_names_that_come_while_a_directory_is_listed_make_no_other_come_twice(here: Path) -> None:
    for number in range(5):
        os.mknod(here / f"m{number}")
    with os.scandir(here) as entries:
        seen = [next(entries).name]
        for number in range(3):
            os.mknod(here / f"a{number}")
        os.unlink(here / "m1")
        seen += [entry.name for entry in entries]
    assert [name for name in seen if name in ("m0", "m2", "m3", "m4")] == ["m0", "m2", "m3", "m4"]
    assert len(seen) == len(set(seen))


LIST = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir.argtypes = libc.telldir.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
stream = libc.opendir(os.fsencode(sys.argv[1]))
def read(count):
    found = []
    while len(found) < count and (entry := libc.readdir(stream)):
        found.append((ctypes.string_at(entry + 19).decode(), libc.telldir(stream)))
    return found
first = read(10**6)
kept = [name for name, _ in first if not name.startswith("goes")]
for name in os.listdir(sys.argv[1]):
    if name.startswith("goes"):
        os.unlink(os.path.join(sys.argv[1], name))
for number in range(100):
    os.mknod(os.path.join(sys.argv[1], f"a-{number}"))
for at in range(0, len(first), 50):
    libc.seekdir(stream, first[at][1])
    again = [name for name, _ in read(10**6) if not name.startswith("a-")]
    assert again == [name for name, _ in first[at + 1:] if name in kept], (at, again)
"""


def test_a_position_in_a_directory_stays_one_while_names_come_and_go(here: Path) -> None:
    for number in range(200):
        os.mknod(here / f"{'goes' if number % 3 else 'stays'}-{number}")
    subprocess.run([sys.executable, "-c", LIST, here], check=True)


def test_every_directory_lists_itself_and_the_one_above(here: Path, folder: Folder) -> None:
    (here / "sub/below").mkdir(parents=True)
    (here / "sub/file").write_text("text")
    folder.sync()
    for path in here / "sub", here / "sub/below":
        assert _dots(path) == {".": path.stat().st_ino, "..": path.parent.stat().st_ino}
    assert set(_dots(folder.path)) == {".", ".."}
    if folder.mount:
        then = here / "sub/.versions/@now"
        for past in here / "sub/.versions", here / "sub/.versions/file", then, then / "below":
            assert set(_dots(past)) == {".", ".."}


def _dots(path: Path) -> dict[str, int]:
    """The inode numbers of the names that Python leaves out."""
    listed = subprocess.run(["ls", "-aiU", path], check=True, capture_output=True, text=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return {name: int(number) for number, name in pairs if name in (".", "..")}
