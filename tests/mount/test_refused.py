"""What the server refuses for good is set aside: it stays here, is told, and holds up nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from mountfs.errors import Pending
from nodeserver.protocol import wire
from nodeserver.protocol.names import XATTR_MAX
from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy
from tests.harness import Mount, Node, command, eventually
from tests.mount.posix import fails_with, opened

BUCKET = "refused"
# Nothing is sent, and so made a commit, before somebody waits for it.
OPTIONS = {"settle": 100, "metadata-deadline": 2, "data-deadline": 5, "drain-deadline": 20}


class Setup:
    """A mount without connection to its server, at first."""

    def __init__(self, node: Node, proxy: FaultProxy, make: MakeMount) -> None:
        self.node, self.proxy, self.make = node, proxy, make
        self.mount = make(node, node.create_bucket(BUCKET), url=proxy.url, options=OPTIONS)
        self.path = self.mount.path

    def begin(self, *, spoilt: Sequence[str]) -> None:
        """Let the changes go, after making some files such as no server takes: with too large attributes."""
        numbers = [os.lstat(self.path / name).st_ino for name in spoilt]
        for name in spoilt:
            os.setxattr(self.path / name, "user.large", b"")
        self.mount.kill()
        large = msgspec.msgpack.encode({b"user.large": bytes(XATTR_MAX + 1)})
        with contextlib.closing(sqlite3.connect(self.mount.state / "mount.db")) as database, database:
            database.executemany("UPDATE inode SET xattrs = ? WHERE ino = ?", [(large, ino) for ino in numbers])
        self.proxy.set("pass")
        self.mount.start()

    def refused(self) -> list[str]:
        """The paths that ``mountfs status`` calls refused."""
        return [one["path"] for one in self.mount.status()["refused"]]

    def elsewhere(self) -> Mount:
        """A mount with an empty state."""
        return self.make(self.node, BUCKET)


@pytest.fixture
def setup(node: Node, make_mount: MakeMount) -> Iterator[Setup]:
    with FaultProxy(node.url) as proxy:
        it = Setup(node, proxy, make_mount)
        (it.path / "old").write_text("before")
        (it.path / "moved").write_text("moves into what is refused")
        (it.path / "replaced").write_text("before")
        it.mount.sync()
        proxy.set("refuse")
        yield it
        proxy.set("pass")


def test_one_refused_change_holds_up_no_other(setup: Setup) -> None:
    path = setup.path
    for number in range(40):
        (path / f"good{number}").write_text(str(number))
        if number == 20:
            (path / "new").write_text("content of the refused one")
    (path / "old").write_text("after")
    (path / "directory/below").mkdir(parents=True)
    (path / "directory/below/child").write_text("child")
    (path / "moved").rename(path / "directory/moved")
    setup.begin(spoilt=["old", "new", "directory"])
    result = command("mountfs", "sync", path, "--deadline", "60")
    assert result.returncode == Pending.exit_code
    for name in "old", "new", "directory":
        assert f"refused: {name}: " in result.stderr, result.stderr
    other = setup.elsewhere()
    assert {path.name for path in other.path.iterdir()} == {"old", "moved", "replaced"} | {
        f"good{n}" for n in range(40)
    }
    assert (other.path / "old").read_text() == "after", "its content is not what is refused"
    # Here everything is as it was left; errors come at once.
    assert (path / "new").read_text() == "content of the refused one"
    assert (path / "directory/below/child").read_text() == "child"
    (path / "good0").write_text("again")
    for name, numbers in ("good0", ()), ("new", (errno.EIO,)), ("directory/below/child", (errno.EIO,)):
        with opened(path / name, os.O_RDWR) as fd, fails_with(*numbers) if numbers else contextlib.nullcontext():
            os.fsync(fd)
    # So it is over restarts; an orderly end names it.
    assert setup.mount.end(signal.SIGTERM) == Pending.exit_code
    setup.mount.start()
    assert sorted(setup.refused()) == ["directory", "new", "old"]
    listed = command("mountfs", "refused", "list", path / "directory").stdout
    assert listed.startswith("directory: create: ")
    assert "4 later changes need it" in listed
    # What is tried in vain is refused again; what is mended goes by itself, and so does what is deleted.
    retried = command("mountfs", "refused", "retry", path)
    assert (retried.returncode, "3 refused again" in retried.stderr) == (1, True), retried.stderr
    (path / "new").unlink()
    for name in "old", "directory":
        os.removexattr(path / name, "user.large")
    setup.mount.sync()
    assert setup.refused() == []
    assert setup.mount.status()["pending"]["operations"] == 0
    eventually(lambda: (other.path / "directory/moved").exists())
    assert (other.path / "directory/moved").read_text() == "moves into what is refused"
    assert (other.path / "directory/below/child").read_text() == "child"
    assert not (other.path / "moved").exists()
    assert not (other.path / "new").exists()


def test_what_is_refused_can_be_given_up(setup: Setup) -> None:
    path = setup.path
    os.chmod(path / "old", 0o640)
    (path / "directory").mkdir()
    (path / "directory/child").write_text("child")
    (path / "moved").rename(path / "directory/moved")
    (path / "temporary").write_text("after")
    (path / "temporary").rename(path / "replaced")
    setup.begin(spoilt=["old", "directory", "replaced"])
    assert command("mountfs", "sync", path, "--deadline", "60").returncode == Pending.exit_code
    assert len(setup.refused()) == 3
    unasked = command("mountfs", "refused", "drop", path)
    assert (unasked.returncode, "--yes" in unasked.stderr) == (1, True), unasked.stderr
    with opened(path / "replaced", os.O_RDONLY):
        busy = command("mountfs", "refused", "drop", path / "replaced", "--yes")
        assert (busy.returncode, "in use" in busy.stderr) == (4, True), busy.stderr
    dropped = command("mountfs", "refused", "drop", path, "--yes")
    assert dropped.returncode == 0, dropped.stderr
    assert "given up: directory/child" in dropped.stdout
    setup.mount.sync()
    assert command("mountfs", "refused", "list", path).stdout == "nothing is refused\n"
    eventually(lambda: sorted(os.listdir(path)) == ["moved", "old", "replaced"])
    assert (path / "moved").read_text() == "moves into what is refused"
    assert (path / "replaced").read_text() == "before"
    assert os.listxattr(path / "old") == []
    (path / "directory").mkdir()
    setup.mount.sync()


def test_what_was_deleted_takes_its_refusal_along(setup: Setup) -> None:
    """Also with what it had replaced, and a directory with what was in it."""
    path = setup.path
    (path / "temporary").write_text("after")
    (path / "temporary").rename(path / "replaced")
    (path / "directory/below").mkdir(parents=True)
    (path / "directory/below/child").write_text("child")
    (path / "directory/below/child").rename(path / "directory/child")
    setup.begin(spoilt=["old", "directory", "replaced"])
    assert command("mountfs", "sync", path, "--deadline", "60").returncode == Pending.exit_code
    assert len(setup.refused()) == 3
    assert len(setup.refused()) == 3
    (path / "old").unlink()
    (path / "replaced").unlink()
    (path / "directory/child").unlink()
    (path / "directory/below").rmdir()
    (path / "directory").rmdir()
    (path / "replaced").write_text("made anew")
    setup.mount.sync()
    assert setup.refused() == []
    other = setup.elsewhere().path
    assert sorted(os.listdir(other)) == ["moved", "replaced"]
    assert (other / "replaced").read_text() == "made anew"


def test_a_commit_that_an_earlier_daemon_sent_in_vain_is_taken_apart(setup: Setup) -> None:
    """It is stored, and would be sent again and again."""
    (setup.path / "new").write_text("content")
    (setup.path / "good").write_text("good")
    setup.proxy.set("stall", match=r"POST .*/commits$")
    before = setup.proxy.count("POST", r"/commits$")
    command("mountfs", "sync", setup.path, "--deadline", "1")
    setup.proxy.wait_for("POST", r"/commits$", at_least=before + 1, timeout=60)
    number = os.stat(setup.path / "new").st_ino
    setup.mount.kill()
    large = {b"user.large": bytes(XATTR_MAX + 1)}
    with contextlib.closing(sqlite3.connect(setup.mount.state / "mount.db")) as database, database:
        [[body]] = database.execute("SELECT body FROM batch").fetchall()
        commit = wire.unpack(body, wire.Commit)
        assert len(commit.ops) == 4
        for op in commit.ops:
            if isinstance(op, wire.Create) and op.name == b"new":
                op.file.xattrs = large
        database.execute("UPDATE batch SET body = ?", (wire.pack(commit),))
        database.execute("UPDATE inode SET xattrs = ? WHERE ino = ?", (msgspec.msgpack.encode(large), number))
    setup.proxy.set("pass")
    setup.mount.start()
    assert command("mountfs", "sync", setup.path).returncode == Pending.exit_code
    assert setup.refused() == ["new"]
    assert (setup.elsewhere().path / "good").read_text() == "good"
