"""Nodes that go away while a mount is at work: nothing fails, nothing is lost, and what is missing is made again."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path

import httpx
import pytest

from nodeserver.content.codec import chunk_id, encode
from tests.cluster.conftest import MakeCluster
from tests.cluster.nodes import Cluster, Loss, chunk_files, decoded, flip, intact, killed, stopped
from tests.conftest import MakeMount
from tests.harness import Mount, command, eventually

LARGE = 3 << 20


def work(mount: Mount, contents: dict[str, bytes], prefix: str) -> None:
    """Write files, small and large, with fsync, and note what they hold."""
    directory = mount.path
    for number, size in enumerate((10, 5_000, 200_000, LARGE)):
        name, content = f"{prefix}{number}", os.urandom(size)
        with (directory / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        contents[name] = content
    (directory / f"{prefix}dir").mkdir()
    os.rename(directory / f"{prefix}0", directory / f"{prefix}dir" / "moved")
    contents[f"{prefix}dir/moved"] = contents.pop(f"{prefix}0")
    mount.sync()


def check(directory: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        assert (directory / name).read_bytes() == content, name


def fresh(make_mount: MakeMount, cluster: Cluster) -> Mount:
    """A mount that has nothing in its cache."""
    return make_mount(cluster.first, "docs", options={"data-deadline": "20"})


@pytest.fixture
def three(make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster(3)
    cluster.first.create_bucket("docs")
    return cluster


@pytest.mark.parametrize("loss", [killed, stopped])
def test_the_loss_of_a_node_fails_nothing(three: Cluster, make_mount: MakeMount, loss: Loss) -> None:
    mount, contents = fresh(make_mount, three), dict[str, bytes]()
    work(mount, contents, "before")
    for node in three.nodes[1:]:
        with loss(node):
            work(mount, contents, f"without-{three.nodes.index(node)}-")
            check(fresh(make_mount, three).path, contents)
            three.until_state(node, "down")
            work(mount, contents, f"down-{three.nodes.index(node)}-")
        three.until_state(node, "up")
    three.until_healed()
    pieces = three.pieces().values()
    assert all(set(one) == set(next(iter(pieces))) for one in pieces)
    check(fresh(make_mount, three).path, contents)


def test_without_a_quorum_fsync_tells_and_the_journal_keeps(three: Cluster, make_mount: MakeMount) -> None:
    mount = make_mount(three.first, "docs", options={"data-deadline": "6"})
    (mount.path / "before").write_bytes(b"before")
    mount.sync()
    content = os.urandom(LARGE)
    with killed(three.nodes[1]), killed(three.nodes[2]):
        with (mount.path / "file").open("wb") as file:
            file.write(content)
            file.flush()
            with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
                os.fsync(file.fileno())
            assert caught.value.errno == errno.EIO
        status = mount.status()
        assert "file" in str(status["pending"]["files"])
        assert any("took the chunk" in error["text"] for error in status["errors"])
        assert (mount.path / "file").read_bytes() == content
    mount.sync()
    check(fresh(make_mount, three).path, {"file": content, "before": b"before"})


def test_a_damaged_copy_is_read_from_elsewhere_and_mended(three: Cluster, make_mount: MakeMount) -> None:
    mount, contents, rng = fresh(make_mount, three), dict[str, bytes](), random.Random(1)
    work(mount, contents, "a")
    for path in chunk_files(three.nodes[1]):
        flip(path, rng)
    with killed(three.nodes[2]):
        check(fresh(make_mount, three).path, contents)

    def mended() -> bool:
        three.command("workers", "run", "repair")
        return all(intact(path) for path in chunk_files(three.nodes[1]))

    # Of two copies the reader met the bad one or not; that one is found by the scrub at the latest.
    done = command("nodeserver", "workers", "run", "scrub", "--data", three.nodes[1].data)
    assert done.returncode == 0, done.stderr
    eventually(lambda: mended() and len(chunk_files(three.nodes[1])) > 1, 60, "mended")
    three.until_healed()
    with killed(three.nodes[2]):
        check(fresh(make_mount, three).path, contents)


def test_false_content_gives_way_once_a_reader_has_met_it(three: Cluster, make_mount: MakeMount) -> None:
    """Nodes that keep chunks alone cannot know what belongs under an id, and take what comes first."""
    content = os.urandom(300_000)
    bucket = three.first.api("GET", "/buckets/docs")
    chunk = chunk_id(decoded(bucket["chunk_key"]), content).hex()
    path, false = f"/v1/pieces/{decoded(bucket['id']).hex()}/{chunk}", encode(os.urandom(300_000))
    headers = {"Authorization": f"Bearer {three.first.token}"}
    for node in three.nodes[1:]:
        answer = httpx.put(node.url + path, content=false, headers=headers, trust_env=False, verify=False)
        assert answer.status_code == 204, answer.text
    mount = fresh(make_mount, three)
    (mount.path / "file").write_bytes(content)
    mount.sync()  # to a quorum of nodes that say they have it
    with contextlib.suppress(OSError):
        assert (fresh(make_mount, three).path / "file").read_bytes() == content
    eventually(lambda: all(chunk not in three.pieces()[node.url] for node in three.nodes[1:]), 60, "deleted")
    (mount.path / "again").write_bytes(content)
    mount.sync()
    check(fresh(make_mount, three).path, {"file": content, "again": content})


def test_scrub_sets_damaged_pieces_aside(three: Cluster, make_mount: MakeMount) -> None:
    mount, contents, rng = fresh(make_mount, three), dict[str, bytes](), random.Random(2)
    work(mount, contents, "a")
    whole = three.pieces()
    damaged = chunk_files(three.nodes[1])
    packs = sorted((three.nodes[1].data / "chunks").glob("*/packs/*.pack"))
    for path in [*damaged, *packs]:
        flip(path, rng)
    done = command("nodeserver", "workers", "run", "scrub", "--data", three.nodes[1].data)
    assert done.returncode == 0, done.stderr
    assert f"{len(damaged) + len(packs)} were damaged" in done.stdout
    aside = list((three.nodes[1].data / "chunks" / "quarantine").iterdir())
    assert len(aside) == len(damaged) + len(packs)
    eventually(lambda: three.command("workers", "run", "repair")[0] == 0 and three.pieces() == whole, 60, "mended")
    three.until_healed()
    assert all(intact(path) for path in chunk_files(three.nodes[1]))
    check(fresh(make_mount, three).path, contents)


def test_deleted_copies_come_back(three: Cluster, make_mount: MakeMount) -> None:
    mount, contents = fresh(make_mount, three), dict[str, bytes]()
    work(mount, contents, "a")
    whole = three.pieces()
    for path in chunk_files(three.nodes[0]):
        path.unlink()
    check(fresh(make_mount, three).path, contents)
    eventually(lambda: three.command("workers", "run", "repair")[0] == 0 and three.pieces() == whole, 60, "mended")


def test_what_is_lost_on_all_nodes_is_told_and_comes_back_with_its_content(
    three: Cluster, make_mount: MakeMount
) -> None:
    mount, contents = fresh(make_mount, three), dict[str, bytes]()
    work(mount, contents, "a")
    lost = len(chunk_files(three.first))
    for node in three.nodes:
        for path in chunk_files(node):
            path.unlink()
    code, said = three.command("workers", "run", "repair")
    assert code == 0, said
    code, said = three.command("status")
    assert code == 1
    assert lost >= 2
    assert f"{lost} chunks cannot be read from the nodes that answer" in said
    for name, content in contents.items():
        (mount.path / "again").write_bytes(content)
        mount.sync()
        assert (mount.path / name).read_bytes() == content
    assert three.command("workers", "run", "repair")[0] == 0
    three.until_healed()
    check(fresh(make_mount, three).path, contents)


def test_one_file_tells_how_safe_it_is(three: Cluster, make_mount: MakeMount) -> None:
    mount = fresh(make_mount, three)
    (mount.path / "file").write_bytes(os.urandom(LARGE))
    (mount.path / "empty").touch()
    mount.sync()
    assert os.getxattr(mount.path / "file", "user.mountfs.durability") == b"3/3"
    assert os.getxattr(mount.path / "empty", "user.mountfs.durability") == b"metadata"
    assert os.listxattr(mount.path / "file") == []
    shown = command("mountfs", "why", mount.path / "file")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("nothing would be lost") == 3
    with killed(three.nodes[1]):
        assert os.getxattr(mount.path / "file", "user.mountfs.durability") == b"2/3"
        assert "does not answer" in command("mountfs", "why", mount.path / "file").stdout
        three.until_state(three.nodes[1], "down")
        eventually(lambda: "2 of 3 up" in command("mountfs", "status", mount.path).stdout, 30, "the mount knows")
        code, said = three.command("status")
        assert code == 1
        assert "is down" in said
    with contextlib.suppress(OSError):
        os.setxattr(mount.path / "file", "user.mountfs.durability", b"9/9")
        raise AssertionError("nobody sets it")
