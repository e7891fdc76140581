"""What the commands of a workstation tell of a cluster and change in it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import MakeCluster
from tests.cluster.nodes import Cluster, decoded, killed
from tests.conftest import MakeMount
from tests.harness import command

DURABILITY = "user.mountfs.durability"


def bucket(cluster: Cluster, *words: str) -> tuple[int, str]:
    options = ("--url", cluster.first.url, "--token-file", cluster.first.token_file)
    done = command("mountfs", "bucket", *words, *options)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def alone(make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster(1)
    cluster.first.create_bucket("docs")
    return cluster


def test_settings_of_a_bucket_are_shown_and_changed(alone: Cluster) -> None:
    assert "redundancy  auto" in bucket(alone, "show", "docs")[1]
    assert bucket(alone, "set", "docs", "redundancy=replicate:3", "quota=1G")[0] == 0
    code, said = bucket(alone, "show", "docs", "--json")
    assert code == 0
    found = json.loads(said)
    assert (found["redundancy"], found["quota_bytes"]) == ("replicate:3:2", 1 << 30)
    assert bucket(alone, "set", "docs", "redundancy=auto", "quota=none")[0] == 0
    assert "quota       none" in bucket(alone, "show", "docs")[1]


@pytest.mark.parametrize(
    "values",
    [
        ("redundancy=twice",),
        ("redundancy=erasure:1+1",),
        ("redundancy=replicate:2:3",),
        ("color=red",),
        ("quota=lots",),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_changed(alone: Cluster, values: Sequence[str]) -> None:
    code, said = bucket(alone, "set", "docs", "quota=5G", *values)
    assert code != 0
    assert "Traceback" not in said
    assert "quota       none" in bucket(alone, "show", "docs")[1]


def test_why_tells_of_a_server_alone(alone: Cluster, make_mount: MakeMount) -> None:
    mount = make_mount(alone.first, "docs")
    (mount.path / "file").write_bytes(os.urandom(2 << 20))
    (mount.path / "empty").touch()
    done = command("mountfs", "why", mount.path / "file", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all((chunk["have"], chunk["wanted"]) == (1, 1) for chunk in found["chunks"])
    assert sum(found["lost_with"].values()) == len(found["chunks"])
    assert "chunks would be lost" in command("mountfs", "why", mount.path / "file").stdout
    assert "no chunks" in command("mountfs", "why", mount.path / "empty").stdout
    assert "not a file" in command("mountfs", "why", mount.path).stderr


def test_how_safe_a_file_is_that_is_not_sent_or_cannot_be_asked_for(alone: Cluster, make_mount: MakeMount) -> None:
    mount = make_mount(alone.first, "docs", options={"metadata-deadline": "2"})
    path: Path = mount.path / "file"
    path.write_bytes(b"sent")
    mount.sync()
    with killed(alone.first):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            os.getxattr(path, DURABILITY)
        assert caught.value.errno == errno.EIO
        path.write_bytes(b"not sent")
        assert os.getxattr(path, DURABILITY) == b"journal"
    mount.sync()
    assert os.getxattr(path, DURABILITY) == b"1/1"


def test_doctor_tells_of_nodes_that_are_down(make_cluster: MakeCluster, make_mount: MakeMount) -> None:
    cluster = make_cluster(2)
    cluster.first.create_bucket("docs")
    make_mount(cluster.first, "docs")
    assert "2 of 2 are up" in command("mountfs", "doctor").stdout
    with killed(cluster.nodes[1]):
        cluster.until_state(cluster.nodes[1], "down")
        assert "is down" in command("mountfs", "doctor").stdout


def test_a_code_for_more_nodes_than_there_are_is_refused_or_told_of(
    make_cluster: MakeCluster, make_mount: MakeMount
) -> None:
    cluster = make_cluster(2)
    cluster.first.create_bucket("docs")
    code, said = bucket(cluster, "set", "docs", "redundancy=erasure:2+1")
    assert code != 0
    assert "erasure:2+1 takes 3 nodes, and there are 2" in said
    assert "redundancy  auto" in bucket(cluster, "show", "docs")[1]
    assert bucket(cluster, "set", "docs", "redundancy=erasure:2+1", "--force")[0] == 0
    status = cluster.status()
    assert not status["healthy"]
    assert "bucket docs: erasure:2+1 takes 3 nodes, and there are 2" in status["problems"]
    mount = make_mount(cluster.first, "docs")
    (mount.path / "file").write_bytes(os.urandom(300_000))
    mount.sync()
    chunks = json.loads(command("mountfs", "why", mount.path / "file", "--json").stdout)["chunks"]
    assert chunks
    for chunk in chunks:
        assert chunk["have"] < chunk["wanted"] == 3
        assert chunk["scheme"] == "erasure:2+1"
    assert (mount.path / "file").stat().st_size == 300_000
    assert bucket(cluster, "set", "docs", "redundancy=replicate:2")[0] == 0


def test_a_node_is_named_by_any_part_of_its_id(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    id_, other = (cluster.id_of(node) for node in reversed(cluster.nodes))
    first = next(length for length in range(1, 33) if id_[:length] not in other)
    for part in (id_, id_[:first], id_[-8:], id_[-20:-2].upper()):
        code, said = cluster.command("node", "weight", part, "2")
        assert code == 0, said
    for part, words in (("", "several nodes"), ("zz", "no node")):
        code, said = cluster.command("node", "drain", part)
        assert code != 0
        assert words in said


def test_a_bucket_may_belong_to_another_user(alone: Cluster) -> None:
    assert bucket(alone, "create", "theirs", "--owner", "1234:2345")[0] == 0
    assert bucket(alone, "create", "mine", "--owner", "root")[0] == 0
    for name, owner in (("theirs", (1234, 2345)), ("mine", (0, 0))):
        root = alone.first.api("GET", f"/buckets/{name}")["root"]
        found = alone.first.api("GET", f"/buckets/{name}/files/{decoded(root).hex()}")["file"]
        assert (found.get("uid", 0), found.get("gid", 0)) == owner
    code, said = bucket(alone, "create", "none", "--owner", "no-such-user")
    assert code != 0
    assert "no-such-user" in said
