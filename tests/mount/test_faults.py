"""A server that is down, mute, mad or lying: errors within the deadlines, everything else goes on, nothing is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import mmap
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeserver.content.codec import chunk_id
from tests.cluster.nodes import decoded
from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy, Mode
from tests.harness import Mount, Node, command, eventually, stuck
from tests.mount.attempts import Attempt, attempt, succeeds
from tests.mount.posix import fails_with, opened

METADATA, DATA = 1.0, 2.0
DEADLINES = {"metadata-deadline": METADATA, "data-deadline": DATA, "settle": 0.1, "drain-deadline": 20}
BODY = os.urandom(300_000)


@dataclasses.dataclass
class Setup:
    """A mount that reaches its server through a proxy; the bucket has files that the mount has not read yet."""

    node: Node
    proxy: FaultProxy
    mount: Mount
    make: MakeMount

    @property
    def path(self) -> Path:
        return self.mount.path

    def elsewhere(self) -> Mount:
        """A second mount, with an empty state and a good connection."""
        return self.make(self.node, "faults")


@pytest.fixture
def proxy(module_node: Node) -> Iterator[FaultProxy]:
    """Between every mount of a test and the server."""
    with FaultProxy(module_node.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def seed(module_node: Node, make_module_mount: MakeMount) -> None:
    """What is in the bucket before a test."""
    mount = make_module_mount(module_node, module_node.create_bucket("faults"))
    for name in "cold", "warm", "directory/below":
        (mount.path / name).parent.mkdir(exist_ok=True)
        (mount.path / name).write_bytes(name.encode() + BODY)
    (mount.path / "large").write_bytes(os.urandom(8 << 20))
    mount.stop()


@pytest.fixture
def setup(module_node: Node, proxy: FaultProxy, make_mount: MakeMount, seed: None) -> Iterator[Setup]:
    """The mount has listed the root and read the file ``warm``, nothing else."""
    mount = make_mount(module_node, "faults", url=proxy.url, options=DEADLINES)
    names = os.listdir(mount.path)
    assert {"cold", "warm", "directory", "large"} <= set(names)
    for name in names:
        os.stat(mount.path / name)
    assert (mount.path / "warm").read_bytes() == b"warm" + BODY
    yield Setup(module_node, proxy, mount, make_mount)
    proxy.set("pass")


FAULTS: list[tuple[Mode, dict[str, Any]]] = [
    ("refuse", {}),
    ("stall", {}),
    ("garbage-body", {}),
    ("error", {"status": 500}),
    ("cut", {}),
    ("garbage", {}),
    ("error", {"status": 404}),
    ("slow", {"bytes_per_second": 3000}),
]
USUAL = 5
"""How many of them every run meets; the others with --soak."""


@pytest.mark.parametrize(("fault", "how"), FAULTS, ids=[f"{mode}{how.get('status', '')}" for mode, how in FAULTS])
def test_a_broken_server_costs_errors_within_the_deadlines_and_nothing_else(
    fault: Mode, how: dict[str, Any], setup: Setup, soak: int
) -> None:
    if (fault, how) in FAULTS[USUAL:] and soak == 1:
        pytest.skip("only with --soak")
    path, name = setup.path, f"{fault}{how.get('status', '')}"
    setup.proxy.set(fault, **how)
    reading = Attempt("len(read(path))", path / "cold")
    listing = Attempt("os.listdir(path)", path / "directory")
    looking = Attempt("os.stat(path)", path / "directory/below")
    syncing = Attempt("write(path, 200_000, fsync=True)", path / f"synced-{name}")
    assert attempt("len(read(path))", path / "warm") == str(4 + len(BODY)), "a cached file stays readable"
    assert attempt("write(path, 200_000)", path / f"written-{name}") == "", "writes are journalled"
    assert attempt("os.stat(path).st_size", path / f"written-{name}") == "200000"
    assert attempt("os.statvfs(path).f_namemax", path) == "255", "statfs does not need the server"
    assert setup.mount.status()["pending"]["operations"] > 0
    assert reading.outcome(DATA) == "EIO"
    assert listing.outcome(METADATA) == "EIO"
    assert looking.outcome(METADATA) == "EIO", "a name that is not known must not seem absent"
    assert syncing.outcome(DATA) == "EIO", "fsync must not claim what the server did not acknowledge"
    assert setup.mount.alive
    assert not stuck(setup.mount.pid)
    setup.proxy.set("pass")
    eventually(succeeds("len(read(path))", path / "cold"), 20)
    eventually(succeeds("os.listdir(path)", path / "directory"), 20)
    setup.mount.sync()
    eventually(lambda: setup.mount.status()["connected"], 20)
    other = setup.elsewhere().path
    for file in f"synced-{name}", f"written-{name}":
        assert digest(other / file) == digest(path / file)


def test_files_whose_content_is_not_here_can_be_changed_while_the_server_is_away(setup: Setup) -> None:
    """Appended to, written in the middle, cut, and replaced; what was in them is there again with the server."""
    names = ("appended", "changed", "cut", "replaced")
    other = setup.elsewhere().path
    for name in names:
        (other / name).write_bytes(BODY)
    command("mountfs", "sync", other)
    eventually(lambda: set(names) <= set(os.listdir(setup.path)))
    for name in names:
        os.stat(setup.path / name)
    setup.proxy.set("refuse")
    eventually(lambda: not setup.mount.status()["connected"])
    with opened(setup.path / "appended", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"more")
    with opened(setup.path / "changed", os.O_RDWR) as fd:
        os.pwrite(fd, b"in the middle", 1000)
        assert os.pread(fd, 13, 1000) == b"in the middle"
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(fd, 100, 1013)
    os.truncate(setup.path / "cut", 12_345)
    (setup.path / "replaced").write_bytes(b"anew")
    assert [os.stat(setup.path / name).st_size for name in names] == [len(BODY) + 4, len(BODY), 12_345, 4]
    assert attempt("len(read(path))", setup.path / "appended", DATA) == "EIO"
    setup.proxy.set("pass")
    setup.mount.sync()
    changed = BODY[:1000] + b"in the middle" + BODY[1013:]
    for top in setup.path, setup.elsewhere().path:
        for name, content in zip(names, (BODY + b"more", changed, BODY[:12_345], b"anew"), strict=True):
            eventually(lambda: (top / name).read_bytes() == content)  # noqa: B023
    with opened(setup.path / "appended", os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[:4] = b"MMAP"
    assert (setup.path / "appended").read_bytes() == b"MMAP" + BODY[4:] + b"more"


def test_a_file_whose_content_is_damaged_on_the_server_holds_up_no_other(setup: Setup) -> None:
    other = setup.elsewhere().path
    (other / "damaged").write_bytes(BODY)
    command("mountfs", "sync", other)
    eventually(lambda: "damaged" in os.listdir(setup.path))
    os.stat(setup.path / "damaged")
    setup.proxy.set("refuse")
    eventually(lambda: not setup.mount.status()["connected"])
    for number in range(5):
        (setup.path / f"good{number}").write_bytes(b"good")
    with opened(setup.path / "damaged", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"more")
    (setup.path / "good").write_bytes(b"good")
    setup.proxy.set("flip")
    eventually(lambda: {"good", *(f"good{number}" for number in range(5))} <= set(os.listdir(other)), 30)
    with opened(setup.path / "damaged", os.O_WRONLY | os.O_APPEND) as fd, fails_with(errno.EIO):
        os.fsync(fd)
    assert any("damaged" in error["text"] for error in setup.mount.status()["errors"])
    setup.proxy.set("pass")
    setup.mount.sync()
    eventually(lambda: (other / "damaged").read_bytes() == BODY + b"more")


def test_what_the_server_refuses_is_not_sent_without_a_pause(setup: Setup) -> None:
    """A commit whose chunks go missing each time, as here where garbage collection never ends with them."""
    data = os.urandom(200_000)
    key = decoded(setup.node.api("GET", "/buckets/faults")["chunk_key"])
    garbage = chunk_id(key, data)
    with contextlib.closing(sqlite3.connect(setup.node.data / "metadata.sqlite", timeout=30)) as database, database:
        database.execute("INSERT INTO condemned SELECT bucket, ?, 0, 1 FROM bucket WHERE name = 'faults'", (garbage,))
    before = setup.proxy.count("POST", r"/commits$")
    with (setup.path / "refused").open("wb", buffering=0) as file:
        file.write(data)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.fsync(file.fileno())
    (setup.path / "made later").mkdir()
    assert setup.proxy.count("POST", r"/commits$") - before < 15
    assert any("not stored" in error["text"] for error in setup.mount.status()["errors"])
    with contextlib.closing(sqlite3.connect(setup.node.data / "metadata.sqlite", timeout=30)) as database, database:
        database.execute("DELETE FROM condemned WHERE chunk = ?", (garbage,))
    setup.mount.sync()
    assert (setup.elsewhere().path / "refused").read_bytes() == data


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["cold", "large"])
def test_a_corrupt_chunk_is_never_handed_to_a_reader(name: str, setup: Setup) -> None:
    setup.proxy.set("flip")
    assert attempt("len(read(path))", setup.path / name, DATA) == "EIO"
    assert attempt("len(read(path))", setup.path / "warm") == str(4 + len(BODY))
    assert name in setup.mount.log.read_text(), "the log names the file"
    assert any(name in error["text"] for error in setup.mount.status()["errors"])
    setup.proxy.set("pass")
    eventually(succeeds("len(read(path))", setup.path / name), 20)
    assert digest(setup.path / name) == digest(setup.elsewhere().path / name)


def test_many_readers_of_a_mute_server_do_not_starve_the_others(setup: Setup) -> None:
    setup.proxy.set("stall")
    readers = [Attempt("len(read(path))", setup.path / ("cold", "large")[n % 2]) for n in range(24)]
    for _ in range(5):
        assert attempt("len(read(path))", setup.path / "warm") == str(4 + len(BODY))
        assert attempt("os.statvfs(path).f_namemax", setup.path) == "255"
    assert {reader.outcome(15 * DATA) for reader in readers} == {"EIO"}


def test_a_failing_server_is_not_hammered(setup: Setup) -> None:
    setup.proxy.set("error", status=500)
    setup.proxy.forget()
    (setup.path / "hammer").write_bytes(BODY)
    for _ in range(5):
        assert attempt("len(read(path))", setup.path / "cold", DATA) == "EIO"
    assert setup.proxy.count() < 150


@pytest.mark.parametrize("killed", [False, True], ids=["", "and the daemon killed"])
def test_a_lost_answer_to_a_commit_does_nothing_twice(killed: bool, setup: Setup) -> None:
    path = setup.path / f"lost-{killed}"
    setup.proxy.set("drop", match=r"POST .*/commits", times=3 if not killed else None)
    path.mkdir()
    for number in range(20):
        (path / str(number)).write_bytes(bytes([number]) * number * 100)
    os.link(path / "5", path / "linked")
    os.rename(path / "6", path / "moved")
    setup.proxy.wait_for("POST", r"/commits", mode="drop")
    if killed:
        setup.mount.kill()
        setup.proxy.set("pass")
        setup.mount.start()
    setup.mount.sync()
    other = setup.elsewhere().path / path.name
    names = sorted(["linked", "moved", *(str(number) for number in range(20) if number != 6)])
    assert sorted(os.listdir(other)) == sorted(os.listdir(path)) == names
    assert os.stat(other / "linked").st_nlink == 2
    assert all((other / str(n)).read_bytes() == bytes([n]) * n * 100 for n in range(20) if n != 6)


def test_a_lost_answer_to_an_upload_is_made_good(setup: Setup) -> None:
    setup.proxy.set("drop", match=r"/pieces", times=4)
    (setup.path / "uploaded").write_bytes(body := os.urandom(5 << 20))
    for number in range(10):
        (setup.path / f"uploaded{number}").write_bytes(body[: number * 1000])
    setup.mount.sync()
    other = setup.elsewhere().path
    assert (other / "uploaded").read_bytes() == body
    assert all((other / f"uploaded{n}").read_bytes() == body[: n * 1000] for n in range(10))


@pytest.mark.parametrize("size", [5_000, 131_000, 400_000])
def test_content_that_changes_while_it_goes_up_is_not_mixed_with_what_follows(size: int, setup: Setup) -> None:
    body = os.urandom(size)
    (setup.path / "early").touch()
    setup.mount.sync()
    setup.proxy.forget()
    setup.proxy.set("delay", match=r"POST .*/commits", seconds=DATA)
    (setup.path / f"cut{size}").write_bytes(body)
    setup.proxy.wait_for("POST", r"/commits", mode="delay")
    os.truncate(setup.path / f"cut{size}", 1)
    setup.proxy.set("pass")
    setup.mount.sync()
    (setup.path / f"same{size}").write_bytes(body)
    setup.mount.sync()
    setup.mount.remount()
    assert (setup.path / f"same{size}").read_bytes() == body
    assert (setup.path / f"cut{size}").read_bytes() == body[:1]


@pytest.mark.parametrize("size", [5_000, 131_000, 400_000, 3_000_000])
def test_content_that_was_written_over_while_it_went_up_is_not_forgotten(size: int, setup: Setup) -> None:
    path, bodies = setup.path / f"over{size}", [os.urandom(size) for _ in range(3)]
    write_over(path, b"first")
    for body, following in itertools.pairwise(bodies):
        setup.mount.sync()
        setup.proxy.forget()
        setup.proxy.set("delay", match=r"POST .*/commits", seconds=DATA / 4)
        write_over(path, body)
        setup.proxy.wait_for("POST", r"/commits", mode="delay")
        write_over(path, following)
        setup.proxy.set("pass")
    setup.mount.sync()
    for number, body in enumerate(bodies):
        (setup.path / f"same{size}-{number}").write_bytes(body)
    setup.mount.sync()
    setup.mount.remount()
    assert path.read_bytes() == bodies[-1]
    for number, body in enumerate(bodies):
        assert (setup.path / f"same{size}-{number}").read_bytes() == body


def write_over(path: Path, data: bytes) -> None:
    """Write a file in place, without emptying it first."""
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        assert os.pwrite(fd, data, 0) == len(data)


def test_a_mount_with_known_state_starts_without_the_server(setup: Setup) -> None:
    path = setup.path
    setup.mount.stop()
    setup.proxy.set("refuse")
    setup.mount.start()
    assert {"cold", "warm", "directory", "large"} <= set(os.listdir(path))
    assert attempt("len(read(path))", path / "warm") == str(4 + len(BODY))
    assert attempt("len(read(path))", path / "cold", DATA) == "EIO"
    (path / "offline").mkdir()
    (path / "offline/new").write_bytes(BODY)
    (path / "warm").rename(path / "offline/warm")
    assert not setup.mount.status()["connected"]
    setup.mount.kill()
    setup.mount.start()
    assert (path / "offline/new").read_bytes() == BODY
    (path / "offline/warm").rename(path / "warm")
    result = command("mountfs", "sync", "--deadline", "1", path)
    assert result.returncode == 3, result.stderr
    assert "new" in result.stdout + result.stderr, "what is pending is named"
    setup.proxy.set("pass")
    setup.mount.sync()
    assert setup.mount.status()["pending"] == {"operations": 0, "bytes": 0, "files": []}
    other = setup.elsewhere().path
    assert (other / "offline/new").read_bytes() == BODY
    assert (other / "warm").read_bytes() == b"warm" + BODY


def test_a_mount_without_known_state_fails_clearly_when_the_server_is_down(setup: Setup) -> None:
    faults: list[Mode] = ["refuse", "stall", "garbage-body"]
    for fault in faults:
        setup.proxy.set(fault)
        mount = setup.make(setup.node, "faults", url=setup.proxy.url, options=DEADLINES, start=False)
        mount.path.mkdir()
        mount.refused()


def test_an_orderly_end_names_what_it_could_not_send_and_the_next_mount_sends_it(setup: Setup) -> None:
    setup.mount.stop()
    setup.mount.options["drain-deadline"] = 1
    setup.mount.start()
    setup.proxy.set("refuse")
    (setup.path / "left-behind").write_bytes(BODY)
    result = command("mountfs", "umount", setup.path)
    assert "left-behind" in result.stdout + result.stderr
    assert result.returncode == 3
    eventually(lambda: not setup.mount.alive and not setup.mount.mounted)
    setup.mount.end(signal.SIGTERM)
    setup.proxy.set("pass")
    setup.mount.start()
    setup.mount.sync()
    assert (setup.elsewhere().path / "left-behind").read_bytes() == BODY


RAISING = """
from mountfs.cli.main import main
from mountfs.vfs.files import Files
async def read(self, number, offset, size):
    raise RuntimeError("a bug")
Files.read = read
main()
"""


def test_a_bug_in_a_handler_costs_its_caller_an_eio_and_leaves_a_traceback_to_be_found(
    setup: Setup, tmp_path: Path
) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    program = [sys.executable, tmp_path / "raising.py"]
    mount = setup.make(setup.node, "faults", program=program, raises=True)
    assert attempt("len(read(path))", mount.path / "cold") == "EIO"
    assert attempt("os.stat(path).st_size", mount.path / "cold") == str(4 + len(BODY))
    assert mount.alive
    mark = re.search(r"error ([0-9a-f]{8})", str(mount.status()["errors"]))
    assert mark
    log = mount.log.read_text()
    assert f"error {mark[1]}" in log
    assert "RuntimeError: a bug" in log


def test_a_long_write_starts_to_go_up_before_it_is_closed(setup: Setup) -> None:
    setup.proxy.forget()
    with open(setup.path / "long", "wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
        file.flush()
        setup.proxy.wait_for("", r"/pieces", at_least=3, timeout=20)
    setup.mount.sync()


def test_content_that_the_bucket_has_is_not_sent_again(setup: Setup) -> None:
    (setup.path / "first").write_bytes(body := os.urandom(10 << 20))
    setup.mount.sync()
    before = setup.node.usage("faults")["used_bytes"]
    setup.proxy.forget()
    (setup.path / "second").write_bytes(b"inserted" + body)
    setup.mount.sync()
    puts = setup.proxy.count("PUT", r"/pieces/") + setup.proxy.count("POST", r"/pieces/\w+$")
    assert 1 <= puts <= 3
    assert setup.node.usage("faults")["used_bytes"] == before + len(body) + 8
