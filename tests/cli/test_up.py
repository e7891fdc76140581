"""``mountfs up`` and ``make run``: two commands to a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountfs import mounts
from tests.harness import BIN, command, eventually, is_mount

ROOT = Path(__file__).parents[2]


class Up:
    """A running ``mountfs up``."""

    def __init__(self, point: Path, log: Path) -> None:
        self.point = point
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [BIN / "mountfs", "up", point], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        eventually(lambda: "Ctrl-C" in self.text or self.process.poll() is not None, 60, "mountfs up is ready")
        assert self.process.poll() is None, self.text

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


Start = Callable[[], Up]


@pytest.fixture
def start(tmp_path: Path, home: Path) -> Iterator[Start]:
    """Starts ``mountfs up`` on the folder ``Buckets``; everything of it ends with the test."""
    started: list[Up] = []

    def start() -> Up:
        started.append(Up(tmp_path / "Buckets", tmp_path / f"up{len(started)}.log"))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.stop()
    clean(home)


def clean(home: Path) -> None:
    """End what a killed ``up`` left."""
    pids = [record.pid for record in mounts.records() if record.running]
    pids += [pid for pid in (server(home),) if pid]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for mount in mounts.mounted():
        if mount.point.is_relative_to(home.parent):
            mounts.unmount(mount.point, lazy=True)


def memory(home: Path) -> dict[str, int]:
    [file] = (home / "state/mountfs").glob("up-*/up.json")
    found: dict[str, int] = json.loads(file.read_text())
    return found


def server(home: Path) -> int | None:
    """The process of the running server."""
    if not list((home / "state/mountfs").glob("up-*/up.json")):
        return None
    found = memory(home)
    return found["pid"] if mounts.process_start(found["pid"]) == found["start"] else None


def daemon(up: Up) -> int | None:
    """The process of the running mount."""
    record = mounts.record_of(up.point)
    return record.pid if record and record.running else None


def works(up: Up, name: str) -> bool:
    try:
        (up.point / "files" / name).write_text("content")
    except OSError:
        return False
    return (up.point / "files" / name).read_text() == "content"


def test_a_folder_that_is_there_again_the_next_day(start: Start, home: Path) -> None:
    up = start()
    assert str(up.point) in up.text
    assert os.listdir(up.point) == ["files"]
    assert works(up, "yesterday")
    (up.point / "photos").mkdir()
    port = memory(home)["port"]
    assert up.stop() == 0
    assert not is_mount(up.point)
    assert server(home) is None
    assert os.listdir(up.point) == []
    assert up.point.stat().st_mode & 0o777 == 0o500, "nothing is stored by mistake where nothing is mounted"
    up = start()
    assert sorted(os.listdir(up.point)) == ["files", "photos"]
    assert (up.point / "files/yesterday").read_text() == "content"
    assert memory(home)["port"] == port
    second = command("mountfs", "up", up.point)
    assert second.returncode == 4
    assert f"in use by process {up.process.pid}" in second.stderr
    assert up.stop(signal.SIGTERM) == 0
    assert not is_mount(up.point)


def test_what_dies_is_started_again(start: Start, home: Path) -> None:
    up = start()
    assert works(up, "with-server")
    first = server(home)
    assert first
    os.kill(first, signal.SIGKILL)
    assert works(up, "without-server")
    eventually(lambda: server(home) not in (None, first), 30, "another server")
    assert command("mountfs", "sync", up.point).returncode == 0
    dead = daemon(up)
    assert dead
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: daemon(up) not in (None, dead) and works(up, "another-mount"), 30, "another mount")
    assert (up.point / "files/without-server").read_text() == "content"
    for part, again in ("server", "the server is started again"), ("mount", f"{up.point} is mounted again"):
        eventually(lambda: again in up.text.partition(f"the {part} ended with -9")[2], 30, again)  # noqa: B023
    assert up.stop() == 0


def test_unmounting_the_folder_ends_it(start: Start, home: Path) -> None:
    up = start()
    assert command("mountfs", "umount", up.point).returncode == 0
    assert up.process.wait(30) == 0
    assert server(home) is None


def test_what_a_killed_one_left_is_taken_over(start: Start, home: Path) -> None:
    up = start()
    assert works(up, "before")
    left = server(home)
    up.process.kill()
    up.process.wait()
    up = start()
    assert server(home) not in (None, left)
    assert (up.point / "files/before").read_text() == "content"
    assert [found.point for found in mounts.mounted()].count(up.point) == 1
    assert up.stop() == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which ``make setup`` has nothing to do."""
    checkout = tmp_path / "checkout"
    (checkout / ".venv").mkdir(parents=True)
    (checkout / ".venv/bin").symlink_to(BIN)
    for name in "Makefile", "pyproject.toml", "constraints.txt", "nodeserver/__init__.py":
        (checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for stamp in f".made-in{re.sub('/', '_', str(checkout))}", ".setup":
        (checkout / ".venv" / stamp).touch()
    return checkout


def test_make_setup_shows_what_it_installs_and_fails_with_it(checkout: Path) -> None:
    (checkout / ".venv/.setup").unlink()
    (checkout / ".venv/bin").unlink()
    (checkout / ".venv/bin").mkdir()
    pip = checkout / ".venv/bin/python"
    pip.write_text("#!/bin/sh\necho 'Collecting trio>=0.30'; echo Collecting rich; echo Installing\n")
    pip.chmod(0o755)
    made = subprocess.run(["make", "setup"], cwd=checkout, capture_output=True, text=True, check=True)
    assert "trio rich" in made.stdout
    again = subprocess.run(["make", "setup"], cwd=checkout, capture_output=True, text=True, check=True)
    assert "trio" not in again.stdout
    (checkout / ".venv/.setup").unlink()
    pip.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    failing = subprocess.run(["make", "setup"], cwd=checkout, capture_output=True, text=True, check=False)
    assert failing.returncode
    assert "no network" in failing.stderr
    assert not (checkout / ".venv/.setup").exists()


@pytest.fixture
def make_run(checkout: Path, home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``make run`` with the folder ``Buckets``, ready, and the terminal it runs at."""
    controller, terminal = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "make", "run", f"MOUNTPOINT={checkout.parent}/Buckets"],
        cwd=checkout,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        seen = b""
        while b"Ctrl-C" not in seen:
            seen += os.read(controller, 4096)
        yield process, controller
        process.kill()
        clean(home)
        os.close(controller)


MakeRun = tuple[subprocess.Popen[bytes], int]


def test_ctrl_c_at_make_run_ends_it_with_0(make_run: MakeRun, tmp_path: Path) -> None:
    process, terminal = make_run
    assert os.listdir(tmp_path / "Buckets") == ["files"]
    os.write(terminal, b"\x03")
    assert process.wait(60) == 0
    assert not is_mount(tmp_path / "Buckets")


def test_the_folder_ends_with_the_make_that_runs_it(make_run: MakeRun, tmp_path: Path, home: Path) -> None:
    process, _ = make_run
    process.terminate()
    process.wait(60)
    eventually(lambda: server(home) is None, 30, "the server ends")
    assert not is_mount(tmp_path / "Buckets")
