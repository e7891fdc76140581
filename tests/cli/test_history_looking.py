"""log and diff on a real mount."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.past import Past
from tests.conftest import MakeMount
from tests.harness import BIN, Node, command


@pytest.fixture
def past(module_node: Node, make_mount: MakeMount, request: pytest.FixtureRequest) -> Past:
    """A mount of a bucket of its own."""
    bucket = module_node.create_bucket(f"b{abs(hash(request.node.nodeid)) % 10**12}")
    return Past(make_mount(module_node, bucket))


@pytest.fixture
def where(past: Past) -> Path:
    return past.path


def test_log_of_a_file_goes_back_over_its_names(past: Past, where: Path) -> None:
    past.write("draft", "one")
    (where / "draft").rename(where / "report")
    past.write("report", "two, longer")
    (where / "report.tmp").write_text("three")
    (where / "report.tmp").replace(where / "report")
    events = past.json("log", where / "report")
    assert [event["seq"] for event in events] == sorted((event["seq"] for event in events), reverse=True)
    written = [event for event in events if event["event"] == "write"]
    assert [(event["number"], event["size"]) for event in written] == [(3, 5), (2, 11), (1, 3)]
    assert {"draft", "report", "report.tmp"} >= {event["path"] for event in events}
    assert ("rename", "draft", "report") in {(it["event"], it["path"], it["new_path"]) for it in events}
    assert all(event["time"].endswith("Z") and event["author"] and event["client"] for event in events)
    assert set(events[0]) == {
        "time", "event", "path", "new_path", "version", "number", "size", "detail", "author", "client", "file", "seq",
    }  # fmt: skip
    lines = past.run("log", where / "report").splitlines()
    assert len(lines) == len(events)
    short = written[0]["version"][-8:]
    assert f"#3 {short}  5 B" in next(line for line in lines if short in line)
    assert f"{time.localtime().tm_year}-" in lines[0]
    assert past.run("log", where / "report", "-n", "2").splitlines() == lines[:2]
    assert past.run("log", where / "report", "-n", "0").splitlines() == lines


def test_log_shows_times_in_the_zone_of_the_user(past: Past, where: Path) -> None:
    past.write("file", "x")
    [utc, *_] = past.json("log", where / "file")
    shown = []
    for zone in ("UTC", "Asia/Kolkata"):
        args = [str(part) for part in ("log", where / "file", "-n", "1")]
        result = subprocess.run(
            [BIN / "mountfs", *args],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"TZ": zone},
            timeout=60,
        )
        assert "-n 0 shows all" in result.stderr
        shown.append(result.stdout[:19])
    assert shown[0] == utc["time"][:19].replace("T", " ")
    assert shown[1][14:16] != shown[0][14:16], "half an hour apart"


def test_log_tells_of_many_files_in_one_line(past: Past, where: Path) -> None:
    (where / "many").mkdir()
    for number in range(20):
        (where / f"many/{number:02}").write_text("x")
    past.moment()
    subprocess.run(["rm", "-r", where / "many"], check=True)
    lines = past.run("log", where).splitlines()
    assert len(lines) <= 4
    assert "  21 unlink  ./  21 names: many, " in lines[0]
    assert "20 write" in " ".join(lines)
    assert len(past.run("log", where, "--each").splitlines()) == len(past.json("log", where)) >= 40
    assert len(past.run("log", where, "--each", "-n", "7").splitlines()) == 7


def test_log_of_a_directory_and_of_what_is_deleted(past: Past, where: Path) -> None:
    (where / "a/b").mkdir(parents=True)
    past.write("a/b/file", "x")
    (where / "a").rename(where / "c")
    past.write("c/b/other", "y")
    subprocess.run(["rm", "-r", where / "c"], check=True)
    past.moment()
    paths = {event["path"] for event in past.json("log", where)}
    assert {"a/b/file", "c/b/other", "c"} <= paths, "as they were"
    assert {event["event"] for event in past.json("log", where / "c/b/file")} >= {"write", "unlink"}
    assert {event["path"] for event in past.json("log", where / "c/b")} >= {"a/b/file", "c/b/other"}
    assert "nothing was there" in past.refused("log", where / "c/b/never")
    assert "nothing was there" in past.refused("log", where / "never/never")


def test_diff_of_texts(past: Past, where: Path) -> None:
    past.write("file", "one\ntwo\nthree\n")
    first = past.moment()
    past.write("file", "one\n2\nthree\n")
    past.write("file", "one\n2\n3\n")
    assert "-three\n+3\n" in past.run("diff", where / "file", code=1)
    all_changed = past.run("diff", where / "file", "#1", code=1)
    assert "-two\n-three\n+2\n+3\n" in all_changed
    assert past.run("diff", where / "file", first, code=1).partition("@@")[2] == all_changed.partition("@@")[2]
    assert past.run("diff", where / "file", "#3") == ""
    assert past.run("diff", where / "file", "#2", first, code=1).endswith("-2\n+two\n three\n")
    name = os.listdir(where / ".versions/file")[0]
    assert "+3" in past.run("diff", where / ".versions/file" / name, code=1)
    assert "+3" in past.run("diff", where / "file", name, code=1)
    found = past.json("diff", where / "file", "#1", "#2", code=1)
    assert (found["same"], found["a"]["size"], found["b"]["exists"]) == (False, 14, True)
    assert "-two\n+2\n" in found["diff"]
    assert past.json("diff", where / "file", "#3", "now")["same"] is True
    # What patch(1) takes is the way from one to the other.
    (where / "copy").write_text("one\ntwo\nthree\n")
    subprocess.run(["patch", "-s", where / "copy"], input=all_changed, text=True, check=True, cwd="/")
    assert (where / "copy").read_text() == "one\n2\n3\n"


def test_diff_of_what_is_no_text_or_not_there(past: Past, where: Path) -> None:
    past.write("file", "one\n")
    (where / "file").write_bytes(b"\0\1")
    past.moment()
    before, after = past.run("diff", where / "file", code=1).splitlines()
    assert "4 bytes" in before
    assert "2 bytes" in after
    assert "hash" in after
    (where / "file").unlink()
    assert "2 bytes" in past.run("diff", where / "file", code=1)
    assert "nothing" in past.run("diff", where / "file", code=1)
    assert "-one\n" in past.run("diff", where / "file", "#1", code=1)


def test_diff_sees_content_in_whatever_chunks(past: Past, where: Path) -> None:
    with open(where / "file", "wb") as file:
        for part in (b"a" * 5000, b"b" * 5000):
            file.write(part)
            os.fsync(file.fileno())
    past.moment()
    (where / "new").write_bytes(b"a" * 5000 + b"b" * 5000)
    (where / "new").replace(where / "file")
    assert past.run("diff", where / "file") == ""


def test_diff_answers_trouble_with_2(past: Past, where: Path) -> None:
    past.write("file", "one\n")
    assert "no version before" in past.refused("diff", where / "file", code=2)
    assert "is not a time" in past.refused("diff", where / "file", "nonsense", code=2)
    assert "no version #7" in past.refused("diff", where / "file", "#7", code=2)
    assert "say since when" in past.refused("diff", where, code=2)
    assert "nothing was there" in past.refused("diff", where / "never", "-1h", code=2)
    assert "not in a mountfs mount" in past.refused("diff", "/", "-1h", code=2)


def test_diff_of_directories(past: Past, where: Path) -> None:
    (where / "sub").mkdir()
    for name in ("gone", "moved", "changed", "mode", "sub/kept"):
        (where / name).write_text(name)
    then = past.moment()
    (where / "gone").unlink()
    (where / "moved").rename(where / "sub/here")
    (where / "changed").write_text("now")
    (where / "mode").chmod(0o755)
    (where / "sub").rename(where / "dir")
    (where / "added").write_text("x")
    lines = past.run("diff", where, then, code=1).splitlines()
    assert lines[0] == "+ added"
    assert lines[1].startswith("~ changed (7 bytes")
    assert lines[2:] == ["- gone", "~ mode (attributes)", "> moved -> dir/here", "> sub -> dir"]
    later = past.moment()
    (where / "added").unlink()
    assert past.run("diff", where, then, later, code=1).splitlines() == lines
    found = past.json("diff", where, then, later, code=1)["differences"]
    assert [(it["change"], it["path"], it["new_path"]) for it in found][4:] == [
        ("moved", "moved", "dir/here"),
        ("moved", "sub", "dir"),
    ]
    assert found[0]["a"] == {"exists": False}
    assert found[0]["b"]["size"] == 1
    assert past.run("diff", where, then, then) == ""
    result = command("mountfs", "diff", where, "-1d")
    assert (result.returncode, result.stderr) == (1, ""), "from before there was anything"
