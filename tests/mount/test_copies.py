"""A state directory that was copied, as with a cloned machine."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node, command, eventually


def prepare(path: Path) -> None:
    """What is there before."""
    (path / "directory").mkdir()
    for name in "written", "renamed", "deleted", "linked", "changed":
        (path / name).write_text(f"old {name}")


def work(path: Path) -> None:
    """What is pending when the copy is made: every kind of change."""
    (path / "written").write_text("new content")
    (path / "renamed").rename(path / "directory/renamed")
    (path / "deleted").unlink()
    os.link(path / "linked", path / "link")
    os.chmod(path / "changed", 0o640)
    os.setxattr(path / "changed", "user.x", b"x")
    (path / "made").mkdir()
    (path / "made/new").write_text("made content")
    (path / "made/symlink").symlink_to("new")
    (path / "replacement").write_text("instead")
    (path / "replacement").rename(path / "linked2")


def tree(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, links and content of everything."""
    found = {}
    for at, directories, files in os.walk(path):
        for name in [*directories, *files]:
            one = Path(at, name)
            facts = one.lstat()
            content = os.fsencode(os.readlink(one)) if one.is_symlink() else b"" if one.is_dir() else one.read_bytes()
            found[str(one.relative_to(path))] = (facts.st_mode, facts.st_nlink, content)
    return found


def is_batch_stored(mount: Mount) -> bool:
    """Whether a commit was on its way when the daemon died."""
    with closing(apsw.Connection(str(mount.state / "mount.db"))) as connection:
        return bool(connection.execute("SELECT count(*) FROM batch").get)


def copied(mount: Mount, make_mount: MakeMount, node: Node) -> Mount:
    """A mount, not started, with a copy of the state of another."""
    copy = make_mount(node, "files", start=False)
    shutil.copytree(mount.state, copy.state, ignore=shutil.ignore_patterns("control.sock"))
    return copy


@pytest.mark.parametrize("batched", [False, True])
def test_a_copied_state_sends_nothing_twice_and_loses_nothing(node: Node, make_mount: MakeMount, batched: bool) -> None:
    """``batched``: a part of what is pending was on its way already."""
    node.create_bucket("files")
    original = make_mount(node, "files", options={"settle": 30, "metadata_deadline": 1})
    prepare(original.path)
    original.sync()
    work(original.path)
    expected = tree(original.path)
    node.kill()
    if batched:
        assert command("mountfs", "sync", original.path, "--deadline", "1").returncode == 3
    original.kill()
    assert is_batch_stored(original) == batched
    original.destroy()
    copy = copied(original, make_mount, node)
    node.start()
    for mount in original, copy:
        mount.start()
        mount.sync()
    assert "is a copy" in copy.log.read_text()
    assert "is a copy" not in original.log.read_text()
    assert any("is a copy" in error["text"] for error in copy.status()["errors"])
    fresh = make_mount(node, "files")
    for mount in original, copy, fresh:
        assert tree(mount.path) == expected
    for name in "written", "made/new":
        shown = fresh.path / Path(name).parent / ".versions" / Path(name).name
        versions = set(os.listdir(shown)) - {"current", "previous"}
        assert len(versions) == (2 if name == "written" else 1)


def test_a_copied_state_and_the_original_see_each_other(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket("files")
    original = make_mount(node, "files")
    (original.path / "file").write_text("first")
    original.stop()
    copy = copied(original, make_mount, node)
    for mount in original, copy:
        mount.start()
    for here, there in (original, copy), (copy, original):
        (here.path / f"of-{here.path.name}").write_text("content")
        (here.path / "file").write_text(here.path.name)
        here.sync()
        eventually(lambda: (there.path / f"of-{here.path.name}").exists())  # noqa: B023
        eventually(lambda: (there.path / "file").read_text() == here.path.name)  # noqa: B023
    assert not [name for name in os.listdir(copy.path) if "conflict" in name]
