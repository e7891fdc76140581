"""retention, hold and purge on a real mount."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.cli.past import Past
from tests.conftest import MakeMount
from tests.harness import BIN, Node


@pytest.fixture
def bucket(module_node: Node, request: pytest.FixtureRequest) -> str:
    return module_node.create_bucket(f"b{abs(hash(request.node.nodeid)) % 10**12}")


@pytest.fixture
def past(module_node: Node, make_mount: MakeMount, bucket: str) -> Past:
    """A mount of a bucket of its own."""
    return Past(make_mount(module_node, bucket))


@pytest.fixture
def where(past: Past) -> Path:
    return past.path


def numbers(past: Past, path: Path) -> list[int]:
    """The versions that are left, newest first."""
    events = past.json("log", path)
    return [event["number"] for event in events if event["event"] == "write" and event["number"]]


def test_the_policy_that_applies_is_shown_with_its_origin(past: Past, where: Path, bucket: str) -> None:
    (where / "a/b").mkdir(parents=True)
    assert past.run("retention", where / "a") == (f"{where}/a: the default\nkeep=all:10m,1m:1h,1h:1d,1d:30d,1w:1y\n")
    past.run("retention", where, "set", "max-versions=5", "exclude=*.swp,.~lock*", "max-share=50%")
    shown = past.run("retention", where / "a/b", "show")
    assert shown.splitlines()[0] == f"{where}/a/b: set for the bucket"
    assert {"max-versions=5", "exclude=*.swp,.~lock*", "max-share=50%"} <= set(shown.splitlines())
    answer = past.json("retention", where / "a", "set", "keep=all:1d", "exclude=")
    assert (answer["origin"], answer["policy"]) == ("here", {"keep": "all:1d", "max-versions": "5"})
    assert past.json("retention", where / "a/b")["origin"] == "above"
    assert past.json("retention", where / "a/b")["directory"] == answer["directory"]
    past.run("retention", "unset", where / "a")
    assert past.json("retention", where / "a/b")["origin"] == "bucket"


def test_a_bucket_is_meant_by_name(
    past: Past, where: Path, bucket: str, module_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = "--url", module_node.url, "--token-file", module_node.token_file
    assert past.json("retention", bucket, "set", "max-age=30d", *server)["origin"] == "here"
    assert past.json("retention", where)["policy"]["max-age"] == "30d"
    assert "max-age" not in past.json("retention", bucket, "unset", *server)["policy"]
    monkeypatch.chdir(where)
    try:
        assert past.json("retention", bucket)["origin"] == "default"
    finally:
        os.chdir("/")
    assert past.json("retention", "show", bucket)["origin"] == "default", "of the only server there are mounts of"
    assert "There is no such bucket" in past.refused("retention", "no-such-bucket", *server)


def test_retention_refuses_what_it_cannot(past: Past, where: Path) -> None:
    (where / "dir").mkdir()
    past.write("file", "x")
    assert "not a directory" in past.refused("retention", where / "file")
    assert "no name of a bucket" in past.refused("retention", where / "never", code=2)
    assert "not one of keep" in past.refused("retention", where, "set", "nonsense=1", code=2)
    assert "is not a number" in past.refused("retention", where, "set", "max-versions=0", code=2)
    assert "share of the quota" in past.refused("retention", where / "dir", "set", "max-share=10%")
    assert "under a policy that is set" in past.refused("retention", where, "set", "max-versions=1", "--dry-run")
    for args in (["set"], ["show", "keep=all:1d"], ["nonsense"]):
        past.run("retention", where, *args, code=2)


def test_a_dry_run_tells_and_a_run_does(past: Past, where: Path) -> None:
    for text in ("one", "two", "three"):
        past.write("file", text * 1000)
    nothing = past.json("retention", where, "--dry-run")["report"]
    assert nothing == {"versions": 0, "files": 0, "bytes": 0}
    past.run("retention", where, "set", "max-versions=2", "keep=")
    planned = past.json("retention", where, "run", "--dry-run")["report"]
    assert (planned["versions"], planned["files"]) == (1, 1)
    assert planned["bytes"] > 0
    assert "1 versions of 1 files would go" in past.run("retention", where, "--dry-run")
    assert numbers(past, where / "file") == [3, 2, 1]
    assert past.json("retention", where, "run")["report"] == planned
    assert numbers(past, where / "file") == [3, 2]
    assert past.json("retention", where, "run")["report"]["versions"] == 0


def test_what_is_held_stays_until_it_is_released(past: Past, where: Path) -> None:
    (where / "dir").mkdir()
    for text in ("one", "two", "three"):
        past.write("dir/file", text)
        past.write("other", text)
    past.run("retention", where, "set", "max-versions=1", "keep=")
    assert past.run("hold", where / "dir", "--note", "for the audit") == f"{where}/dir: held\n"
    [hold] = past.json("hold", where, "--list")
    assert (hold["path"], hold["note"]) == ("dir", "for the audit")
    assert hold["time"].endswith("Z")
    assert hold["author"]
    assert past.run("hold", where, "--list").split()[2:6] == ["dir", "for", "the", "audit"]
    past.run("retention", where, "run")
    assert numbers(past, where / "other") == [3]
    assert numbers(past, where / "dir/file") == [3, 2, 1]
    assert "held" in past.refused("purge", where / "dir/file", "--yes")
    assert past.run("hold", where / "dir", "--release") == f"{where}/dir: no longer held\n"
    assert past.json("hold", where, "--list") == []
    assert "not held itself" in past.refused("hold", where / "dir", "--release")
    past.run("retention", where, "run")
    assert numbers(past, where / "dir/file") == [3]


def test_a_hold_is_released_by_the_path_also_when_the_file_was_saved_anew(past: Past, where: Path) -> None:
    past.write("file", "one")
    past.run("hold", where / "file")
    (where / "new").write_text("two")
    (where / "new").replace(where / "file")
    past.moment()
    assert [hold["note"] for hold in past.json("hold", where / "file", "--release")] == [""]
    assert past.json("hold", where / "file", "--list") == []


def test_hold_says_how_it_is_used(past: Past, where: Path) -> None:
    assert "nothing was there" in past.refused("hold", where / "never")
    past.run("hold", code=2)
    past.run("hold", where, "--release", "--list", code=2)
    past.run("hold", where, "--note", "x", "--release", code=2)


def test_purge_destroys_versions_for_good(past: Past, where: Path) -> None:
    for text in ("one", "two", "three"):
        past.write("file", text)
    assert "--yes" in past.refused("purge", where / "file"), "not without a terminal"
    assert numbers(past, where / "file") == [3, 2, 1]
    answer = past.json("purge", where / "file", "--version", "#1", "--yes")
    assert (answer["versions"], answer["path"]) == (1, str(where / "file"))
    assert numbers(past, where / "file") == [3, 2]
    assert "1 versions destroyed" in past.run("purge", where / "file", "--yes")
    assert numbers(past, where / "file") == [3]
    assert (where / "file").read_text() == "three"
    assert "no versions but" in past.refused("purge", where / "file", "--yes")
    assert "content of a file that exists" in past.refused("purge", where / "file", "--version", "#3", "--yes")
    assert "no version #1" in past.refused("purge", where / "file", "--version", "#1", "--yes")
    assert "only files" in past.refused("purge", where, "--yes")
    assert [event["event"] for event in past.json("log", where / "file")][:2] == ["purge", "purge"], "stands in the log"
    (where / "file").unlink()
    past.moment()
    assert past.json("purge", where / "file", "--yes")["versions"] == 1
    assert "nothing was there" in past.refused("undo", where / "file")


@pytest.mark.parametrize("answer", ["n", "y"])
def test_purge_asks_at_a_terminal_and_tells_what_goes(past: Past, where: Path, answer: str) -> None:
    past.write("file", "one")
    past.write("file", "two")
    terminal, mine = pty.openpty()
    try:
        process = subprocess.Popen(
            [BIN / "mountfs", "purge", where / "file"], stdin=mine, stdout=subprocess.PIPE, stderr=mine, text=True
        )
        asked = b""
        while b"[y/N]" not in asked:
            asked += os.read(terminal, 1024)
        os.write(terminal, answer.encode() + b"\n")
        said = process.communicate(timeout=60)[0]
    finally:
        os.close(terminal)
        os.close(mine)
    assert b"#1 " in asked
    assert b"what it holds now stays" in asked
    if answer == "y":
        assert (process.returncode, numbers(past, where / "file")) == (0, [2])
        assert "1 versions destroyed" in said
    else:
        assert (process.returncode, numbers(past, where / "file")) == (1, [2, 1])
