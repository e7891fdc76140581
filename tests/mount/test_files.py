"""What the kernel's interface promises about files and directories, one promise a test."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Folder
from tests.mount.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, NotSupported, fallocate, renameat2

GIB = 1 << 30


@contextlib.contextmanager
def fails_with(number: int) -> Iterator[None]:
    """Raises AssertionError unless the block raises OSError with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at below
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


@contextlib.contextmanager
def opened(path: Path | str | bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A file descriptor for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def test_shared_mappings_write_to_the_file(here: Path, folder: Folder) -> None:
    path = here / "mapped"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view, mmap.mmap(file.fileno(), 0) as other:
        view[4090:4102] = b"across pages"
        assert other[4090:4102] == b"across pages"
        view[-4:] = b"last"
        view.flush()
        assert os.pread(file.fileno(), 12, 4090) == b"across pages"
        file.seek(500_000)
        file.write(b"written")
        file.flush()
        assert view[500_000:500_007] == b"written"
        view[10:14] = b"late"
    folder.remount()
    content = path.read_bytes()
    assert (content[10:14], content[4090:4102], content[-4:]) == (b"late", b"across pages", b"last")
    assert content.count(0) == (1 << 20) - 27


def test_private_mappings_leave_the_file_alone(here: Path) -> None:
    path = here / "mapped"
    path.write_bytes(b"a" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as view:
        view[:4] = b"mine"
    assert path.read_bytes() == b"a" * 10_000


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
    count = 20_000
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


def test_a_file_may_be_larger_than_4_gib(here: Path, folder: Folder) -> None:
    path = here / "large"
    marks = [0, 2 * GIB - 3, 4 * GIB - 3, 5 * GIB + 12_345, (1 << 40) - 6]
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        for mark in marks:
            assert os.pwrite(fd, b"marked", mark) == 6
        assert os.fstat(fd).st_size == 1 << 40
    folder.remount()
    with opened(path, os.O_RDONLY) as fd:
        assert os.fstat(fd).st_size == 1 << 40
        for mark in marks:
            assert os.pread(fd, 6, mark) == b"marked"
        assert os.pread(fd, 100, 3 * GIB) == bytes(100)
        assert os.lseek(fd, -3, os.SEEK_END) == (1 << 40) - 3
        assert os.read(fd, 100) == b"ked"
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 4 * GIB)
    folder.remount()
    assert path.stat().st_size == 4 * GIB
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 100, 4 * GIB - 3) == b"mar"


def test_absurd_sizes_and_offsets_are_refused(here: Path) -> None:
    with opened(here / "file", os.O_CREAT | os.O_RDWR) as fd:
        with fails_with(errno.EINVAL):
            os.pwrite(fd, b"x", -1)
        with fails_with(errno.EFBIG):
            os.pwrite(fd, b"x", (1 << 63) - 2)
        with fails_with(errno.EFBIG):
            os.ftruncate(fd, (1 << 63) - 1)
        with fails_with(errno.EINVAL):
            os.ftruncate(fd, -1)
        assert os.pread(fd, 10, 1 << 61) == b""
        assert os.fstat(fd).st_size == 0


def test_o_direct_reads_and_writes(here: Path, folder: Folder) -> None:
    path = here / "direct"
    with mmap.mmap(-1, 1 << 20) as buffer:
        buffer[:] = os.urandom(1 << 20)
        with opened(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
            assert os.pwritev(fd, [buffer], 0) == 1 << 20
            assert os.pwritev(fd, [memoryview(buffer)[:4096]], 1 << 20) == 4096
        assert path.read_bytes() == buffer[:] + buffer[:4096]
        with mmap.mmap(-1, 8192) as back:
            folder.remount()
            with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
                assert os.preadv(fd, [back], (1 << 20) - 4096) == 8192
            assert back[:] == buffer[-4096:] + buffer[:4096]


def test_appends_of_two_writers_do_not_overwrite_each_other(here: Path) -> None:
    path = here / "log"
    script = "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
    script += "for _ in range(500): os.write(fd, sys.argv[2].encode() * 99 + b'\\n')"
    writers = [subprocess.Popen([sys.executable, "-ISc", script, path, letter]) for letter in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(path.read_text().split()) == ["a" * 99] * 500 + ["b" * 99] * 500


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_keep_another_process_out(kind: str, here: Path) -> None:
    path = here / "locked"
    path.touch()
    call = {"flock": "flock", "fcntl": "lockf"}[kind]
    script = f"import fcntl, sys\nwith open(sys.argv[1], 'r+') as f: fcntl.{call}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def another_gets_it() -> bool:
        result = subprocess.run([sys.executable, "-ISc", script, path], capture_output=True, text=True, check=False)
        assert result.returncode == 0 or "BlockingIOError" in result.stderr
        return result.returncode == 0

    with open(path, "r+") as file:
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
        assert not another_gets_it()
        getattr(fcntl, call)(file, fcntl.LOCK_UN)
        assert another_gets_it()
        getattr(fcntl, call)(file, fcntl.LOCK_EX)
    assert another_gets_it()


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


def test_renaming_a_directory_moves_all_below_it(here: Path, folder: Folder) -> None:
    for number in range(30):
        (here / f"old/{number}/deep").mkdir(parents=True)
        (here / f"old/{number}/deep/file").write_text(str(number))
    (here / "target").mkdir()
    with open(here / "old/7/deep/file", "a") as held:
        (here / "old").rename(here / "target/new")
        held.write(" more")
    folder.remount()
    assert (here / "target/new/7/deep/file").read_text() == "7 more"
    assert (here / "target/new/29/deep/file").read_text() == "29"
    assert not (here / "old").exists()


def test_unlinked_files_stay_usable_while_open(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"first")
    with opened(path, os.O_RDWR) as fd:
        path.unlink()
        assert not path.exists()
        assert os.pread(fd, 10, 0) == b"first"
        os.pwrite(fd, b"second" * 100_000, 0)
        assert os.pread(fd, 6, 300_000) == b"second"
        assert os.fstat(fd).st_nlink == 0
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 6)
        assert os.fstat(fd).st_size == 6
        os.fsync(fd)
        path.write_bytes(b"another")
        assert os.pread(fd, 10, 0) == b"second"
    here.joinpath("dir").mkdir()
    with opened(here / "dir", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (here / "dir").rmdir()
        assert os.listdir(fd) == []
    assert path.read_bytes() == b"another"


def test_a_replaced_file_stays_readable_while_open(here: Path) -> None:
    (here / "old").write_bytes(b"old" * 100_000)
    (here / "new").write_bytes(b"new")
    with opened(here / "old", os.O_RDONLY) as fd:
        os.replace(here / "new", here / "old")
        assert os.pread(fd, 3, 299_997) == b"old"
    assert (here / "old").read_bytes() == b"new"


def test_open_flags_mean_what_they_say(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"content")
    with fails_with(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails_with(errno.ENOTDIR):
        os.open(path, os.O_DIRECTORY)
    with fails_with(errno.EISDIR):
        os.open(here, os.O_WRONLY)
    (here / "link").symlink_to("file")
    with fails_with(errno.ELOOP):
        os.open(here / "link", os.O_NOFOLLOW)
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b" and more")
    assert path.read_bytes() == b"content and more"
    with opened(path, os.O_RDONLY) as fd, fails_with(errno.EBADF):
        os.write(fd, b"x")
    with opened(path, os.O_WRONLY) as fd, fails_with(errno.EBADF):
        os.read(fd, 1)
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        assert path.stat().st_size == 0
    with opened(path, os.O_RDWR | os.O_SYNC) as fd:
        os.write(fd, b"durable")
    assert path.read_bytes() == b"durable"


def test_holes_read_as_zeros_and_cost_no_space(here: Path, folder: Folder) -> None:
    path = here / "sparse"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 64 << 20)
        os.ftruncate(fd, 128 << 20)
    folder.remount()
    assert path.stat().st_blocks * 512 < 64 << 20
    with opened(path, os.O_RDWR) as fd:
        assert os.pread(fd, 10, (64 << 20) - 5) == b"\0\0\0\0\0end\0\0"
        os.ftruncate(fd, (64 << 20) + 1)
        os.ftruncate(fd, (64 << 20) + 4)
        assert os.pread(fd, 10, (64 << 20) - 1) == b"\0e\0\0\0"


def test_fallocate_fails_cleanly_where_it_is_not_supported(here: Path) -> None:
    with opened(here / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 10_000)
        expected = b"x" * 4096
        with contextlib.suppress(NotSupported):
            fallocate(fd, 3, 0, 4096)  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            expected = bytes(4096)
        assert os.pread(fd, 4096, 0) == expected
        assert os.fstat(fd).st_size == 10_000


def test_copy_file_range_and_sendfile_copy(here: Path) -> None:
    (here / "source").write_bytes(content := os.urandom(3_000_000))
    with opened(here / "source", os.O_RDONLY) as source, opened(here / "copy", os.O_CREAT | os.O_RDWR) as copy:
        done = 0
        while moved := os.copy_file_range(source, copy, 1 << 20, done, done):
            done += moved
        assert os.sendfile(copy, source, 0, 1000) == 1000
    assert (here / "copy").read_bytes() in (content, content[:1000] + content[1000:])


def test_times_are_kept_to_the_nanosecond(here: Path, folder: Folder) -> None:
    times = [(0, 1), (1_234_567_890_123_456_789, 987_654_321_987_654_321), (-5_000_000_001, 4_500_000_000_999_999_999)]
    for number, pair in enumerate(times):
        (here / str(number)).touch()
        os.utime(here / str(number), ns=pair)
    folder.remount()
    assert [((now := os.stat(here / str(n))).st_atime_ns, now.st_mtime_ns) for n in range(3)] == times


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


def test_many_threads_use_one_mount_at_once(here: Path) -> None:
    failures: list[BaseException] = []

    def work(who: int) -> None:
        try:
            for number in itertools.islice(itertools.count(), 60):
                path = here / f"{who}-{number}"
                path.write_bytes(body := bytes([who]) * (number * 1000))
                assert path.read_bytes() == body
                path.rename(here / f"{who}-{number % 7}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(here)) == 8 * 7
