"""Nodes that come and go for good, and buckets whose redundancy changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cluster.conftest import MakeCluster
from tests.cluster.nodes import Cluster, killed
from tests.conftest import MakeMount
from tests.harness import command, eventually


def fill(directory: Path, files: int = 12) -> dict[str, bytes]:
    contents = {f"file{number}": os.urandom(150_000 * (number % 4) + 100) for number in range(files)}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return contents


def check(directory: Path, contents: dict[str, bytes]) -> None:
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == contents


def copies(cluster: Cluster) -> dict[str, int]:
    """How many nodes have each piece."""
    found: dict[str, int] = {}
    for pieces in cluster.pieces().values():
        for piece in pieces:
            found[piece] = found.get(piece, 0) + 1
    return found


def set_redundancy(cluster: Cluster, value: str) -> None:
    options = ("--url", cluster.first.url, "--token-file", cluster.first.token_file)
    done = command("mountfs", "bucket", "set", "docs", f"redundancy={value}", *options)
    assert done.returncode == 0, done.stderr


def test_a_server_alone_becomes_a_cluster(make_cluster: MakeCluster, make_mount: MakeMount) -> None:
    cluster = make_cluster(1)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path)
    mount.sync()
    assert os.getxattr(mount.path / "file1", "user.mountfs.durability") == b"1/1"
    cluster.add()
    cluster.add()
    cluster.until_healed()
    assert set(copies(cluster).values()) == {3}
    eventually(lambda: len(mount.status()["nodes"]) == 3, 30, "the mount hears of them")
    contents["later"] = b"x" * 100_000
    (mount.path / "later").write_bytes(contents["later"])
    mount.sync()
    check(make_mount(cluster.first, "docs").path, contents)


def test_nodes_are_added_drained_and_removed(make_cluster: MakeCluster, make_mount: MakeMount) -> None:
    cluster = make_cluster(3)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path)
    mount.sync()
    cluster.add()
    cluster.add()
    cluster.until_healed()
    assert set(copies(cluster).values()) == {3}
    assert all(cluster.pieces().values()), "each has its share"

    leaving = cluster.nodes[1]
    name = cluster.id_of(leaving)[-8:]
    code, said = cluster.command("node", "drain", name)
    assert code == 0, said
    assert "nothing was changed" in said
    assert f"{len(cluster.pieces()[leaving.url])} pieces move" in said
    assert cluster.states()[leaving.url] == "up"
    code, said = cluster.command("node", "drain", name, "--apply")
    assert code == 0, said
    eventually(
        lambda: (cluster.command("workers", "run", "rebalance"), not cluster.pieces()[leaving.url])[1], 60, "drained"
    )
    assert set(copies(cluster).values()) == {3}
    code, said = cluster.command("node", "remove", name, "--apply")
    assert code == 0, said
    assert "0 pieces move" in said
    leaving.kill()
    cluster.until_healed()
    check(make_mount(cluster.first, "docs").path, contents)


def test_no_node_is_removed_by_mistake_that_alone_has_something(
    make_cluster: MakeCluster, make_mount: MakeMount
) -> None:
    cluster = make_cluster(2)
    cluster.first.create_bucket("docs")
    set_redundancy(cluster, "replicate:1")
    mount = make_mount(cluster.first, "docs")
    fill(mount.path)
    mount.sync()
    keeper = cluster.id_of(cluster.nodes[1])
    alone = len(cluster.pieces()[cluster.nodes[1].url])
    assert alone
    for words, refused in ((), False), (("--apply",), True):
        code, said = cluster.command("node", "remove", keeper, *words)
        assert code == refused, said
        assert f"{alone} chunks are on no node that stays, and would be LOST" in said
    assert cluster.states()[cluster.nodes[1].url] == "up"
    code, said = cluster.command("node", "remove", cluster.id_of(cluster.first), "--apply", "--lose-data")
    assert code == 1
    assert "the only server with metadata" in said
    assert cluster.command("node", "remove", keeper, "--apply", "--lose-data")[0] == 0
    assert cluster.states()[cluster.nodes[1].url] == "removed"


def test_a_node_that_is_lost_for_good_is_replaced(make_cluster: MakeCluster, make_mount: MakeMount) -> None:
    cluster = make_cluster(4)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path)
    mount.sync()
    lost = cluster.nodes[2]
    lost.kill()
    cluster.until_state(lost, "down")
    cluster.until_healed(but=["is down"])
    eventually(
        lambda: (cluster.command("workers", "run", "repair"), set(copies(cluster).values()) == {3})[1], 60, "healed"
    )
    check(make_mount(cluster.first, "docs").path, contents)


def test_a_node_comes_back_from_the_dead(make_cluster: MakeCluster, make_mount: MakeMount, tmp_path: Path) -> None:
    cluster = make_cluster(4)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path)
    mount.sync()
    node = cluster.nodes[3]
    node.stop()
    shutil.copytree(node.data, tmp_path / "old")
    cluster.until_state(node, "down")
    for name in list(contents)[:6]:
        (mount.path / name).unlink()
        del contents[name]
    mount.sync()
    cluster.until_healed(but=["is down"])
    shutil.rmtree(node.data)
    shutil.copytree(tmp_path / "old", node.data)
    node.start()
    cluster.until_state(node, "up")
    cluster.until_healed()
    check(make_mount(cluster.first, "docs").path, contents)
    assert set(copies(cluster).values()) == {3}


def test_a_node_that_was_away_when_a_bucket_was_deleted_forgets_it_too(
    make_cluster: MakeCluster, make_mount: MakeMount
) -> None:
    cluster = make_cluster(3)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path)
    mount.sync()
    node = cluster.nodes[2]
    with killed(node):
        cluster.until_state(node, "down")
        for name in contents:
            (mount.path / name).unlink()
        mount.stop()
        cluster.first.api("DELETE", "/buckets/docs?history=destroy")
        assert "1 wait: no answer from" in cluster.command("workers", "run", "purge-buckets")[1]
        assert not cluster.first.api("GET", "/pieces")["buckets"]
    assert node.api("GET", "/pieces")["buckets"]
    cluster.until_state(node, "up")
    assert "1 buckets" in cluster.command("workers", "run", "purge-buckets")[1]
    assert not node.api("GET", "/pieces")["buckets"]


def test_any_two_of_six_may_be_lost_with_erasure_coding(make_cluster: MakeCluster, make_mount: MakeMount) -> None:
    cluster = make_cluster(6)
    cluster.first.create_bucket("docs")
    set_redundancy(cluster, "erasure:4+2")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path) | {"large": os.urandom(6 << 20)}
    (mount.path / "large").write_bytes(contents["large"])
    mount.sync()
    assert os.getxattr(mount.path / "large", "user.mountfs.durability") == b"ec 6/6"
    assert os.getxattr(mount.path / "file0", "user.mountfs.durability") == b"3/3"
    for lost in cluster.nodes[2:4]:
        lost.kill()
        shutil.rmtree(lost.data)
    check(make_mount(cluster.first, "docs").path, contents)
    for lost in cluster.nodes[2:4]:
        cluster.until_state(lost, "down")
        code, said = cluster.command(
            "node", "remove", cluster.id_of(lost) if lost.data.exists() else _id(cluster, lost.url), "--apply"
        )
        assert code == 0, said
    cluster.add()
    cluster.add()
    cluster.until_healed()
    eventually(lambda: os.getxattr(mount.path / "large", "user.mountfs.durability") == b"ec 6/6", 60, "whole again")
    check(make_mount(cluster.first, "docs").path, contents)


def _id(cluster: Cluster, url: str) -> str:
    _, said = cluster.command("nodes")
    return next(line.split()[0] for line in said.splitlines() if line.endswith(url))


@pytest.mark.parametrize("value", ["replicate:2", "erasure:2+1"])
def test_a_change_of_redundancy_encodes_anew(make_cluster: MakeCluster, make_mount: MakeMount, value: str) -> None:
    cluster = make_cluster(3)
    cluster.first.create_bucket("docs")
    mount = make_mount(cluster.first, "docs")
    contents = fill(mount.path) | {"large": os.urandom(2 << 20)}
    (mount.path / "large").write_bytes(contents["large"])
    mount.sync()
    before = sum(sum(pieces.values()) for pieces in cluster.pieces().values())
    wanted = {"replicate:2": b"2/2", "erasure:2+1": b"ec 3/3"}[value]
    set_redundancy(cluster, value)

    def settled() -> bool:
        cluster.command("workers", "run", "rebalance")
        sizes = [size for pieces in cluster.pieces().values() for size in pieces.values()]
        return os.getxattr(mount.path / "large", "user.mountfs.durability") == wanted and sum(sizes) < 0.75 * before

    eventually(settled, 60, "encoded anew")
    check(make_mount(cluster.first, "docs").path, contents)
