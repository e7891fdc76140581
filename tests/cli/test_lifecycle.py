"""Mounts that come and go through the commands, with real servers and real mounts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mountfs import control, mounts
from tests.conftest import MakeMount, MakeNode
from tests.harness import BIN, Node, command, eventually, is_mount

STARTED = Callable[..., Path]


@pytest.fixture(scope="module")
def shared(module_node: Node) -> Node:
    """A node server with the bucket ``files``, shared by the tests of this module."""
    module_node.create_bucket("files")
    return module_node


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; whatever is mounted there ends with the test."""
    path = tmp_path / "point"
    path.mkdir()
    yield path
    if record := mounts.record_of(path):
        if record.running:
            os.kill(record.pid, signal.SIGKILL)
        eventually(lambda: not record.running)
    while is_mount(path):
        mounts.unmount(path, lazy=True)


def mount(node: Node, point: Path, *more: str | Path, bucket: str = "files") -> subprocess.CompletedProcess[str]:
    return command("mountfs", "mount", f"{node.url}/{bucket}", point, "--token-file", node.token_file, *more)


def pid_of(point: Path) -> int:
    record = mounts.record_of(point)
    assert record
    return record.pid


def failed(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_mount_returns_when_the_folder_works_and_umount_when_all_is_sent(shared: Node, point: Path) -> None:
    result = mount(shared, point)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    (point / "one").write_text("content")
    pid = pid_of(point)
    record = mounts.record_of(point)
    assert record
    assert os.getsid(pid) not in (os.getsid(0), pid), "a daemon: neither of our session nor the leader of its own"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)} == {f"{record.state}/mountfs.log"}
    assert os.stat(record.state).st_mode & 0o777 == 0o700
    assert os.stat(Path(record.state) / "token").st_mode & 0o777 == 0o600
    result = command("mountfs", "umount", point)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    assert not is_mount(point)
    assert mounts.process_start(pid) is None
    assert mounts.records() == []
    # The token of the last time is kept, and so is what was written.
    assert command("mountfs", "mount", f"{shared.url}/files", point).returncode == 0
    assert (point / "one").read_text() == "content"


def test_a_mount_point_and_a_state_are_used_once(shared: Node, point: Path, tmp_path: Path) -> None:
    assert mount(shared, point).returncode == 0
    failed(mount(shared, point), 4, "already mounted", str(pid_of(point)))
    (tmp_path / "other").mkdir()
    result = mount(shared, tmp_path / "other")
    assert result.returncode != 0
    assert str(pid_of(point)) in result.stderr
    assert not is_mount(tmp_path / "other")


def test_a_mount_in_use_is_not_unmounted_unless_told_to(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    with subprocess.Popen(["sleep", "600"], cwd=point) as process:
        try:
            failed(command("mountfs", "umount", point), 4, "in use", f"sleep ({process.pid})")
            assert is_mount(point)
            assert command("mountfs", "umount", "--lazy", point).returncode == 0
        finally:
            process.kill()
    assert not is_mount(point)


def test_a_dead_mount_gives_errors_and_is_cleaned_up(shared: Node, point: Path) -> None:
    assert mount(shared, point).returncode == 0
    (point / "kept").write_text("kept")
    os.kill(pid := pid_of(point), signal.SIGKILL)
    eventually(lambda: mounts.process_start(pid) is None)
    assert is_mount(point)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(point)
    failed(command("mountfs", "sync", point), 5, "died")
    failed(command("mountfs", "status", point), 5, "died")
    listed = command("mountfs", "status", "--json")
    assert listed.returncode == 5
    assert [(found["mountpoint"], "died" in found["problem"]) for found in json.loads(listed.stdout)] == [
        (str(point), True)
    ]
    doctor = command("mountfs", "doctor")
    assert doctor.returncode == 1
    assert f"failed  mount {point}: its process has died" in doctor.stdout
    assert mount(shared, point).returncode == 0
    assert [found.point for found in mounts.mounted()].count(point) == 1
    assert (point / "kept").read_text() == "kept"
    os.kill(pid_of(point), signal.SIGKILL)
    failed(command("mountfs", "umount", point), 0, "had died")
    assert not is_mount(point)
    failed(command("mountfs", "umount", point), 5, "not a mountfs mount")


def test_sync_and_umount_name_what_they_could_not_send(make_node: MakeNode, point: Path) -> None:
    node = make_node()
    node.create_bucket("files")
    assert mount(node, point, "-o", "metadata-deadline=1,data-deadline=1").returncode == 0
    (point / "directory").mkdir()
    assert command("mountfs", "sync", point / "directory").returncode == 0
    node.kill()
    (point / "directory/unsent").write_text("content")
    failed(command("mountfs", "sync", point, "--deadline", "0.5"), 3, "unsent", "status")
    status = command("mountfs", "status", point)
    assert "NOT connected" in status.stdout
    assert "unsent" in status.stdout
    failed(command("mountfs", "sync", point / "absent"), 1, "no such file")
    failed(command("mountfs", "umount", point, "--deadline", "0.5"), 3, "unsent", "next mount")
    assert not is_mount(point)
    node.start()
    assert mount(node, point).returncode == 0
    assert command("mountfs", "sync", point).returncode == 0
    assert json.loads(command("mountfs", "status", point, "--json").stdout)["pending"]["operations"] == 0


def test_status_tells_all_there_is_to_tell(shared: Node, point: Path) -> None:
    assert mount(shared, point, "--cache-size", "64M").returncode == 0
    status: dict[str, Any] = json.loads(command("mountfs", "status", point, "--json").stdout)
    assert status.keys() == control.Status.__annotations__.keys()
    assert (status["url"], status["bucket"], status["pid"]) == (shared.url, "files", pid_of(point))
    assert status["connected"]
    assert status["cache"]["cap"] == 64 << 20
    (point / "sub").mkdir()
    (point / "sub/link").symlink_to("/")
    for inside in point / "sub", point / "sub/absent":
        assert json.loads(command("mountfs", "status", inside, "--json").stdout)["mountpoint"] == str(point)
    text = command("mountfs", "status").stdout
    assert f"mount point  {point}\n" in text
    assert "connected since" in text


def test_commands_find_the_server_by_the_current_directory(
    shared: Node, point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mount(shared, point).returncode == 0
    assert "files" in command("mountfs", "bucket", "list").stdout, "all mounts are of one server"
    monkeypatch.chdir(point)
    assert "files" in command("mountfs", "bucket", "list").stdout
    assert command("mountfs", "bucket", "create", "from-inside").returncode == 0
    assert command("mountfs", "bucket", "delete", "from-inside").returncode == 0
    assert command("mountfs", "sync").returncode == 0
    assert command("mountfs", "doctor").returncode == 0


@pytest.mark.parametrize("refused", ["noexec", "nosuid", "nodev"])
def test_what_a_mount_may_be_denied(shared: Node, point: Path, refused: str) -> None:
    assert mount(shared, point, "-o", refused).returncode == 0
    [line] = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {point} " in line]
    assert refused in line.split()[3].split(",")


def test_links_lead_to_the_mount(shared: Node, point: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(point)
    assert mount(shared, tmp_path / "link").returncode == 0
    assert is_mount(point)
    assert command("mountfs", "sync", tmp_path / "link").returncode == 0
    assert command("mountfs", "umount", tmp_path / "link").returncode == 0
    assert not is_mount(point)


@pytest.fixture
def helper() -> Iterator[None]:
    """``/sbin/mount.mountfs``, where mount(8) looks for it."""
    place = Path("/sbin/mount.mountfs")
    if place.exists():
        yield
        return
    place.symlink_to(BIN / "mount.mountfs")
    yield
    place.unlink()


@pytest.mark.usefixtures("helper")
def test_a_line_of_fstab_mounts_and_umount_8_unmounts(shared: Node, point: Path, tmp_path: Path) -> None:
    options = (
        f"_netdev,nofail,noatime,x-systemd.automount,umask=022,token-file={shared.token_file},state={tmp_path}/state"
    )
    (tmp_path / "fstab").write_text(f"{shared.url}/files {point} mountfs {options} 0 0\n")
    result = subprocess.run(["mount", "-T", tmp_path / "fstab", point], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    (point / "by-fstab").write_text("content")
    pid = pid_of(point)
    assert mounts.record_of(point) == next(iter(mounts.records()))
    subprocess.run(["umount", point], check=True)
    eventually(lambda: mounts.process_start(pid) is None, 30)
    again = subprocess.run(["mount", "-T", tmp_path / "fstab", point], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert (point / "by-fstab").read_text() == "content"
    twice = subprocess.run(["mount", "-T", tmp_path / "fstab", point], capture_output=True, text=True, check=False)
    assert twice.returncode == 32
    assert "already mounted" in twice.stderr


def test_the_service_manager_is_told_when_the_mount_is_ready(
    shared: Node, make_mount: MakeMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        made = make_mount(shared, "files")
        assert notified.recv(4096) == b"READY=1"
        made.stop()


def test_the_log_is_rotated_and_keeps_what_c_code_prints(shared: Node, point: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "mountfs.log").write_bytes(b"x" * (6 << 20))
    assert mount(shared, point, "--state", state, "--debug").returncode == 0
    assert (state / "mountfs.log.1").stat().st_size == 6 << 20
    assert 0 < (state / "mountfs.log").stat().st_size < 1 << 20
    assert os.readlink(f"/proc/{pid_of(point)}/fd/2") == str(state / "mountfs.log")
