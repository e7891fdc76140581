"""A server that says what cannot be: one bad file never hides the others."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Node

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
