"""Unmounting what is in use, and what is still on its way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountfs import mounts
from tests.cli.machine import alone
from tests.cli.test_lifecycle import failed, mount, pid_of, point, shared
from tests.conftest import MakeNode
from tests.harness import BIN, Node, command, eventually, is_mount

__all__ = ["point", "shared"]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
HOLD = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


def run(*args: str | Path) -> str:
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def running(*args: str | Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that has said something, until the end of the block."""
    process = subprocess.Popen(args, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def mounted(at: Path, *args: str | Path) -> Iterator[None]:
    """Something mounted with mount(8) until the end of the block."""
    run("mount", *args, at)
    try:
        yield
    finally:
        run("umount", at)


def refused(point: Path, *words: str) -> None:
    """The mount is left alone, works, and the command says why."""
    failed(command("mountfs", "umount", point), 4, "in use by", *words)
    assert is_mount(point)
    (point / "afterwards").write_text("content")
    assert command("mountfs", "status", point).returncode == 0


def gone(point: Path) -> None:
    result = command("mountfs", "umount", point)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    assert not is_mount(point)


def test_who_has_a_file_open_is_named(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    (point / "file").write_text("content")
    with running(sys.executable, "-c", HOLD, point / "file") as process:
        refused(point, f"({process.pid})")
    gone(point)


@root_only
def test_a_bind_mount_holds_the_mount(shared: Node, point: Path, tmp_path: Path) -> None:
    assert mount(shared, point).returncode == 0
    (other := tmp_path / "other").mkdir()
    with mounted(other, "--bind", point):
        refused(point, f"its mount at {other}")
        assert (other / "afterwards").read_text() == "content"
    gone(point)


def namespace(point: Path, propagation: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A process in a mount namespace of its own, without what other tests have mounted."""
    return running(*alone(point, propagation), "sh", "-c", "echo in; exec sleep 600")


@root_only
def test_another_namespace_holds_the_mount(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    with namespace(point, "private") as process:
        refused(point, f"its mount at {point} for sleep ({process.pid})")
    gone(point)


@root_only
def test_a_namespace_that_follows_does_not_hold_the_mount(shared: Node, point: Path, tmp_path: Path) -> None:
    with mounted(tmp_path, "--bind", tmp_path):
        run("mount", "--make-shared", tmp_path)
        with namespace(point, "slave") as process:
            table = Path(f"/proc/{process.pid}/mountinfo")
            assert mount(shared, point).returncode == 0
            assert f" {point} " in table.read_text()
            gone(point)
            assert f" {point} " not in table.read_text()


@root_only
def test_what_is_mounted_below_or_over_it_holds_the_mount(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    (point / "below").mkdir()
    with mounted(point / "below", "-t", "tmpfs", "tmpfs"):
        refused(point, f"the tmpfs mounted at {point / 'below'}")
    with mounted(point, "-t", "tmpfs", "tmpfs"):
        failed(command("mountfs", "umount", point), 4, f"the tmpfs mounted at {point}")
    assert mounts.find(point)
    gone(point)


@root_only
def test_a_loop_device_holds_the_mount(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    with open(point / "disk", "wb") as disk:
        disk.truncate(1 << 20)
    try:
        device = run("losetup", "--find", "--show", point / "disk")
    except subprocess.CalledProcessError as error:
        pytest.skip(error.stderr)
    try:
        refused(point, f"{device} on {point / 'disk'}")
        Path(device).write_bytes(b"on the disk")
    finally:
        run("losetup", "--detach", device)
    eventually(lambda: not Path("/sys/block", Path(device).name, "loop").exists())
    gone(point)
    assert mount(shared, point).returncode == 0
    assert (point / "disk").read_bytes().startswith(b"on the disk")


def test_lazy_unmounts_it_all_the_same(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    (point / "kept").write_text("content")
    pid = pid_of(point)
    with running(sys.executable, "-c", HOLD, point / "kept"):
        assert command("mountfs", "umount", "--lazy", point).returncode == 0
        assert not is_mount(point)
        assert mounts.process_start(pid) is None
    assert mount(shared, point).returncode == 0
    assert (point / "kept").read_text() == "content"


def from_the_server(node: Node, point: Path, tmp_path: Path, name: str) -> str:
    """A file's content in a mount that has nothing of its own."""
    assert mount(node, point, "--state", tmp_path / "fresh").returncode == 0
    return (point / name).read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_mount_in_order(shared: Node, point: Path, tmp_path: Path, number: signal.Signals) -> None:
    assert mount(shared, point).returncode == 0
    (point / number.name).write_text("content")
    os.kill(pid := pid_of(point), number)
    eventually(lambda: mounts.process_start(pid) is None, 60)
    assert not is_mount(point)
    assert from_the_server(shared, point, tmp_path, number.name) == "content"


def test_a_terminal_that_closes_ends_the_mount_in_order(shared: Node, point: Path, tmp_path: Path) -> None:
    master, terminal = os.openpty()
    arguments: list[str | Path] = [f"{shared.url}/files", point, "--token-file", shared.token_file, "--foreground"]
    process = subprocess.Popen(
        ["setsid", "--ctty", BIN / "mountfs", "mount", *arguments], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        eventually(lambda: mounts.record_of(point), 30)
        (point / "by-terminal").write_text("content")
    finally:
        os.close(master)
        assert process.wait(60) == 0
    assert not is_mount(point)
    assert from_the_server(shared, point, tmp_path, "by-terminal") == "content"


def test_nohup_keeps_the_mount(shared: Node, point: Path) -> None:
    arguments: list[str | Path] = [f"{shared.url}/files", point, "--token-file", shared.token_file, "--foreground"]
    with open(point.with_name("log"), "wb") as log:
        process = subprocess.Popen(["nohup", BIN / "mountfs", "mount", *arguments], stdout=log, stderr=log)
    eventually(lambda: mounts.record_of(point), 30)
    process.send_signal(signal.SIGHUP)
    (point / "by-nohup").write_text("content")
    gone(point)
    assert process.wait(30) == 0


def test_a_mount_that_is_off_the_tree_tells_that_it_drains_and_the_next_takes_over(
    make_node: MakeNode, point: Path, tmp_path: Path
) -> None:
    node = make_node()
    node.create_bucket("files")
    assert mount(node, point, "-o", "metadata-deadline=1").returncode == 0
    os.listdir(point)
    node.kill()
    (point / "late").write_text("content")
    pid = pid_of(point)
    mounts.unmount(point)
    status = command("mountfs", "status", point)
    assert re.search(r"^draining +it ends", status.stdout, re.MULTILINE), status.stdout + status.stderr
    assert "late" in status.stdout
    assert mount(node, point, "-o", "metadata-deadline=1").returncode == 0
    assert pid_of(point) != pid
    assert (point / "late").read_text() == "content"
    assert "draining" not in command("mountfs", "status", point).stdout
    node.start()
    gone(point)
    assert from_the_server(node, point, tmp_path, "late") == "content"
