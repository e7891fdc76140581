"""What was acknowledged survives kill -9, of the daemon and of the server, at any moment."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import BIN, Mount, Node, command, disk_use, eventually
from tests.mount.attempts import attempt
from tests.mount.ledger import Ledger
from tests.mount.posix import fails_with

UNDER_WAY = {"ENOTCONN", "ECONNABORTED", "EIO"}
"""What a call may get that is under way when the daemon dies; EIO is what the kernel makes of a failed write-back."""
ROUNDS = 6
"""Daemons killed in one test, times --soak."""


class Writer:
    """A `writer` process and its log."""

    def __init__(self, root: Path, log: Path, seed: int, count: int) -> None:
        self.log = log
        script = Path(__file__).with_name("writer.py")
        args: list[str | Path] = [sys.executable, "-IS", script, root, log, str(seed), str(count)]
        self._process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)

    def acknowledged(self) -> int:
        """Steps done so far."""
        return self.log.read_bytes().count(b'"done"') if self.log.exists() else 0

    def finish(self, timeout: float = 120.0) -> str:
        """Wait for the end; returns what it failed with, '' when it did all its steps."""
        output, _ = self._process.communicate(timeout=timeout)
        assert self._process.returncode in (0, 3)
        return output.strip()

    @property
    def running(self) -> bool:
        return self._process.poll() is None


def progress(writers: list[Writer], count: int) -> None:
    """Wait until the writers have done ``count`` steps, or none of them does any more."""
    eventually(
        lambda: sum(writer.acknowledged() for writer in writers) >= count or not any(w.running for w in writers), 60
    )


def a_moment(rng: random.Random) -> None:
    """Let a random, short time pass: the very moment of a kill is what is left to chance here."""
    threading.Event().wait(rng.random() * 0.1)


def test_everything_closed_survives_a_kill_of_the_daemon(
    node: Node, make_mount: MakeMount, tmp_path: Path, soak: int
) -> None:
    rng = random.Random(soak)
    bucket = node.create_bucket("crash")
    mount = make_mount(node, bucket)
    second = make_mount(node, bucket, start=False)
    ledgers: list[Ledger] = []
    for turn in range(ROUNDS * soak):
        logs = [tmp_path / f"log-{turn}-{who}" for who in range(2)]
        writers = [Writer(mount.path, log, turn * 10 + who, 10_000) for who, log in enumerate(logs)]
        wanted = rng.choice([0, 1, 5, 20, 60])
        progress(writers, wanted)
        a_moment(rng)
        mount.kill()
        failures = [writer.finish() for writer in writers]
        assert all(failure.split()[0] in UNDER_WAY for failure in failures), failures
        gone(mount)
        fresh = [Ledger(log) for log in logs]
        if turn % 3 == 0:
            second.start()
            for ledger in fresh:
                ledger.check_server(second.path)
            second.stop()
            shutil.rmtree(second.state)
        if turn % 4 == 1:
            kill_while_starting(mount, rng)
        mount.start()
        ledgers += fresh
        for ledger in ledgers:
            ledger.check_folder(mount.path)
        for ledger in fresh:
            ledger.resolve(mount.path)
    mount.sync()
    second.start()
    for ledger in ledgers:
        ledger.check_folder(second.path)
    assert sorted(os.listdir(second.path)) == sorted(os.listdir(mount.path))


def gone(mount: Mount) -> None:
    """Every call on the dead mount gets ENOTCONN."""
    for call in (os.listdir, os.statvfs):
        with fails_with(errno.ENOTCONN):
            call(mount.path)
    with fails_with(errno.ENOTCONN):
        (mount.path / "new").touch()


def kill_while_starting(mount: Mount, rng: random.Random) -> None:
    """Start the daemon and kill it before, or just after, it is ready."""
    args: list[str | Path] = [BIN / "mountfs", *mount.arguments_of_mount(), "--foreground"]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    threading.Event().wait(rng.random())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_everything_goes_up_once_although_the_server_is_killed_again_and_again(
    node: Node, make_mount: MakeMount, tmp_path: Path, soak: int
) -> None:
    rng = random.Random(-soak)
    bucket = node.create_bucket("crash")
    mount = make_mount(node, bucket)
    logs = [tmp_path / f"log-{who}" for who in range(2)]
    writers = [Writer(mount.path, log, who, 120) for who, log in enumerate(logs)]
    for turn in range(4 * soak):
        progress(writers, 50 * turn)
        a_moment(rng)
        node.kill()
        a_moment(rng)
        node.start()
    assert [writer.finish() for writer in writers] == ["", ""]
    mount.sync()
    ledgers = [Ledger(log) for log in logs]
    second = make_mount(node, bucket)
    for root in mount.path, second.path:
        for ledger in ledgers:
            ledger.check_folder(root)
        assert sorted(os.listdir(root)) == ["w0", "w1"]
    files = sum(len(ledger.sure) + len(ledger.directories) for ledger in ledgers)
    assert node.usage(bucket)["used_files"] in (files, files + 1)  # with the root or without


def test_a_dead_mount_is_never_an_empty_directory(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("crash"))
    (mount.path / "file").write_text("x")
    mount.kill()
    gone(mount)
    with fails_with(errno.ENOTCONN):
        (mount.path / "file").read_text()


def test_mounting_over_a_dead_mount_cleans_it_up(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("crash"))
    (mount.path / "file").write_text("kept")
    for _ in range(3):
        mount.kill()
        mount.start()
    assert (mount.path / "file").read_text() == "kept"
    mount.stop()
    assert os.listdir(mount.path) == []


def test_without_foreground_mount_returns_once_the_folder_answers(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("crash"), start=False)
    mount.path.mkdir()
    result = command("mountfs", *mount.arguments_of_mount())
    try:
        assert result.returncode == 0, result.stderr
        (mount.path / "file").write_text("x")
        again = command("mountfs", *mount.arguments_of_mount())
        assert again.returncode != 0
        assert (mount.path / "file").read_text() == "x"
    finally:
        done = command("mountfs", "umount", mount.path)
    assert done.returncode == 0, done.stderr
    assert not mount.mounted
    assert os.listdir(mount.path) == []


def test_the_state_serves_one_daemon_at_a_time(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("crash"))
    other = make_mount(node, "crash", state=mount.state, start=False)
    other.path.mkdir()
    result = command("mountfs", *other.arguments_of_mount())
    assert result.returncode != 0
    assert str(mount.pid) in result.stderr
    assert "Traceback" not in result.stderr
    (mount.path / "file").write_text("works")


def test_the_space_of_files_that_the_dead_had_not_closed_is_given_back(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("crash"), cache_size="100M")
    script = "import os, sys, time\nf = open(sys.argv[1], 'wb', 0)\nos.unlink(sys.argv[1])\n"
    script += "for _ in range(70): f.write(os.urandom(1 << 20))\nos.fsync(f.fileno())\nprint('written', flush=True)\n"
    script += "sys.stdin.read()"
    for number in range(3):
        holder = subprocess.Popen(
            [sys.executable, "-ISc", script, mount.path / f"unlinked{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"written\n"
        mount.kill()
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()
        mount.start()
    assert os.listdir(mount.path) == []
    eventually(lambda: mount.status()["cache"]["dirty"] == 0, what="the space may be used for something else")
    assert disk_use(mount.state) <= 110 << 20


@pytest.mark.parametrize("how", ["umount", "SIGTERM", "SIGINT"])
def test_an_orderly_end_leaves_everything_on_the_server(how: str, node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("orderly")
    mount = make_mount(node, bucket)
    for number in range(50):
        (mount.path / str(number)).write_bytes(os.urandom(10_000))
    expected = {path.name: path.read_bytes() for path in mount.path.iterdir()}
    if how == "umount":
        mount.unmount()
    elif how == "SIGTERM":
        mount.stop()
    else:
        assert mount.end(signal.SIGINT) == 0
        assert not mount.mounted
    second = make_mount(node, bucket)
    assert {path.name: path.read_bytes() for path in second.path.iterdir()} == expected


def test_close_cluster_waits_for_the_server(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("cluster")
    mount = make_mount(node, bucket, options={"close": "cluster"})
    (mount.path / "file").write_bytes(content := os.urandom(100_000))
    mount.kill()
    second = make_mount(node, bucket)
    assert (second.path / "file").read_bytes() == content


def test_fsync_and_sync_put_it_on_the_server(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("durable")
    mount = make_mount(node, bucket)
    (mount.path / "deep/er").mkdir(parents=True)
    fd = os.open(mount.path / "deep/er/file", os.O_CREAT | os.O_WRONLY)
    for number in range(20):
        os.write(fd, bytes([number]) * 1000)
        os.fsync(fd)
    os.write(fd, b"not synced")
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    second = make_mount(node, bucket)
    content = (second.path / "deep/er/file").read_bytes()
    assert content == b"".join(bytes([number]) * 1000 for number in range(20))
    second.stop()
    mount.start()
    (mount.path / "deep/er/other").write_text("synced")
    mount.sync(mount.path / "deep")
    mount.kill()
    second.start()
    assert (second.path / "deep/er/other").read_text() == "synced"


def test_sync_is_through_also_when_files_came_and_went(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("durable"))
    for directory in mount.path, mount.path / "directory":
        directory.mkdir(exist_ok=True)
        (directory / "temporary").write_bytes(os.urandom(100_000))
        (directory / "temporary").unlink()
        mount.sync()
        assert mount.status()["pending"]["operations"] == 0


def test_fsync_of_a_directory_does_not_wait_for_files_that_are_open(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("durable")
    mount = make_mount(node, bucket, options={"nowriteback": True, "data-deadline": 10})
    with open(mount.path / "open", "wb", buffering=0) as file:
        file.write(os.urandom(3 << 20))
        (mount.path / "closed").write_text("content")
        for _ in range(3):
            file.write(os.urandom(1 << 20))
            assert attempt("os.fsync(os.open(path, os.O_RDONLY))", mount.path, 5) == ""
        second = make_mount(node, bucket)
        assert sorted(os.listdir(second.path)) == ["closed", "open"]
        assert (second.path / "closed").read_text() == "content"


PAGE = 4096


def page(file: str, number: int, version: int) -> bytes:
    """What a page of a file holds: it tells where it belongs."""
    return f"{file} page {number} version {version}\n".encode().ljust(PAGE, b".")


@pytest.mark.parametrize("writeback", [True, False], ids=["writeback", "nowriteback"])
def test_pages_of_a_file_that_was_being_written_in_place_are_old_or_new_after_a_crash(
    writeback: bool, node: Node, make_mount: MakeMount
) -> None:
    rng = random.Random(writeback)
    bucket = node.create_bucket("crash")
    mount = make_mount(node, bucket, options={} if writeback else {"nowriteback": True})
    files = {f"file{count}": count for count in (3, 60, 600)}
    for name, count in files.items():
        (mount.path / name).write_bytes(b"".join(page(name, number, 0) for number in range(count)))
        (mount.path / f"gone-{name}").write_bytes(b"secret" * PAGE)
        (mount.path / f"gone-{name}").unlink()
    mount.sync()
    fds = {name: os.open(mount.path / name, os.O_RDWR) for name in files}
    allowed = {
        name: [set[int | None]([0 if number < count else None]) for number in range(2 * count)]
        for name, count in files.items()
    }
    for version in range(1, 400):
        name = rng.choice(list(files))
        number = rng.randrange(2 * files[name])
        assert os.pwrite(fds[name], page(name, number, version), number * PAGE) == PAGE
        if writeback:
            allowed[name][number].add(version)
        else:
            allowed[name][number] = {version}
        if version == 300:  # the kernel begins to hand over what it has collected
            for fd in fds.values():
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    sizes = {name: os.fstat(fd).st_size for name, fd in fds.items()}
    mount.kill()
    for fd in fds.values():
        with contextlib.suppress(OSError):
            os.close(fd)
    mount.start()
    for name, count in files.items():
        content = (mount.path / name).read_bytes()
        assert count * PAGE <= len(content) <= sizes[name]
        assert writeback or len(content) == sizes[name]
        for number in range(len(content) // PAGE):
            versions = allowed[name][number]
            rights = [bytes(PAGE) if version is None else page(name, number, version) for version in versions]
            assert content[number * PAGE :][:PAGE] in rights, (name, number, versions)
    mount.sync()
    second = make_mount(node, bucket)
    assert {name: (second.path / name).read_bytes() for name in os.listdir(second.path)} == {
        name: (mount.path / name).read_bytes() for name in files
    }
