"""A server that says what cannot be: one bad file never hides the others."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Node
from tests.nodeserver.api import Api

STRANGE = {
    "mode": 0o170644,
    "uid": -1,
    "gid": 2**40,
    "rdev": -1,
    "nlink": -5,
    "size": -1,
    "atime_ns": 2**63 - 1,
    "mtime_ns": -(2**63),
    "ctime_ns": -1,
}


@pytest.mark.sqlite
def test_a_file_with_attributes_that_cannot_be_does_not_hide_the_others(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket("strange")
    first = make_mount(node, "strange")
    names = ["fine", *(f"bad-{name}" for name in STRANGE)]
    for name in names:
        (first.path / name).write_text("text")
    first.stop()
    node.stop()
    with closing(sqlite3.connect(_database(node))) as database, database:
        for column, value in STRANGE.items():
            chosen = "SELECT file FROM entry WHERE name = ?"
            database.execute(
                f"UPDATE file SET {column} = ? WHERE id IN ({chosen})",
                (value, f"bad-{column}".encode()),
            )
    node.start()
    mount = make_mount(node, "strange")
    assert sorted(os.listdir(mount.path)) == sorted(names)
    with os.scandir(mount.path) as entries:
        assert sorted(entry.name for entry in entries if entry.stat(follow_symlinks=False).st_ino) == sorted(names)
    assert (mount.path / "fine").read_text() == "text"


def _database(node: Node) -> Path:
    return node.data / "metadata.sqlite"


def test_a_file_with_the_number_of_another_is_never_taken_for_it(node: Node, make_mount: MakeMount) -> None:
    """Also while the other has changes that are not sent, of which nothing the server says is taken."""
    api = Api(node, "strange")
    with closing(api.http):
        mine = api.new_file(b"mine", b"text")
        other = api.create(b"other")
        other.file.id = bytes(8) + mine[8:]
        api.commit(other)
        mount = make_mount(node, "strange")
        with open(mount.path / "mine", "a") as file:
            file.write(" and more")
            file.flush()
            for refused in os.unlink, os.stat:
                with pytest.raises(OSError, match="Input/output"):
                    refused(mount.path / "other")
        assert (mount.path / "mine").read_text() == "text and more"
        mount.stop()
        assert api.names() == [b"mine", b"other"]
        assert api.file(mine).size == len("text and more")


def test_two_files_with_one_number_are_never_taken_for_each_other(node: Node, make_mount: MakeMount) -> None:
    api = Api(node, "strange")
    with closing(api.http):
        one = api.new_file(b"one", b"this")
        two = api.create(b"two")
        two.file.id = bytes(8) + one[8:]
        api.commit(two, api.write(two.file.id, b"that"))
    mount = make_mount(node, "strange")
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(mount.path)
    assert (mount.path / "one").read_text() == "this"
    with pytest.raises(OSError, match="Input/output"):
        (mount.path / "two").read_text()
