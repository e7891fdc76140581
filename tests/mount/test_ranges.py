"""Where content lies on this machine: bytes that something refers to are never written over and never given back."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node, eventually

KIB, MIB = 1 << 10, 1 << 20
MODES = {"writeback": True, "nowriteback": False}


@pytest.fixture(params=MODES)
def mount(request: pytest.FixtureRequest, module_node: Node, make_mount: MakeMount) -> Mount:
    bucket = module_node.create_bucket(f"ranges-{os.urandom(4).hex()}")
    options = {} if MODES[request.param] else {"nowriteback": True}
    mount = make_mount(module_node, bucket, options=options)
    assert os.listdir(mount.path) == []  # from now on a new name is known to be new, also without the server
    return mount


def some(size: int, seed: int) -> bytes:
    """Bytes that no compression and no chance makes equal."""
    return random.Random(seed).randbytes(size)


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """The server does not answer, and does not know."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def elsewhere(mount: Mount, node: Node, make_mount: MakeMount) -> Path:
    """What the server has, seen by a mount that knows nothing."""
    mount.sync()
    return make_mount(node, mount.url.rsplit("/", 1)[1]).path


def test_growing_after_a_truncate_leaves_cached_chunks_alone(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    first, second = some(MIB, 1), some(512 * KIB, 2)
    with (mount.path / "grown").open("wb", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, first, 0)
        os.fsync(fd)
        os.ftruncate(fd, 512 * KIB)
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        os.pwrite(fd, second, 512 * KIB)
        os.fsync(fd)
    (mount.path / "same").write_bytes(first)
    mount.remount()
    grown = b"x" + first[1 : 512 * KIB] + second
    assert (mount.path / "same").read_bytes() == first
    assert (mount.path / "grown").read_bytes() == grown
    with (mount.path / "same").open("r+b", buffering=0) as file:
        file.write(b"y")
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "same").read_bytes() == b"y" + first[1:]
    assert (there / "grown").read_bytes() == grown


def test_what_is_truncated_and_written_again_while_it_goes_up_is_not_given_back(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    pieces = [some(256 * KIB, seed) for seed in range(3)]
    with (mount.path / "f").open("w+b", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, pieces[0], 0)
        with stopped(module_node):
            os.link(mount.path / "f", mount.path / "f2")
            os.pwrite(fd, pieces[1], 256 * KIB)
            os.ftruncate(fd, 100 * KIB)
            os.pwrite(fd, pieces[2], 256 * KIB)
        # The first half arrives while the second is still being written.
        eventually(lambda: mount.status()["pending"]["operations"] <= 1)
        mount.sync()
        expected = pieces[0][: 100 * KIB] + bytes(156 * KIB) + pieces[2]
        assert os.pread(fd, MIB, 0) == expected
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "f").read_bytes() == expected
    mount.remount()
    assert (mount.path / "f").read_bytes() == expected


def test_a_log_that_is_copied_and_truncated_keeps_every_copy(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    copies: dict[str, bytes] = {}
    with (mount.path / "log").open("ab", buffering=0) as log:
        for turn in range(6):
            written = b""
            for line in range(5):
                written += some(150 * KIB + line, 10 * turn + line)
                log.write(written[-150 * KIB - line :])
                os.fsync(log.fileno())
            copies[f"log.{turn}"] = written
            (mount.path / f"log.{turn}").write_bytes((mount.path / "log").read_bytes())
            os.truncate(mount.path / "log", 0)
    there = elsewhere(mount, module_node, make_mount)
    for folder in there, mount.path:
        for name, content in copies.items():
            assert (folder / name).read_bytes() == content, name


def test_what_the_last_writer_left_is_sent_also_while_somebody_reads(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    """Sealed twice before the first was sent, the second time by the close of the last writer."""
    path = mount.path / "read"
    path.write_bytes(b"")
    mount.sync()
    with path.open("rb", buffering=0) as reader:
        with stopped(module_node), path.open("r+b", buffering=0) as writer:
            writer.write(some(200 * KIB, 1))
            os.link(path, mount.path / "linked")
            writer.write(some(200 * KIB, 2))
        there = elsewhere(mount, module_node, make_mount)
        assert (there / "read").read_bytes() == reader.read() == some(200 * KIB, 1) + some(200 * KIB, 2)
