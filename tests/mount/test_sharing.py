"""Two mounts of one bucket: each sees what the other does, and who writes at once loses nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import pytest

from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy
from tests.harness import Mount, Node, command, eventually

BUCKET = "shared"
SECONDS = 5.0
"""Within which a change is seen elsewhere."""


def mounts(node: Node, make_mount: MakeMount) -> tuple[Path, Path]:
    """Two mounts of a new bucket."""
    node.create_bucket(BUCKET)
    return make_mount(node, BUCKET).path, make_mount(node, BUCKET).path


def test_two_mounts_of_a_bucket_see_each_others_changes_within_seconds(node: Node, make_mount: MakeMount) -> None:
    one, two = mounts(node, make_mount)
    (one / "directory").mkdir()
    (one / "directory/file").write_text("first")
    eventually(lambda: (two / "directory/file").exists() and (two / "directory/file").read_text() == "first", SECONDS)
    assert os.listdir(two / "directory") == ["file"]
    (two / "directory/file").write_text("second, longer")
    (two / "directory/new").touch()
    os.chmod(two / "directory", 0o700)
    eventually(lambda: (one / "directory/file").read_text() == "second, longer", SECONDS)
    eventually(lambda: sorted(os.listdir(one / "directory")) == ["file", "new"], SECONDS)
    eventually(lambda: stat.S_IMODE((one / "directory").stat().st_mode) == 0o700, SECONDS)
    (one / "directory").rename(one / "renamed")
    eventually(lambda: os.listdir(two) == ["renamed"], SECONDS)
    (one / "renamed/file").unlink()
    eventually(lambda: not (two / "renamed/file").exists(), SECONDS)


def test_a_mount_that_comes_back_shows_what_was_changed_meanwhile(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    one, two = make_mount(node, BUCKET), make_mount(node, BUCKET)
    (one.path / "directory").mkdir()
    one.sync()
    for number in range(5):
        assert len(eventually(lambda: os.listdir(two.path), SECONDS)) == 1
        assert len(os.listdir(two.path / "directory")) == number
        two.stop()
        (one.path / f"directory/file{number}").write_text("made while it was away")
        one.sync()
        two.start()
        assert (two.path / f"directory/file{number}").read_text() == "made while it was away"


def test_content_that_was_read_before_is_seen_when_it_changes_elsewhere(node: Node, make_mount: MakeMount) -> None:
    one, two = mounts(node, make_mount)
    body = bytearray(os.urandom(300_000))
    (one / "file").write_bytes(body)
    eventually(lambda: (two / "file").exists() and (two / "file").read_bytes() == body, SECONDS)
    for offset in 0, 150_000, 299_990:
        body[offset : offset + 10] = b"0123456789"
        with open(one / "file", "r+b") as file:
            file.seek(offset)
            file.write(b"0123456789")
        eventually(lambda: (two / "file").read_bytes() == body, SECONDS)
    with open(two / "file", "ab") as file:
        file.write(b"more")
    eventually(lambda: (one / "file").read_bytes() == body + b"more", SECONDS)
    os.truncate(one / "file", 5)
    eventually(lambda: (two / "file").stat().st_size == 5, SECONDS)
    assert (two / "file").read_bytes() == body[:5]


@pytest.mark.parametrize("options", [{}, {"nowriteback": True}], ids=["writeback", "nowriteback"])
def test_who_follows_a_file_sees_what_is_appended_elsewhere(
    options: dict[str, object], node: Node, make_mount: MakeMount
) -> None:
    node.create_bucket(BUCKET)
    one, two = make_mount(node, BUCKET).path, make_mount(node, BUCKET, options=options).path
    lines = [f"line {number} {'x' * length}\n" for number, length in enumerate((0, 10, 5000, 4096, 3, 300_000, 1))]
    (one / "log").write_text(lines[0])
    eventually(lambda: (two / "log").exists() and (two / "log").read_text() == lines[0], SECONDS)
    tail = subprocess.Popen(["tail", "-n", "+1", "-s", "0.1", "-f", two / "log"], stdout=subprocess.PIPE, text=True)
    with contextlib.closing(cast(IO[str], tail.stdout)) as seen, open(two / "log", "rb") as held:
        try:
            assert seen.readline() == lines[0]
            for number, line in enumerate(lines[1:], 2):
                with open(one / "log", "a") as log:
                    log.write(line)
                assert seen.readline() == line
                size = sum(map(len, lines[:number]))
                assert os.fstat(held.fileno()).st_size == size == len(os.pread(held.fileno(), 1 << 20, 0))
        finally:
            tail.kill()
            tail.wait()
    assert (two / "log").read_text() == "".join(lines)
    with open(two / "log", "a") as log:
        log.write("mine\n")
    eventually(lambda: (one / "log").read_text() == "".join(lines) + "mine\n", SECONDS)


def test_a_listing_shows_what_was_changed_elsewhere(node: Node, make_mount: MakeMount) -> None:
    one, two = mounts(node, make_mount)
    (one / "file").write_text("short")
    eventually(lambda: (two / "file").exists() and (two / "file").read_text() == "short", SECONDS)
    for text in "much longer", "x":
        (one / "file").write_text(text)
        eventually(lambda: [entry.stat().st_size for entry in os.scandir(two)] == [len(text)], SECONDS)  # noqa: B023
        assert (two / "file").read_text() == text


def test_no_listing_leaves_out_a_name_that_is_being_replaced_elsewhere(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    one, two = make_mount(node, BUCKET, options={"settle": 0.05}), make_mount(node, BUCKET)
    names = [f"name{number:02}" for number in range(12)]
    for name in names:
        (one.path / name).write_text("before")
    one.sync()
    eventually(lambda: sorted(os.listdir(two.path)) == names, SECONDS)
    listings = []
    for number in range(40):
        for name in names[number % 3 :: 3]:
            (one.path / "new").write_text(str(number))
            (one.path / "new").rename(one.path / name)
        listings.append({name for name in os.listdir(two.path) if name != "new"})
    assert [sorted(set(names) - listing) for listing in listings] == [[]] * len(listings)
    with FaultProxy(node.url) as proxy:
        three = make_mount(node, BUCKET, url=proxy.url)
        assert sorted(os.listdir(three.path)) == names
    # Without the server it may be that nobody can say what a name is: then EIO, never less.
    with contextlib.suppress(OSError):
        assert sorted(os.listdir(three.path)) == names


def test_a_listing_of_many_changed_names_takes_few_requests(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    one, two = make_mount(node, BUCKET), make_mount(node, BUCKET)
    for number in range(300):
        (one.path / f"{number:03}").write_text("before")
    one.sync()
    eventually(lambda: len(os.listdir(two.path)) == 300, SECONDS)
    for number in range(0, 300, 2):
        (one.path / f"{number:03}").write_text("longer than before")
    for number in range(0, 300, 3):
        (one.path / "new").write_text("new")
        (one.path / "new").rename(one.path / f"{number:03}")
    (one.path / "zzz").write_text("the last change")
    one.sync()
    eventually((two.path / "zzz").exists, SECONDS)  # so it has heard of those before
    before = two.status()["requests"]
    sizes = [3 if number % 3 == 0 else 18 if number % 2 == 0 else 6 for number in range(300)]
    with os.scandir(two.path) as entries:
        found = {entry.name: entry.stat().st_size for entry in entries if entry.name != "zzz"}
    assert found == {f"{number:03}": size for number, size in enumerate(sizes)}
    assert two.status()["requests"] - before < 60


def test_a_mount_that_is_cut_off_says_how_old_what_it_shows_is(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    with FaultProxy(node.url) as proxy:
        mount = make_mount(node, BUCKET, url=proxy.url)
        (mount.path / "file").write_text("known")
        mount.sync()
        assert "names  " not in command("mountfs", "status", mount.path).stdout
        status = mount.status()
        assert (status["max_stale"], status["connected"]) == (None, True)
        proxy.set("refuse")
        mount.remount()
        assert (mount.path / "file").read_text() == "known"
        assert not mount.status()["connected"]
        assert status["started"] - 60 < mount.status()["heard"] <= time.time()
        assert "what others changed since is not shown" in command("mountfs", "status", mount.path).stdout


def test_with_a_bound_nothing_older_is_shown(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    with FaultProxy(node.url) as proxy:
        mount = make_mount(node, BUCKET, url=proxy.url, options={"max-stale": 4, "metadata-deadline": 1})
        file = mount.path / "file"
        file.write_text("known")
        mount.sync()
        time_known = file.stat().st_mtime
        with open(file, "r+") as opened:
            proxy.set("refuse")
            eventually(lambda: fails(file.stat) and fails(lambda: os.listdir(mount.path)) and fails(file.read_text), 20)
            assert opened.read() == "known"
            opened.write(", and more")
            opened.flush()
            assert os.fstat(opened.fileno()).st_size == 15
            assert mount.path.stat().st_ino == 1
            assert "(EIO)" in command("mountfs", "status", mount.path).stdout
        mount.remount(signal.SIGKILL)
        assert fails(file.stat), "a restart makes nothing newer"
        proxy.set("pass")
        eventually(lambda: not fails(file.stat), 30)
        assert file.read_text() == "known, and more"
        assert file.stat().st_mtime >= time_known


def fails(call: Callable[[], object]) -> bool:
    """Whether a call is EIO."""
    try:
        call()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    return False


def test_who_writes_at_once_in_two_mounts_finds_both_contents(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    with FaultProxy(node.url) as proxy:
        one, two = make_mount(node, BUCKET, url=proxy.url), make_mount(node, BUCKET)
        (one.path / "notes.txt").write_text("before")
        one.sync()
        eventually(lambda: (two.path / "notes.txt").exists(), SECONDS)
        assert (two.path / "notes.txt").read_text() == "before"
        proxy.set("refuse")
        (one.path / "notes.txt").write_text("written without a connection")
        (two.path / "notes.txt").write_text("written meanwhile")
        (one.path / "new.txt").write_text("new here")
        (two.path / "new.txt").write_text("new there")
        two.sync()
        assert (one.path / "notes.txt").read_text() == "written without a connection"
        proxy.set("pass")
        one.sync()
        for mount in one, two, make_mount(node, BUCKET):
            both(mount, "notes", {"written without a connection", "written meanwhile"})
            both(mount, "new", {"new here", "new there"})


def test_directories_that_meet_become_one(node: Node, make_mount: MakeMount) -> None:
    """Two who make one tree at once, one of them without a connection, and go on in it."""
    node.create_bucket(BUCKET)
    with FaultProxy(node.url) as proxy:
        one, two = make_mount(node, BUCKET, url=proxy.url), make_mount(node, BUCKET)
        assert os.listdir(one.path) == []
        proxy.set("refuse")
        (two.path / "p/q/r").mkdir(parents=True)
        (two.path / "p").chmod(0o750)
        for name in "p/theirs", "p/q/theirs", "p/q/same":
            (two.path / name).write_text("theirs")
        two.sync()
        (one.path / "p/q/r").mkdir(parents=True)
        for name in "p/mine", "p/q/mine", "p/q/same":
            (one.path / name).write_text("mine")
        assert not (one.path / "p/theirs").exists()
        handle = os.open(one.path / "p/q/mine", os.O_RDWR)
        inside = os.open(one.path / "p/q", os.O_RDONLY | os.O_DIRECTORY)
        shell = subprocess.Popen(["cat"], cwd=one.path / "p/q/r", stdin=subprocess.PIPE)  # keeps it as its directory
        os.mkfifo(one.path / "p/q/moved")
        (one.path / "p/q/moved").rename(one.path / "p/moved")
        proxy.set("pass")
        one.sync()
        os.write(handle, b"more")
        os.close(handle)
        os.mkdir("by handle", dir_fd=inside)
        assert os.readlink(f"/proc/{shell.pid}/cwd") == str(one.path / "p/q/r"), "not deleted under who is in it"
        Path(f"/proc/{shell.pid}/cwd/by process").touch()
        one.sync()
        for mount in one, two, make_mount(node, BUCKET):
            eventually(lambda: tree(mount.path) == MERGED, SECONDS, f"{tree(mount.path)}")  # noqa: B023
            assert (mount.path / "p/q/mine").read_text() == "more"
            assert stat.S_IMODE((mount.path / "p").stat().st_mode) == 0o750, "as who was first had it"
        assert "theirs" in os.listdir(inside)
        os.close(inside)
        shell.communicate()
        number = (two.path / "p/q").stat().st_ino
        one.remount()
        assert (one.path / "p/q").stat().st_ino == number, "its number is that of the others from the next start on"
        assert tree(one.path) == MERGED
        (one.path / "p/q/theirs").unlink()
        shutil.rmtree(one.path / "p/q/r")
        one.sync()
        eventually(lambda: not (two.path / "p/q/theirs").exists() and not (two.path / "p/q/r").exists(), SECONDS)


def test_a_directory_becomes_one_that_had_another_name_before(node: Node, make_mount: MakeMount) -> None:
    """Known by that name, and changed under it without a connection."""
    node.create_bucket(BUCKET)
    with FaultProxy(node.url) as proxy:
        one, two = make_mount(node, BUCKET, url=proxy.url), make_mount(node, BUCKET)
        (two.path / "before").mkdir()
        (two.path / "before/theirs").write_text("theirs")
        eventually(lambda: tree(one.path) == {"before", "before/theirs"}, SECONDS)
        proxy.set("refuse")
        (two.path / "before").rename(two.path / "p")
        two.sync()
        (one.path / "p").mkdir()
        (one.path / "p/mine").write_text("mine")
        (one.path / "before/late").write_text("late")
        proxy.set("pass")
        one.sync()
        merged = {"p", "p/theirs", "p/mine", "p/late"}
        for mount in two, one, make_mount(node, BUCKET):
            eventually(lambda: tree(mount.path) == merged, SECONDS, f"{mount.path}: {tree(mount.path)}")  # noqa: B023
        (one.path / "p/after").touch()
        one.remount()
        assert tree(one.path) == merged | {"p/after"}
        assert (one.path / "p").stat().st_ino == (two.path / "p").stat().st_ino


MERGED = {
    *("p", "p/mine", "p/theirs", "p/moved", "p/q", "p/q/mine", "p/q/theirs", "p/q/same", "p/q/same (conflict)"),
    *("p/q/by handle", "p/q/r", "p/q/r/by process"),
}


def tree(top: Path) -> set[str]:
    """All paths below a directory, conflict names without who and when."""
    return {re.sub(r" \(conflict .*\)", " (conflict)", str(path.relative_to(top))) for path in top.rglob("*")}


def both(mount: Mount, stem: str, contents: set[str]) -> None:
    """The contents are under the name and a conflict name beside it, of all mounts within seconds."""
    eventually(lambda: len(list(mount.path.glob(f"{stem}*"))) == len(contents), SECONDS)
    name, copy = sorted((path.name for path in mount.path.glob(f"{stem}*")), key=len)
    assert name == f"{stem}.txt"
    assert re.fullmatch(rf"{stem} \(conflict \S+ .+\)\.txt", copy), copy
    eventually(lambda: {(mount.path / path).read_text() for path in (name, copy)} == contents, SECONDS)


def test_a_new_file_has_the_time_of_its_last_change_in_every_mount(node: Node, make_mount: MakeMount) -> None:
    node.create_bucket(BUCKET)
    one = make_mount(node, BUCKET, options={"settle": 5})
    with open(one.path / "file", "wb") as file:
        made = os.fstat(file.fileno()).st_ctime_ns
        eventually(lambda: time.time_ns() > made + 50_000_000)
        os.fchmod(file.fileno(), 0o600)
    changed = (one.path / "file").stat().st_ctime_ns
    assert changed > made + 10_000_000
    one.sync()
    assert abs((make_mount(node, BUCKET).path / "file").stat().st_ctime_ns - changed) < 10_000_000
