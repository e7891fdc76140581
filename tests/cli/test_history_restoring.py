"""restore and undo on a real mount."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.past import Past, capture, same_trees
from tests.conftest import MakeMount
from tests.harness import Node, command, eventually


@pytest.fixture
def past(module_node: Node, make_mount: MakeMount, request: pytest.FixtureRequest) -> Past:
    """A mount of a bucket of its own."""
    bucket = module_node.create_bucket(f"b{abs(hash(request.node.nodeid)) % 10**12}")
    return Past(make_mount(module_node, bucket))


@pytest.fixture
def where(past: Past) -> Path:
    return past.path


def test_restore_of_a_version(past: Past, where: Path) -> None:
    past.write("file", "one")
    (where / "file").chmod(0o640)
    os.setxattr(where / "file", "user.note", b"first")
    os.utime(where / "file", ns=(1, 10**18))
    past.moment()
    past.write("file", "two")
    version = past.json("log", where / "file")
    first = next(event["version"] for event in version if event["number"] == 1)
    assert past.json("restore", where / "file", "--version", first, "--dry-run")["changes"] == [
        {"path": str(where / "file"), "change": "content"}
    ]
    assert (where / "file").read_text() == "two", "a dry run changes nothing"
    assert past.run("restore", where / "file", "--version", first[-8:]) == f"{where}/file: 1 changed\n"
    assert (where / "file").read_text() == "one"
    assert "the same already" in past.run("restore", where / "file", "--version", "#1")
    numbers = [event["number"] for event in past.json("log", where / "file") if event["event"] == "write"]
    assert numbers == [3, 2, 1], "history only grows"
    past.run("restore", where / ".versions/file/previous")
    assert (where / "file").read_text() == "two"


def test_restore_at_a_time_brings_all_attributes_back(past: Past, where: Path) -> None:
    (where / "file").write_text("one")
    (where / "file").chmod(0o640)
    os.setxattr(where / "file", "user.note", b"first")
    os.utime(where / "file", ns=(1, 10**18 + 1))
    then = past.moment()
    (where / "file").write_text("two")
    (where / "file").chmod(0o666)
    os.removexattr(where / "file", "user.note")
    past.run("restore", where / "file", "--at", then)
    status = (where / "file").stat()
    assert (where / "file").read_text() == "one"
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 10**18 + 1)
    assert os.getxattr(where / "file", "user.note") == b"first"
    assert "the same already" in past.run("restore", where / "file", "--at", then)


def test_restore_elsewhere(past: Past, where: Path, tmp_path: Path) -> None:
    (where / "dir").mkdir()
    then = past.write("dir/file", "one")
    past.write("dir/file", "two")
    past.run("restore", where / "dir/file", "--at", then, "--to", where / "copy")
    assert (where / "copy").read_text() == "one"
    past.run("restore", where / "dir/file", "--version", "#1", "--to", where)
    assert (where / "file").read_text() == "one"
    past.run("restore", where / ".versions" / f"@{then}" / "dir", "--to", where / "dir2")
    assert (where / "dir2/file").read_text() == "one"
    assert (where / "dir/file").read_text() == "two"
    at = "--at", then
    for to in (where / "copy", where / "dir2", where / "dir"):
        source = where / ("dir" if to.name == "dir2" else "dir/file")
        assert "exists" in past.refused("restore", source, *at, "--to", to)
    assert "no directory" in past.refused("restore", where / "dir/file", *at, "--to", where / "x/y")
    assert "not in a mountfs mount" in past.refused("restore", where / "dir", *at, "--to", tmp_path / "x", code=5)


def test_restore_refuses_what_it_cannot(past: Past, where: Path) -> None:
    (where / "dir").mkdir()
    then = past.write("dir/file", "one")
    subprocess.run(["rm", "-r", where / "dir"], check=True)
    (where / "dir").write_text("in the way")
    past.moment()
    assert "--delete" in past.refused("restore", where / "dir", "--at", then)
    assert "no directory now" in past.refused("restore", where / "dir/file", "--at", then)
    assert "nothing was there" in past.refused("restore", where / "never", "--at", then)
    assert "history begins later" in past.refused("restore", where / "dir", "--at", "2001-01-01")
    assert "is not a time" in past.refused("restore", where / "dir", "--at", "soon", code=2)
    assert "future" in past.refused("restore", where / "dir", "--at", "2999-01-01", code=2)
    assert "future" in past.refused("diff", where / "dir", "2999-01-01", code=2)
    assert "no version #9" in past.refused("restore", where / "dir", "--version", "#9")
    assert "use restore" not in past.refused("restore", where, "--version", "#1")
    for args in ([], ["--at", "now", "--version", "#1"]):
        assert command("mountfs", "restore", where / "dir", *args).returncode == 2
    assert (where / "dir").read_text() == "in the way"
    past.run("restore", where / "dir", "--at", then, "--delete")
    assert (where / "dir/file").read_text() == "one"


def make_tree(top: Path) -> None:
    (top / "sub/deep").mkdir(parents=True)
    for number in range(20):
        (top / f"sub/deep/{number}").write_text(f"file {number}\n" * number)
    (top / "large").write_bytes(os.urandom(3 << 20))
    os.link(top / "large", top / "sub/link")
    (top / "symlink").symlink_to("sub/deep")
    os.mkfifo(top / "fifo")
    (top / "sub/deep/3").chmod(0o600)
    os.utime(top / "sub", ns=(0, 10**18))
    os.setxattr(top / "sub/deep", "user.x", b"y")


def spoil_tree(top: Path) -> None:
    (top / "sub/deep/1").unlink()
    (top / "sub/deep/2").write_text("other")
    os.removexattr(top / "sub/deep", "user.x")
    (top / "sub/link").unlink()
    (top / "symlink").unlink()
    (top / "symlink").symlink_to("elsewhere")
    (top / "sub/deep").rename(top / "moved")
    (top / "sub/deep").write_text("a file now")
    (top / "added").mkdir()
    (top / "added/file").write_text("x")


def test_restore_makes_a_tree_what_it_was(past: Past, where: Path, tmp_path: Path) -> None:
    make_tree(where / "tree")
    then = past.moment()
    capture(where / "tree", tmp_path / "then")
    spoil_tree(where / "tree")
    past.moment()
    capture(where / "tree", tmp_path / "spoilt")
    planned = past.json("restore", where / "tree", "--at", then, "--delete", "--dry-run")
    assert same_trees(tmp_path / "spoilt", where / "tree"), "a dry run changes nothing"
    spoilt = past.moment()
    done = past.json("restore", where / "tree", "--at", then, "--delete")
    assert (done["changes"], done["problems"], planned["seq"]) == (planned["changes"], [], 0)
    assert same_trees(tmp_path / "then", where / "tree")
    assert (where / "tree/large").stat().st_nlink == 2
    assert "nothing to do" in past.run("restore", where / "tree", "--at", then, "--delete")
    past.run("restore", where / "tree", "--at", spoilt, "--to", where / "again")
    assert same_trees(tmp_path / "spoilt", where / "again")
    past.run("restore", where / "tree", "--at", spoilt, "--delete")
    assert same_trees(tmp_path / "spoilt", where / "tree")


def test_restore_leaves_what_was_made_since(past: Past, where: Path) -> None:
    (where / "dir").mkdir()
    (where / "dir/a").write_text("a")
    then = past.moment()
    (where / "dir/a").unlink()
    (where / "dir/b").write_text("b")
    assert past.run("restore", where / "dir", "--at", then, "--dry-run").splitlines()[-2:] == [
        f"+ {where}/dir/a",
        f"{where}/dir: 1 back, 1 changed (dry run: nothing was done)",
    ]
    past.run("restore", where / "dir", "--at", then)
    assert {path.name: path.read_text() for path in (where / "dir").iterdir()} == {"a": "a", "b": "b"}


def test_a_deleted_tree_comes_back_and_a_file_of_it_too(past: Past, where: Path, tmp_path: Path) -> None:
    make_tree(where / "above/tree")
    then = past.moment()
    capture(where / "above", tmp_path / "then")
    subprocess.run(["rm", "-r", where / "above"], check=True)
    past.moment()
    past.run("restore", where / "above/tree/sub/deep/5", "--at", then)
    assert (where / "above/tree/sub/deep/5").read_text() == "file 5\n" * 5
    assert os.listdir(where / "above/tree") == ["sub"], "its directories, and nothing else in them"
    subprocess.run(["rm", "-r", where / "above"], check=True)
    past.moment()
    past.run("restore", where / "above/tree/sub/deep/7", "--version", "#1")
    assert (where / "above/tree/sub/deep/7").read_text() == "file 7\n" * 7
    past.run("restore", where / "above", "--at", then)
    assert same_trees(tmp_path / "then", where / "above")


def test_a_directory_means_itself_under_whatever_name_it_had(past: Past, where: Path) -> None:
    (where / "old").mkdir()
    then = past.write("old/file", "one")
    (where / "old").rename(where / "new")
    past.write("new/file", "two")
    (where / "old").mkdir()
    past.write("old/other", "x")
    past.run("restore", where / "new", "--at", then)
    assert (where / "new/file").read_text() == "one"
    past.run("restore", where / "old", "--at", then)
    assert (where / "old/file").read_text() == "one", "what had the name then, as this one was not there"
    (where / "elsewhere").mkdir()
    (where / "new/file").rename(where / "elsewhere/file")
    past.write("elsewhere/file", "three")
    past.run("restore", where / "elsewhere/file", "--at", then)
    assert (where / "elsewhere/file").read_text() == "one", "its history came along"


def test_undo_and_undo_again(past: Past, where: Path) -> None:
    past.write("file", "one")
    past.write("file", "two")
    past.run("undo", where / "file")
    assert (where / "file").read_text() == "one"
    past.run("undo", where / "file")
    assert (where / "file").read_text() == "two"
    assert past.json("undo", where / "file")["changes"] == [{"path": str(where / "file"), "change": "content"}]
    assert (where / "file").read_text() == "one"


def test_a_file_that_may_not_be_read_can_be_undone(past: Past, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past.write("file", "one")
    past.write("file", "two")
    (where / "file").chmod(0)
    with monkeypatch.context() as patches:
        patches.setattr(os, "access", lambda *_args, **_more: False)
        past.run("undo", where / "file")
    assert (where / "file").read_text() == "one"


def test_undo_brings_back_what_was_deleted(past: Past, where: Path) -> None:
    past.write("file", "one")
    (where / "file").unlink()
    assert past.run("undo", where / "file") == f"{where}/file: 1 back\n"
    assert (where / "file").read_text() == "one"
    assert past.run("undo", where / "file") == f"{where}/file: 1 removed\n"
    assert not (where / "file").exists()
    past.run("undo", where / "file")
    past.write("file", "two")
    past.run("undo", where / "file")
    assert (where / "file").read_text() == "one"


def test_undo_brings_a_directory_back_with_all_that_went_along(past: Past, where: Path, tmp_path: Path) -> None:
    make_tree(where / "tree")
    (where / "tree/earlier").write_text("x")
    past.moment()
    (where / "tree/earlier").unlink()
    (where / "tree/last").write_text("changed after that")
    past.moment()
    capture(where / "tree", tmp_path / "then")
    for name in ("sub", "."):  # in more than one commit, as large deletions are
        subprocess.run(["rm", "-r", where / "tree" / name] if name != "." else ["rm", "-r", where / "tree"], check=True)
        past.moment()
    past.run("undo", where / "tree")
    assert same_trees(tmp_path / "then", where / "tree")


def test_undo_refuses_what_it_cannot(past: Past, where: Path) -> None:
    past.write("file", "one")
    assert "no version before" in past.refused("undo", where / "file")
    (where / "dir").mkdir()
    (where / "link").symlink_to("file")
    assert "restore" in past.refused("undo", where / "dir")
    assert "restore" in past.refused("undo", where / "link")
    assert "nothing was there" in past.refused("undo", where / "never")
    assert "not in a mountfs mount" in past.refused("undo", "/etc/passwd", code=5)


def test_verbs_tell_that_the_server_is_away(make_mount: MakeMount, node: Node) -> None:
    past = Past(make_mount(node, node.create_bucket("files")))
    past.write("file", "one")
    node.stop()
    assert node.url in past.refused("undo", past.path / "file")
    (past.path / "file").write_text("two")
    eventually(lambda: not past.mount.status()["connected"], what="the mount knows")
    assert "does not answer" in past.refused("diff", past.path / "file", code=2), "and waits for nothing"
    node.start()


def test_all_buckets_mounted_together(module_node: Node, make_mount: MakeMount) -> None:
    for name in ("together-one", "together-two"):
        module_node.create_bucket(name)
    past = Past(make_mount(module_node))
    then = past.write("together-one/file", "one")
    past.write("together-one/file", "two")
    past.run("restore", past.path / "together-one/file", "--at", then)
    assert (past.path / "together-one/file").read_text() == "one"
    assert past.json("log", past.path / "together-one")[-1]["path"] == "file"
    line = past.refused("restore", past.path / "together-one/file", "--at", then, "--to", past.path / "together-two/x")
    assert "cp -a" in line
    assert "not in a bucket" in past.refused("log", past.path)
    assert "not in a bucket" in past.refused("log", past.path / "never")


def test_names_of_any_bytes(past: Past, where: Path) -> None:
    name = os.fsdecode(b"\xff\n caf\xc3\xa9")
    then = past.write(name, "one")
    past.write(name, "two")
    past.run("restore", where / name, "--at", then)
    assert (where / name).read_text() == "one"
    assert "\\xff\\n café" in past.run("log", where)
    assert json.loads(json.dumps(past.json("log", where)))[-1]["path"] == name


def writes(past: Past, path: Path) -> int:
    """How many ``log`` tells of a file."""
    return [event["event"] for event in past.json("log", path)].count("write")


def deep_file(past: Past) -> Path:
    """A file with three versions, two directories down."""
    (past.path / "e/sub").mkdir(parents=True)
    for text in ("one", "two", "three"):
        past.write("e/sub/g", text)
    return past.path / "e/sub/g"


@pytest.mark.parametrize("verb", ["undo e", "restore e", "restore . --delete", "undo e/sub/g", "restore e/sub/g #2"])
def test_what_comes_back_goes_on_with_its_history(past: Past, where: Path, verb: str) -> None:
    file = deep_file(past)
    (where / "e/early").write_text("deleted before")
    past.run("retention", where / "e", "set", "max-versions=99")
    past.moment()
    (where / "e/early").unlink()
    then = past.moment()
    inode = (where / "e").stat().st_ino
    subprocess.run(["rm", "-r", where / "e"], check=True)
    past.moment()
    name, path, *more = verb.split()
    at = ["--version", more.pop()] if "#2" in more else ["--at", then] if name == "restore" else []
    past.run(name, where / path, *at, *more)
    assert file.read_text() == ("two" if "--version" in at else "three")
    assert writes(past, file) == 4
    assert sorted(os.listdir(where / "e/.versions")) == ["early"], "its directory too is the one it was"
    assert (where / "e").stat().st_ino == inode
    assert past.json("retention", where / "e")["origin"] == "here"
    assert (where / f"e/.versions/@{then}/sub/g").read_text() == "three"
    (where / "e/sub/new").write_text("it can be used")
    past.write("e/sub/g", "five")
    assert writes(past, file) == 5
    subprocess.run(["rm", "-r", where / "e"], check=True)
    past.run("undo", where / "e")
    assert sorted(os.listdir(where / "e/sub")) == ["g", "new"]
    assert writes(past, file) == 6


def test_what_comes_back_into_a_directory_made_again_goes_on_too(past: Past, where: Path) -> None:
    file = deep_file(past)
    then = past.moment()
    subprocess.run(["rm", "-r", where / "e"], check=True)
    (where / "e/sub").mkdir(parents=True)
    (where / "e/sub/other").write_text("of the new one")
    past.moment()
    past.run("restore", where / "e", "--at", then, "--delete")
    assert os.listdir(where / "e/sub") == ["g"]
    assert writes(past, file) == 4
    past.run("restore", where / "e", "--at", then, "--to", where / "copy")
    assert writes(past, where / "copy/sub/g") == 1, "a copy has no past"
    file.unlink()
    past.run("restore", file, "--at", then)
    assert writes(past, file) == 5


def test_a_directory_that_comes_back_works_also_for_who_is_still_in_the_dead_one(past: Past, where: Path) -> None:
    file = deep_file(past)
    with Inside(where / "e/sub"), open(file, "r+") as still_open:
        subprocess.run(["rm", "-r", where / "e"], check=True)
        past.run("undo", where / "e")
        assert os.listdir(where / "e/sub") == ["g"]
        (where / "e/sub/new").write_text("x")
        still_open.write("THREE")
    past.moment()
    assert file.read_text() == "three", "what was open was the deleted file"
    assert sorted(os.listdir(where / "e/sub")) == ["g", "new"]


class Inside:
    """A process in a directory, as a shell in another window."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(["cat"], cwd=directory, stdin=subprocess.PIPE)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
