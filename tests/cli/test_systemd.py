"""The units, on a machine that systemd boots."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cli.machine import Machine
from tests.harness import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a container")

POINT = "/home/someone/Photos"
URL = "http://127.0.0.1:7070"
TOKEN = "/home/someone/.config/mountfs/token"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With a node server, of which the ordinary user has a token and a bucket."""
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.run("systemctl", "start", "nodeserver")
        machine.write(TOKEN, machine.run("cat", "/var/lib/nodeserver/admin.token"), user=True)
        machine.run("mountfs", "bucket", "create", "photos", "--url", URL, "--token-file", TOKEN, user=True)
        yield machine


def test_a_mount_is_a_service_of_an_ordinary_user(machine: Machine) -> None:
    machine.write(
        "/home/someone/.config/mountfs/photos.env",
        f"SOURCE={URL}/photos\nMOUNTPOINT={POINT}\nMOUNTFS_TOKEN_FILE={TOKEN}\n",
        user=True,
    )
    machine.run("mkdir", POINT, user=True)
    control(machine, "enable", "--now")
    machine.run("sh", "-c", f"echo first > {POINT}/file", user=True)
    pid = main_pid(machine)
    machine.run("kill", "-KILL", pid)
    eventually(lambda: main_pid(machine) not in (pid, "0") and shown(machine) == "first\n", 30)
    machine.run("sh", "-c", f"echo second > {POINT}/file", user=True)
    control(machine, "stop")
    assert not is_mounted(machine)
    machine.run("rm", "-r", "/home/someone/.local/state/mountfs", user=True)  # what is there now is from the server
    control(machine, "start")
    assert shown(machine) == "second\n"
    machine.run("mountfs", "umount", POINT, user=True)
    eventually(lambda: control(machine, "is-active", code=None) == "inactive\n")
    assert not is_mounted(machine)


def control(machine: Machine, verb: str, *more: str, code: int | None = 0) -> str:
    return machine.run("systemctl", "--user", verb, *more, "mountfs@photos", user=True, code=code)


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl", "--user", "show", "-P", "MainPID", "mountfs@photos", user=True).strip()


def shown(machine: Machine) -> str:
    """What the ordinary user reads in the mount, or why not."""
    return machine.run("cat", f"{POINT}/file", user=True, code=None)


def is_mounted(machine: Machine) -> bool:
    return f" {POINT} " in machine.run("cat", "/proc/self/mountinfo")
