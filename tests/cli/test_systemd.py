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
FOLDER = "/srv/photos"
TOKEN = "/home/someone/.config/mountfs/token"
OPTIONS = f"_netdev,noauto,nofail,defaults,x-systemd.mount-timeout=400,drain_deadline=60,token-file={TOKEN}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With a node server, of which the ordinary user has a token and a bucket."""
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        machine.run("systemctl", "start", "nodeserver")
        machine.write(TOKEN, machine.run("cat", "/var/lib/nodeserver/admin.token"), user=True)
        machine.run("mountfs", "bucket", "create", "photos", "--url", URL, "--token-file", TOKEN, user=True)
        machine.run("mountfs", "bucket", "create", "fstab", "--url", URL, "--token-file", TOKEN)
        machine.run("mkdir", POINT, user=True)
        machine.run("mkdir", FOLDER)
        yield machine


def test_a_mount_is_a_service_of_an_ordinary_user(machine: Machine) -> None:
    machine.write(
        "/home/someone/.config/mountfs/photos.env",
        f"SOURCE={URL}/photos\nMOUNTPOINT={POINT}\nMOUNTFS_TOKEN_FILE={TOKEN}\n",
        user=True,
    )
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


def test_a_line_of_fstab_is_a_unit_that_ends_when_all_is_sent(machine: Machine) -> None:
    fstab(machine, f"{URL}/fstab {FOLDER} mountfs {OPTIONS} 0 0")
    machine.run("systemctl", "start", "srv-photos.mount")
    machine.run("sh", "-c", f"head -c 3000000 /dev/urandom > {FOLDER}/file; cp {FOLDER}/file /root/copy")
    machine.run("systemctl", "stop", "srv-photos.mount")
    assert machine.run("mountfs", "status") == "nothing is mounted\n"
    machine.run("rm", "-r", "/var/lib/mountfs")  # what is there now is from the server
    machine.run("mount", "-o", "drain_deadline=1", FOLDER)
    machine.run("cmp", f"{FOLDER}/file", "/root/copy")
    machine.run("systemctl", "stop", "nodeserver")
    machine.run("sh", "-c", f"echo new > {FOLDER}/new")
    said = machine.run("umount", FOLDER, code=3)
    assert "pending: new" in said
    machine.run("systemctl", "start", "nodeserver")
    machine.run("mount", FOLDER)
    assert machine.run("cat", f"{FOLDER}/new") == "new\n"
    machine.run("umount", FOLDER)
    machine.run("rm", "-r", "/var/lib/mountfs")
    machine.run("mount", FOLDER)
    assert machine.run("cat", f"{FOLDER}/new") == "new\n"
    machine.run("umount", FOLDER)


def test_a_mount_becomes_read_only_and_back(machine: Machine) -> None:
    fstab(machine, f"{URL}/fstab {FOLDER} mountfs {OPTIONS} 0 0")
    machine.run("mount", FOLDER)
    machine.run("mount", "-o", "remount,ro", FOLDER)
    assert "Read-only" in machine.run("touch", f"{FOLDER}/refused", code=1)
    machine.run("mount", "-o", "remount,rw,noexec", FOLDER)
    machine.run("touch", f"{FOLDER}/taken")
    assert "noexec" in machine.run("findmnt", "-n", "-o", "OPTIONS", FOLDER)
    assert "cannot change umask" in machine.run("mount", "-o", "remount,umask=077", FOLDER, code=32)
    machine.run("sh", "-c", f"exec 3> {FOLDER}/taken; mount -o remount,ro {FOLDER}; test $? = 32")
    machine.run("umount", FOLDER)
    machine.run("mount", "-o", "ro", FOLDER)
    assert "Read-only" in machine.run("touch", f"{FOLDER}/refused", code=1)
    machine.run("umount", FOLDER)


def test_a_user_mounts_what_fstab_allows_and_nobody_else_unmounts_it(machine: Machine) -> None:
    folder = "/home/someone/Folder"
    machine.run("mkdir", folder, user=True)
    fstab(machine, f"{URL}/photos {folder} mountfs noauto,user,exec,token-file={TOKEN} 0 0")
    machine.run("mount", folder, user=True)
    machine.run("sh", "-c", f"echo content > {folder}/by-fstab", user=True)
    assert "Permission denied" in machine.run("ls", folder, code=2), "not even root sees it"
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nonexistent"]
    assert "its user" in machine.run(*other, "mountfs", "umount", folder, code=1)
    assert machine.run(*other, "umount", folder, code=None)
    assert machine.run("cat", f"{folder}/by-fstab", user=True) == "content\n"
    machine.run("umount", folder, user=True)
    assert folder not in machine.run("cat", "/proc/self/mountinfo")
    assert machine.run("mountfs", "status", user=True) == "nothing is mounted\n"


def test_allow_other_is_for_users_when_root_says_so(machine: Machine) -> None:
    arguments = ["mountfs", "mount", f"{URL}/photos", POINT, "-o", "allow_other", "--token-file", TOKEN]
    said = machine.run(*arguments, user=True, code=1)
    assert "user_allow_other into /etc/fuse.conf" in said
    machine.write("/etc/fuse.conf", "user_allow_other\n")
    machine.run("chmod", "644", "/etc/fuse.conf")
    machine.run(*arguments, user=True)
    machine.run("touch", f"{POINT}/new", user=True)
    assert "new" in machine.run("ls", POINT)
    machine.run("mountfs", "umount", POINT, user=True)


def fstab(machine: Machine, line: str) -> None:
    machine.run("sh", "-c", "cat > /etc/fstab; systemctl daemon-reload", feed=line + "\n")
