"""A server that comes back from a backup: what mounts have and it has forgotten is put back, or named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import MakeMount, MakeNode
from tests.harness import Mount, Node, command, eventually

OPTIONS = {"settle": 0.1, "metadata-deadline": 5}


class Backup:
    """A copy of a server's whole data directory, made while it is stopped."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.copy = node.data.with_name(node.data.name + ".backup")

    def make(self) -> None:
        self.node.stop()
        shutil.copytree(self.node.data, self.copy)
        self.node.start()

    def restore(self) -> None:
        if self.node.running:
            self.node.stop()
        shutil.rmtree(self.node.data)
        shutil.copytree(self.copy, self.node.data)
        self.node.start()


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    node = make_node()
    node.create_bucket("backup")
    return node


@pytest.fixture
def mount(node: Node, make_mount: MakeMount) -> Mount:
    return make_mount(node, "backup", options=OPTIONS)


@pytest.fixture
def backup(node: Node) -> Backup:
    return Backup(node)


def tree(path: Path) -> dict[str, object]:
    """All below a directory: contents, targets, link counts."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(path):
        for name in [*names, *files]:
            place = Path(directory, name)
            status = os.lstat(place)
            content: object = None
            if place.is_symlink():
                content = os.readlink(place)
            elif place.is_file():
                content = (place.read_bytes(), status.st_nlink)
            found[str(place.relative_to(path))] = (status.st_mode, status.st_uid, content)
    return found


def before(path: Path) -> None:
    """What the backup has."""
    (path / "old").write_bytes(b"old")
    (path / "changed").write_bytes(b"as it was")
    (path / "large").write_bytes(os.urandom(3 << 20))
    (path / "d").mkdir()
    (path / "d/kept").write_bytes(b"kept")


def after(path: Path) -> None:
    """What it lacks."""
    (path / "new").write_bytes(b"new")
    (path / "changed").write_bytes(b"as it became")
    (path / "large").write_bytes(os.urandom(4 << 20))
    (path / "e/f").mkdir(parents=True)
    (path / "e/f/deep").write_bytes(os.urandom(700_000))
    os.link(path / "e/f/deep", path / "d/link")
    os.symlink("deep", path / "e/f/symlink")
    (path / "e/empty").touch(mode=0o600)


def test_what_the_backup_lacks_is_put_back(node: Node, mount: Mount, backup: Backup, make_mount: MakeMount) -> None:
    before(mount.path)
    mount.sync()
    backup.make()
    after(mount.path)
    mount.sync()
    whole = tree(mount.path)
    backup.restore()
    result = command("mountfs", "sync", mount.path)
    assert result.returncode == 0, result.stderr
    assert "came back from an older state" in result.stderr
    assert tree(mount.path) == whole
    assert tree(make_mount(node, "backup", options=OPTIONS).path) == whole
    assert "came back from an older state" in command("mountfs", "status", mount.path).stdout
    (mount.path / "afterwards").write_bytes(b"on we go")
    assert "older state" not in command("mountfs", "sync", mount.path).stderr, "it is told once"


def test_it_is_noticed_without_being_asked(mount: Mount, backup: Backup, node: Node) -> None:
    (mount.path / "gone").write_bytes(b"gone")
    mount.sync()
    backup.make()
    (mount.path / "new").write_bytes(b"new")
    (mount.path / "gone").unlink()
    mount.sync()
    backup.restore()
    eventually(lambda: mount.status()["rewound"], 30, "it is noticed")
    assert (mount.path / "new").read_bytes() == b"new"
    (mount.path / "another").mkdir()
    assert sorted(os.listdir(mount.path)) == ["another", "gone", "new"]


def test_also_when_the_server_has_moved_on(mount: Mount, backup: Backup, node: Node, make_mount: MakeMount) -> None:
    """The numbers of its new commits are those of the lost ones; their times tell."""
    (mount.path / "both").write_bytes(b"as it was")
    mount.sync()
    backup.make()
    (mount.path / "new").write_bytes(b"new")
    (mount.path / "both").write_bytes(b"ours")
    mount.sync()
    mount.kill()
    backup.restore()
    other = make_mount(node, "backup", options=OPTIONS)
    for number in range(5):
        (other.path / f"theirs{number}").write_bytes(b"theirs")
        other.sync()
    (other.path / "both").write_bytes(b"theirs")
    other.sync()
    mount.start()
    mount.sync()
    other.sync()
    for path in mount.path, other.path:
        eventually(lambda path=path: (path / "new").exists(), 10, "the file is back")  # type: ignore[misc]
        names = set(os.listdir(path))
        assert {"new", "both", *(f"theirs{number}" for number in range(5))} < names, names
        (copy,) = [name for name in names if name.startswith("both (")]
        assert {(path / "both").read_bytes(), (path / copy).read_bytes()} == {b"ours", b"theirs"}


def test_changes_that_wait_come_after_what_is_put_back(mount: Mount, backup: Backup, node: Node) -> None:
    backup.make()
    (mount.path / "d").mkdir()
    (mount.path / "d/new").write_bytes(os.urandom(600_000))
    mount.sync()
    node.stop()
    with open(mount.path / "d/new", "r+b") as file:
        file.write(b"changed")
    os.rename(mount.path / "d/new", mount.path / "d/moved")
    (mount.path / "d/later").write_bytes(b"later")
    whole = tree(mount.path)
    backup.restore()
    mount.sync()
    eventually(lambda: tree(mount.path) == whole, 10, "all is there")
    mount.unmount()
    shutil.rmtree(mount.state)
    mount.start()
    assert tree(mount.path) == whole


def test_content_that_is_nowhere_is_named(mount: Mount, backup: Backup, node: Node, make_mount: MakeMount) -> None:
    (mount.path / "d").mkdir()
    mount.sync()
    backup.make()
    other = make_mount(node, "backup", options=OPTIONS)
    (other.path / "d/lost").write_bytes(os.urandom(100_000))
    other.sync()
    eventually(lambda: os.listdir(mount.path / "d") == ["lost"], 10, "the other mount's file shows")
    assert os.stat(mount.path / "d/lost").st_size == 100_000
    other.kill()
    backup.restore()
    result = command("mountfs", "sync", mount.path)
    assert result.returncode == 1, result.stderr
    assert "d/lost" in result.stderr
    assert os.listdir(mount.path / "d") == []
    (told,) = mount.status()["rewound"]
    assert told["lost"] == ["d/lost"]
    assert "d/lost" in command("mountfs", "doctor").stdout


def test_a_bucket_that_the_backup_lacks_stays_while_changes_wait(
    backup: Backup, node: Node, make_mount: MakeMount
) -> None:
    root = make_mount(node, options=OPTIONS)
    backup.make()
    (root.path / "photos").mkdir()
    (root.path / "photos/sent").write_bytes(b"sent")
    root.sync()
    node.stop()
    (root.path / "photos/waits").write_bytes(b"waits")
    backup.restore()
    eventually(lambda: os.listdir(root.path) and "no such bucket" in str(root.status()["errors"]), 30, "it is told")
    assert (root.path / "photos/waits").read_bytes() == b"waits"
    assert command("mountfs", "sync", root.path, "--deadline", "1").returncode == 3
