"""Full disks, full caches, exceeded quotas: the call that does not fit says so, and all that was accepted is kept."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeMount, MakeNode
from tests.faultproxy import FaultProxy
from tests.harness import Node, command, disk_use, eventually, small_disk
from tests.mount.attempts import attempt, succeeds

MIB = 1 << 20
OPTIONS = {"metadata-deadline": 1, "data-deadline": 10, "settle": 0.1}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


def body(name: str, size: int) -> bytes:
    """Incompressible content that belongs to a name."""
    return random.Random(name).randbytes(size)


def fill(directory: Path, prefix: str = "fill", *, size: int = MIB, most: int = 200, fsync: bool = False) -> list[int]:
    """Write files ``prefix0``, … until one fails; returns the sizes of those whose close succeeded, then the errno."""
    accepted: list[int] = []
    for number in range(most):
        path = directory / f"{prefix}{number}"
        try:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY)
            try:
                os.write(fd, body(path.name, size))
                if fsync:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            return [*accepted, error.errno or 0]
        accepted.append(size)
    return [*accepted, 0]


def holds(directory: Path, sizes: list[int], prefix: str = "fill") -> None:
    """Raises AssertionError unless the files that `fill` wrote are there, whole."""
    names = [f"{prefix}{number}" for number in range(len(sizes))]
    assert not [
        name for name, size in zip(names, sizes, strict=True) if (directory / name).read_bytes() != body(name, size)
    ]


def test_a_cache_full_of_unsent_data_refuses_more_and_goes_on_afterwards(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("limits"), cache_size="32M", options=OPTIONS)
    assert os.listdir(mount.path) == []  # or nobody could say that names are free
    node.kill()
    *accepted, failure = fill(mount.path)
    assert failure == errno.ENOSPC
    assert 20 <= len(accepted) <= 32
    assert disk_use(mount.state) <= 40 * MIB
    holds(mount.path, accepted)
    assert attempt("write(path, 10 << 20)", mount.path / "one", 5) == "ENOSPC"
    (mount.path / "one").unlink(missing_ok=True)
    mount.remount(signal.SIGKILL)
    holds(mount.path, accepted)
    node.start()
    mount.sync()
    assert fill(mount.path, "after", most=40)[-1] == 0
    mount.sync()
    other = make_mount(node, "limits")
    assert len(os.listdir(other.path)) == len(accepted) + 40
    holds(other.path, accepted)
    holds(other.path, [MIB] * 40, "after")


def test_more_than_the_cache_holds_passes_through_it(node: Node, make_mount: MakeMount) -> None:
    mount = make_mount(node, node.create_bucket("limits"), cache_size="32M", options=OPTIONS)
    digest = hashlib.sha256()
    with open(mount.path / "large", "wb") as file:
        for number in range(64):
            file.write(piece := body(str(number), MIB))
            digest.update(piece)
            if number % 10 == 0:
                assert disk_use(mount.state) <= 40 * MIB
    sizes = fill(mount.path, most=40)
    assert sizes.pop() == 0
    mount.sync()
    with open(mount.path / "large", "rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest.digest()
    holds(mount.path, sizes)
    assert disk_use(mount.state) <= 40 * MIB
    status = mount.status()["cache"]
    assert status["used"] <= status["cap"] == 32 * MIB
    assert status["dirty"] == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with small_disk(tmp_path / "disk", "64M") as path:
        yield path


@needs_root
def test_a_full_local_disk_refuses_more_and_goes_on_afterwards(
    node: Node, make_mount: MakeMount, disk: Path, tmp_path: Path
) -> None:
    mount = make_mount(node, node.create_bucket("limits"), state=disk / "state", options=OPTIONS)
    mount.log = tmp_path / "log"
    assert os.listdir(mount.path) == []  # or nobody could say that names are free
    node.kill()
    *accepted, failure = fill(mount.path)
    assert failure == errno.ENOSPC
    assert 35 <= len(accepted) <= 60
    facts = os.statvfs(disk)
    assert facts.f_bavail >= facts.f_blocks * 0.08, "a tenth of the disk stays free"
    fill_up(disk)
    assert attempt("write(path, 300_000)", mount.path / "too-much", 5) == "ENOSPC"
    [full] = mount.status()["full"]
    assert str(mount.state) in full
    assert any(f"the disk of {mount.state} is full" in error["text"] for error in mount.status()["errors"])
    assert str(mount.state) in command("mountfs", "doctor").stdout
    names = [f"name{number}" for number in range(2000)]
    made = []
    for name in names:
        if attempt_mknod(mount.path / name):
            made.append(name)
        else:
            break
    assert mount.alive
    holds(mount.path, accepted)
    os.unlink(disk / "filler")
    node.start()
    mount.sync()
    (mount.path / "after").write_bytes(body("after", 10 * MIB))
    mount.remount(signal.SIGKILL)
    mount.sync()
    other = make_mount(node, "limits")
    holds(other.path, accepted)
    assert (other.path / "after").read_bytes() == body("after", 10 * MIB)
    assert set(made) <= set(os.listdir(other.path))


def attempt_mknod(path: Path) -> bool:
    """Whether a name could be made; False when there is no space for it. Raises OSError."""
    try:
        os.mknod(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


@needs_root
def test_a_full_server_disk_is_told_by_fsync_and_everything_goes_up_later(
    make_node: MakeNode, make_mount: MakeMount, disk: Path
) -> None:
    node = make_node(disk / "node")
    mount = make_mount(node, node.create_bucket("limits"), options=OPTIONS)
    *durable, failure = fill(mount.path, "durable", fsync=True)
    assert failure == errno.ENOSPC
    assert len(durable) >= 20
    *accepted, failure = fill(mount.path, "local", most=10)
    assert failure in (0, errno.ENOSPC), "accepted here, or refused: never lost"
    assert mount.alive
    holds(mount.path, durable, "durable")
    holds(mount.path, accepted, "local")
    subprocess.run(["mount", "-o", "remount,size=400M", disk], check=True)
    mount.sync()
    other = make_mount(node, "limits")
    holds(other.path, durable, "durable")
    holds(other.path, accepted, "local")


@needs_root
def test_what_was_refused_before_an_fsync_does_not_fail_it(
    make_node: MakeNode, make_mount: MakeMount, disk: Path
) -> None:
    node = make_node(disk / "node")
    with FaultProxy(node.url) as proxy, ThreadPoolExecutor() as threads:
        mount = make_mount(node, node.create_bucket("limits"), url=proxy.url, options=OPTIONS)
        fill_up(disk)
        proxy.set("hold", match=r"PUT .*/pieces/")
        with open(mount.path / "early", "wb", 0) as early, open(mount.path / "late", "wb", 0) as late:
            early.write(body("early", 3 * MIB))
            late.write(body("late", 3 * MIB))
            first = threads.submit(os.fsync, early.fileno())
            proxy.wait_held()  # the refusal of what was sent while the disk was full
            (disk / "filler").unlink()
            second = threads.submit(os.fsync, late.fileno())
            mount.status()  # by now the daemon has heard of it
            proxy.set("pass")
            second.result(timeout=30)
            error = first.exception(timeout=30)
            assert error is None or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


@needs_root
def test_when_nothing_waits_for_a_full_server_the_next_write_tries_it_again(
    make_node: MakeNode, make_mount: MakeMount, disk: Path
) -> None:
    node = make_node(disk / "node")
    mount = make_mount(node, node.create_bucket("limits"), options=OPTIONS)
    fill_up(disk)
    assert attempt("write(path, 300_000, fsync=True)", mount.path / "one", 5) == "ENOSPC"
    assert os.statvfs(mount.path).f_bavail == 0
    assert mount.status()["full"] == [f"the disk of {node.url} is full"]
    (mount.path / "one").unlink()
    (disk / "filler").unlink()
    eventually(lambda: succeeds("write(path, 300_000, fsync=True)", mount.path / "two"), timeout=30)


def fill_up(disk: Path) -> None:
    """Leave no room for content, by the file ``filler``."""
    facts = os.statvfs(disk)
    with open(disk / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, facts.f_bavail * facts.f_bsize - 64 * 1024)


def test_an_exceeded_quota_is_told_and_more_quota_lets_everything_go_up(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("limits")
    node.set_quota(bucket, 10 * MIB)
    mount = make_mount(node, bucket, options=OPTIONS)
    (mount.path / "spare").write_bytes(bytes(MIB))
    *durable, failure = fill(mount.path, "durable", fsync=True)
    assert failure in (errno.EDQUOT, errno.ENOSPC)
    assert len(durable) == 9
    full = ["bucket limits has used up its quota of 10.0 MiB"]
    eventually(lambda: mount.status()["full"] == full, what="the mount has heard of what is used")
    more = attempt("write(path, 5 << 20)", mount.path / "more", 5)
    assert more == "EDQUOT", "of a file made when nothing is left, by the write itself"
    assert attempt("write(path, 5 << 20, flags=0)", mount.path / "spare", 5) == "ENOSPC", "with write-back, at close"
    with pytest.raises(OSError, match="quota"):
        os.truncate(mount.path / "spare", 5 * MIB)
    status = mount.status()
    assert any("quota of bucket limits" in error["text"] for error in status["errors"])
    assert status["full"] == full
    appending = "write(path, 3 << 20, fsync=True, flags=os.O_APPEND)"
    assert attempt(appending, mount.path / "durable0", 5) == "ENOSPC"
    os.truncate(mount.path / "durable0", MIB)
    assert attempt("write(path, 0, fsync=True)", mount.path / "empty", 5) == "", "what needs no space goes on"
    *accepted, failure = fill(mount.path, "local", most=5)
    assert failure in (errno.EDQUOT, errno.ENOSPC)
    facts = os.statvfs(mount.path)
    assert facts.f_blocks * facts.f_frsize <= 10 * MIB, "df shows the quota"
    node.set_quota(bucket, 100 * MIB)
    eventually(succeeds("write(path, 2 << 20, fsync=True)", mount.path / "more"), 20)
    mount.sync()
    other = make_mount(node, bucket)
    holds(other.path, durable, "durable")
    holds(other.path, accepted, "local")
    assert (other.path / "more").stat().st_size == 2 * MIB


def test_without_writeback_a_write_beyond_the_quota_fails_itself(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("limits")
    node.set_quota(bucket, 2 * MIB)
    mount = make_mount(node, bucket, options=OPTIONS | {"nowriteback": True})
    with open(mount.path / "file", "wb", 0) as file:
        file.write(bytes(2 * MIB))
        with pytest.raises(OSError, match="quota"):
            file.write(b"x")


def test_content_that_the_server_refused_for_the_quota_goes_up_once_there_is_more(
    node: Node, make_mount: MakeMount
) -> None:
    mount = make_mount(node, node.create_bucket("limits"), options=OPTIONS)
    (mount.path / "before").write_bytes(body("before", MIB))
    mount.sync()
    node.kill()  # what is accepted meanwhile knows of no quota
    for name in "first", "second":
        (mount.path / name).write_bytes(body(name, 3 * MIB))
    node.start()
    node.set_quota("limits", 2 * MIB)
    eventually(lambda: "quota" in str(mount.status()["errors"]), 30, "the refusal is told")
    for name in "first", "second":
        assert (mount.path / name).read_bytes() == body(name, 3 * MIB), "here it is whole"
    mount.remount(signal.SIGKILL)
    eventually(lambda: "quota" in str(mount.status()["errors"]), 30, "it is told again")
    mount.kill()
    node.set_quota("limits", 20 * MIB)
    mount.start()
    mount.sync()
    other = make_mount(node, "limits")
    for name in "first", "second":
        assert (other.path / name).read_bytes() == body(name, 3 * MIB)


def test_deleting_files_makes_room_in_the_quota(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("limits")
    node.set_quota(bucket, 10 * MIB)
    mount = make_mount(node, bucket, options=OPTIONS)
    assert fill(mount.path, "first", most=8, fsync=True)[-1] == 0
    for number in range(8):
        (mount.path / f"first{number}").unlink()
    mount.sync()
    assert fill(mount.path, "second", most=8, fsync=True)[-1] == 0
    assert node.usage(bucket)["used_bytes"] == 8 * MIB


def test_statfs_shows_the_servers_capacity(node: Node, make_mount: MakeMount, tmp_path: Path) -> None:
    mount = make_mount(node, node.create_bucket("limits"))
    here, there = os.statvfs(tmp_path), os.statvfs(mount.path)
    capacity = here.f_blocks * here.f_frsize
    assert abs(there.f_blocks * there.f_frsize - capacity) <= capacity * 0.2
    assert there.f_bavail * there.f_frsize <= capacity
