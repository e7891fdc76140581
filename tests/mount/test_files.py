"""What the kernel's interface promises about open files and their content, one promise a test."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.mount.conftest import Folder
from tests.mount.posix import RENAME_EXCHANGE, NotSupported, fails_with, fallocate, opened, renameat2

GIB = 1 << 30


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


@pytest.mark.parametrize("how", ["rename", "link", "exchange"])
def test_a_sparse_file_that_was_written_through_a_mapping_gets_its_name(how: str, here: Path, folder: Folder) -> None:
    """As linkers write programs: extend, map, write, close, rename; also with pages that are still mapped."""
    temporary, path = here / "temporary", here / "out"
    if how == "exchange":
        path.write_bytes(b"before")
    for mapped in (False, True):
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.ftruncate(fd, 1 << 20)
        with mmap.mmap(fd, 1 << 20) as view:
            view[: 600 << 10] = data = os.urandom(600 << 10)
            view.flush()
            if mapped:
                view[4096:8192] = os.urandom(4096)
                data = view[: 600 << 10]
            os.close(fd)
            if how == "rename":
                os.rename(temporary, path)
            elif how == "link":
                path.unlink(missing_ok=True)
                os.link(temporary, path)
                temporary.unlink()
            else:
                renameat2(temporary, path, RENAME_EXCHANGE)
        assert path.read_bytes() == data + bytes((1 << 20) - len(data))
        folder.sync()
    folder.remount()
    assert path.read_bytes() == data + bytes((1 << 20) - len(data))


def test_private_mappings_leave_the_file_alone(here: Path) -> None:
    path = here / "mapped"
    path.write_bytes(b"a" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as view:
        view[:4] = b"mine"
    assert path.read_bytes() == b"a" * 10_000


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
            os.ftruncate(fd, (1 << 63) - 1)
        with fails_with(errno.EINVAL):
            os.ftruncate(fd, -1)
        assert os.pread(fd, 10, 1 << 61) == b""
        assert os.fstat(fd).st_size == 0


def test_a_file_may_have_1_eib_and_no_more(here: Path) -> None:
    path, most = here / "file", 1 << 60
    path.touch()
    os.truncate(path, most)
    assert path.stat().st_size == most
    with fails_with(errno.EFBIG):
        os.truncate(path, most + 1)
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"end", most - 3)
        os.fsync(fd)
        assert os.pread(fd, 10, most - 5) == b"\0\0end"
    with fails_with(errno.EFBIG, errno.EIO), opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"beyond", most)  # with write-back it may be told only when the kernel hands it over
        os.fsync(fd)


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


def test_a_file_written_in_thousands_of_scattered_places_goes_up(here: Path, folder: Folder) -> None:
    body = bytearray(os.urandom(6 << 20))
    path = here / "scattered"
    path.write_bytes(body)
    folder.sync()
    with opened(path, os.O_RDWR) as fd:
        for number in range(0, 1500, 2):
            os.pwrite(fd, bytes([number % 251]) * 4096, number * 4096)
            body[number * 4096 : (number + 1) * 4096] = bytes([number % 251]) * 4096
        os.fsync(fd)
        if folder.mount:
            assert len(os.listdir(f"/proc/{folder.mount.pid}/fd")) < 150, "descriptors must not pile up"
    folder.sync()
    folder.remount()
    assert path.read_bytes() == body
