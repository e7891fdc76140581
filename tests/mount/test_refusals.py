"""A mount that cannot be says why in one line, and changes nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mountfs.local.database import FORMAT
from tests.conftest import MakeMount
from tests.harness import Node
from tests.nodeserver.api import Api

BUCKET = "refusals"


def test_wrong_tokens_buckets_and_urls_are_told_in_one_line(node: Node, make_mount: MakeMount, tmp_path: Path) -> None:
    path = tmp_path / "point"
    path.mkdir()

    def refused(*words: str, bucket: str = node.create_bucket(BUCKET), at: Path = path, **how: Any) -> None:
        options = {"metadata-deadline": 1} | how.pop("options", {})
        make_mount(node, bucket, path=at, start=False, options=options, **how).refused(*words)

    (tmp_path / "wrong").write_text("not.a.token\n")
    (tmp_path / "wrong").chmod(0o600)
    (tmp_path / "file").touch()
    refused("token", token_file=tmp_path / "wrong")
    refused("absent", token_file=tmp_path / "absent")
    refused("no-such-bucket", bucket="no-such-bucket")
    refused("Not_A_Bucket", bucket="Not_A_Bucket")
    refused(bucket="a/b/c")
    for url in "ftp://example.org", "http://", "nonsense", "http://127.0.0.1:1", "http://127.0.0.1:99999":
        refused(url=url)
    refused("nonsense", options={"nonsense": True})
    refused("Not a directory", at=tmp_path / "file/absent")
    refused("file", at=tmp_path / "file")


def test_state_of_a_newer_release_is_refused_unchanged(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket(BUCKET))
    (mount.path / "file").write_text("kept")
    mount.stop()
    set_format(mount.state, FORMAT + 1)
    before = (mount.state / "mount.db").read_bytes()
    mount.refused(f"format {FORMAT + 1}", "newer")
    assert (mount.state / "mount.db").read_bytes() == before
    set_format(mount.state, FORMAT)
    mount.start()
    assert (mount.path / "file").read_text() == "kept"


def set_format(state: Path, number: int) -> None:
    """Make the local database one of another format."""
    with closing(sqlite3.connect(state / "mount.db")) as db:
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_nobody_else_may_look_into_the_state_directory(node: Node, make_mount: MakeMount, tmp_path: Path) -> None:
    mount = make_mount(node, node.create_bucket(BUCKET), start=False)
    mount.state.mkdir(parents=True, exist_ok=True)
    mount.state.chmod(0o755)
    mount.start()
    (mount.path / "file").write_text("kept")
    assert stat.S_IMODE(mount.state.stat().st_mode) == 0o700
    mount.stop()
    mount.state.chmod(0o755)
    (mount.state / "mount.db").chmod(0o644)
    mount.start()
    assert (mount.path / "file").read_text() == "kept"
    assert stat.S_IMODE(mount.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((mount.state / "mount.db").stat().st_mode) == 0o600

    other = make_mount(node, BUCKET, start=False)
    other.state.mkdir(parents=True, exist_ok=True)
    other.state.chmod(0o755)
    (other.state / "letter").touch()
    other.refused("open to other users")
    assert stat.S_IMODE(other.state.stat().st_mode) == 0o755


def test_a_row_that_no_kernel_takes_does_not_end_a_listing(node: Node, make_mount: MakeMount) -> None:
    """Earlier servers took a device of any number."""
    if Node.new_database:
        pytest.skip("the database is not in the directory")
    api = Api(node, BUCKET)
    with closing(api.http):
        api.commit(api.create(b"device", stat.S_IFCHR | 0o600), api.create(b"file"))
    node.stop()
    with closing(sqlite3.connect(node.data / "metadata.sqlite")) as db:
        assert db.execute("UPDATE file SET rdev = -1 WHERE mode = ?", (stat.S_IFCHR | 0o600,)).rowcount == 1
        db.commit()
    node.start()
    mount = make_mount(node, BUCKET)
    assert sorted(path.name for path in os.scandir(mount.path)) == ["device", "file"]
    assert stat.S_ISCHR((mount.path / "device").stat().st_mode)
    assert stat.S_ISCHR((mount.path / ".versions" / "@now" / "device").stat().st_mode)
