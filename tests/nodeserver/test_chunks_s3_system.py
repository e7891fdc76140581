"""A node server that keeps its chunks in a SeaweedFS, with mounts of it: the store is damaged, and goes away."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import obstore
import pytest
from obstore.store import S3Store as Bucket

from tests.conftest import MakeMount, MakeNode
from tests.harness import Node, Watchdog, command, eventually
from tests.nodeserver.seaweed import Seaweed

PREFIX_OF_LARGE = "/chunks/"


@pytest.fixture
def prefix() -> str:
    return f"system/{uuid4().hex}"


@pytest.fixture
def node(seaweed: Seaweed, keys: None, prefix: str, make_node: MakeNode) -> Node:
    """A server whose chunks are in the store."""
    return make_node(options=["--chunks", seaweed.address(prefix)])


def tree(root: Path) -> Path:
    """A directory with small files and large ones."""
    source = random.Random(7)
    for number in range(60):
        file = root / f"d{number % 5}" / f"small{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.randbytes(source.randint(1, 20_000)))
    (root / "large").write_bytes(source.randbytes(9_000_000))
    for name in "damaged", "lost":
        (root / name).write_bytes(source.randbytes(200_000))
    return root


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", one, other], timeout=60, check=False).returncode == 0


def large_objects(bucket: Bucket) -> list[str]:
    return [one["path"] for one in obstore.list(bucket).collect() if PREFIX_OF_LARGE in one["path"]]


def test_a_tree_survives_the_server_and_damage_is_told(
    node: Node, seaweed: Seaweed, prefix: str, make_mount: MakeMount, tmp_path: Path
) -> None:
    bucket = seaweed.bucket(prefix)
    source = tree(tmp_path / "source")
    mount = make_mount(node, node.create_bucket("files"))
    with Watchdog(60):
        subprocess.run(["cp", "-a", source, mount.path / "tree"], check=True)
        mount.sync()
        node.restart(signal.SIGKILL)
        cold = make_mount(node, "files")
        for name in "d0", "d1", "large":
            assert same(source / name, cold.path / "tree" / name)
        # 60 files did not become 60 objects, and nothing is on the server.
        assert len(obstore.list(bucket).collect()) - len(large_objects(bucket)) < 20
        assert not (node.data / "chunks").exists()

        for name in large_objects(bucket):
            data = obstore.get(bucket, name).bytes().to_bytes()
            obstore.put(bucket, name, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (cold.path / "tree/damaged").read_bytes()
        eventually(lambda: "corrupt-chunk" in node.log.read_text(), what="the server logs the damage")
        obstore.delete(bucket, large_objects(bucket))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (cold.path / "tree/lost").read_bytes()
        eventually(lambda: "chunk-not-found" in node.log.read_text(), what="the server logs the loss")
        assert same(source / "d2", cold.path / "tree/d2")
        # Who has the content brings it back by storing it again.
        for name in "damaged", "lost":
            subprocess.run(["cp", source / name, mount.path / f"{name} again"], check=True)
        mount.sync()
        for name in "damaged", "lost":
            assert (cold.path / "tree" / name).read_bytes() == (source / name).read_bytes()


def test_scrub_finds_what_the_store_has_damaged_or_lost(
    node: Node, seaweed: Seaweed, prefix: str, make_mount: MakeMount, tmp_path: Path
) -> None:
    bucket = seaweed.bucket(prefix)
    mount = make_mount(node, node.create_bucket("files"))

    def orders(*words: str) -> tuple[int, str]:
        done = command("nodeserver", *words, "--data", node.data)
        return done.returncode, done.stdout + done.stderr

    contents = {name: os.urandom(200_000) for name in ("good", "damaged", "lost")}
    objects: dict[str, str] = {}
    for name, content in contents.items():
        before = set(large_objects(bucket))
        (mount.path / name).write_bytes(content)
        mount.sync()
        [objects[name]] = set(large_objects(bucket)) - before
    code, said = orders("workers", "run", "scrub")
    assert "looked at 3 pieces, 0 were damaged, 0 that are needed cannot be read" in said
    assert orders("status")[0] == 0
    data = obstore.get(bucket, objects["damaged"]).bytes().to_bytes()
    obstore.put(bucket, objects["damaged"], data[:-1] + bytes([data[-1] ^ 1]))
    obstore.delete(bucket, objects["lost"])
    node.restart()  # what it was told lately it believes
    code, said = orders("workers", "run", "scrub")
    assert "looked at 2 pieces, 1 were damaged, 2 that are needed cannot be read" in said
    code, said = orders("status")
    assert code == 1
    assert "2 chunks cannot be read from the store" in said
    for name in "damaged", "lost":
        (mount.path / f"{name} again").write_bytes(contents[name])
    mount.sync()
    assert "0 were damaged, 0 that are needed cannot be read" in orders("workers", "run", "scrub")[1]
    assert orders("status")[0] == 0
    cold = make_mount(node, "files")
    for name, content in contents.items():
        assert (cold.path / name).read_bytes() == content


def test_writes_wait_while_the_store_is_away(
    node: Node, seaweed: Seaweed, make_mount: MakeMount, tmp_path: Path
) -> None:
    source = tree(tmp_path / "source")
    mount = make_mount(node, node.create_bucket("files"))
    with Watchdog(90):
        subprocess.run(["cp", "-a", source, mount.path / "before"], check=True)
        mount.sync()
        seaweed.kill()
        try:
            subprocess.run(["cp", "-a", source / "d1", mount.path / "during"], check=True)
            (mount.path / "during/big").write_bytes(random.Random(8).randbytes(3_000_000))
            assert same(source, mount.path / "before")
            eventually(lambda: "cannot be reached" in node.log.read_text(), what="the server logs that it is away")
            assert mount.status()["pending"]["operations"]
        finally:
            seaweed.start()
        mount.sync()
        assert not mount.status()["pending"]["operations"]
        cold = make_mount(node, "files")
        assert same(mount.path / "during", cold.path / "during")
        assert same(source, cold.path / "before")
