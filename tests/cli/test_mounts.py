"""The kernel's table, the records of mounts, locks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from mountfs import mounts
from mountfs.config import MountConfig
from mountfs.errors import Busy, MountError

TABLE = r"""21 1 0:19 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:40 / /srv/with\040space\134\012 rw,nosuid,nodev shared:2 master:1 - fuse.mountfs http://h:1/abc rw,user_id=0
31 21 0:41 / /srv/other rw - fuse.sshfs me@host:/ rw
32 30 0:42 / /srv/with\040space\134\012/inner rw - tmpfs tmpfs rw
33 21 0:43 / /srv/größer rw - fuse.mountfs http://h:1 rw
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE)
    monkeypatch.setattr(mounts, "MOUNTINFO", file)


def config(mountpoint: Path, state: Path) -> MountConfig:
    return MountConfig(url="http://h:1", bucket="abc", mountpoint=mountpoint, token="t", state=state)


@pytest.mark.usefixtures("table")
def test_the_table_is_parsed() -> None:
    assert mounts.mounted()[1] == mounts.Mounted(Path("/srv/with space\\\n"), "fuse.mountfs", "http://h:1/abc")
    assert [mount.source for mount in mounts.mounted()] == [
        "/dev/root",
        "http://h:1/abc",
        "me@host:/",
        "tmpfs",
        "http://h:1",
    ]


@pytest.mark.usefixtures("table")
def test_only_our_mounts_are_found() -> None:
    assert mounts.find(Path("/srv/größer"))
    assert mounts.find(Path("/srv/other")) is None
    assert mounts.find(Path("/srv")) is None
    assert mounts.containing(Path("/srv/größer/a/b")) == mounts.find(Path("/srv/größer"))
    assert mounts.containing(Path("/srv/with space\\\n")) is not None
    assert mounts.containing(Path("/srv/with space\\\n/inner/x")) is None
    assert mounts.containing(Path("/srv/größeres")) is None


@pytest.mark.usefixtures("table")
def test_a_mount_on_top_hides_ours() -> None:
    with open(mounts.MOUNTINFO, "a") as file:
        file.write("34 33 0:44 / /srv/größer rw - tmpfs tmpfs rw\n")
    assert mounts.find(Path("/srv/größer")) is None


def test_this_machines_table_is_parsed() -> None:
    assert any(mount.point == Path("/") for mount in mounts.mounted())


def test_a_record_lives_as_long_as_its_process(home: Path, tmp_path: Path) -> None:
    mine = config(tmp_path / "point", tmp_path / "state")
    mounts.register(mine)
    record = mounts.record_of(tmp_path / "point")
    assert record
    assert record.running
    assert (record.pid, record.url, record.bucket) == (os.getpid(), "http://h:1", "abc")
    assert record.control == tmp_path / "state/control.sock"
    [file] = (home / "run/mountfs").iterdir()
    assert "token" not in json.loads(file.read_text())
    mounts.unregister(mine)
    assert mounts.records() == []
    assert not file.exists()


def test_records_of_the_dead_and_broken_records_are_cleared_away(home: Path, tmp_path: Path) -> None:
    mounts.register(config(tmp_path / "point", tmp_path / "state"))
    [file] = (home / "run/mountfs").iterdir()
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"started": record["started"] - 1}))
    broken = file.with_name("broken.json")
    broken.write_text("{")
    assert mounts.records() == []
    assert not file.exists()
    assert not broken.exists()


def test_a_process_is_told_from_a_zombie_and_from_none() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    assert mounts.process_start(child)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert mounts.process_start(child) is None
    os.waitpid(child, 0)
    assert mounts.process_start(child) is None


def test_what_is_no_mount_is_alive_and_cannot_be_unmounted(tmp_path: Path) -> None:
    assert mounts.probe(tmp_path) == "alive"
    with pytest.raises(MountError, match=str(tmp_path)):
        mounts.unmount(tmp_path)


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "new/lock"
    with (
        mounts.locked(lock, "the thing"),
        pytest.raises(Busy, match=f"the thing is in use by process {os.getpid()}"),
        mounts.locked(lock, "the thing"),
    ):
        pass
    with mounts.locked(lock, "the thing"):
        pass
