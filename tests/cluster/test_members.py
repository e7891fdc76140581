"""Nodes that join a cluster, are refused, go down, come back, and what each server tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import MakeCluster
from tests.cluster.nodes import FAST, Cluster, stopped
from tests.harness import Node, command, eventually


def serve(data: Path, *options: str) -> str:
    """What ``nodeserver serve`` says when it refuses, in one line."""
    done = command("nodeserver", "serve", "--data", data, "--listen", "127.0.0.1:0", *options)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def asked(node: Node, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {node.token}"}
    return httpx.get(f"{node.url}/v1{path}", headers=headers, trust_env=False, verify=False)


def test_nodes_join_and_every_one_serves_the_map(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    eventually(lambda: len({asked(node, "/cluster").json()["epoch"] for node in cluster.nodes}) == 1, 20, "one epoch")
    found = [asked(node, "/server").json() for node in cluster.nodes]
    assert len({one["cluster"] for one in found}) == 1
    assert [one["roles"] for one in found] == [["metadata", "chunks"], ["chunks"], ["chunks"]]
    assert set(cluster.states().values()) == {"up"}
    assert json.loads((cluster.nodes[1].data / "cluster.json").read_text())
    assert (cluster.nodes[1].data / "cluster.json").stat().st_mode & 0o777 == 0o600
    cluster.first.kill()
    assert asked(cluster.nodes[1], "/cluster").json()["map"]


def test_a_node_that_keeps_chunks_alone_says_so(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    keeper = cluster.nodes[1]
    refused = asked(keeper, "/buckets")
    assert refused.status_code == 421
    assert refused.json()["type"].endswith("no-metadata")
    # Who comes with its address is told of the others.
    done = command("nodeserver", "status", "--url", keeper.url, "--token-file", cluster.first.token_file)
    assert "2 of 2 nodes are up" in done.stdout, done.stderr
    cluster.first.create_bucket("docs")
    done = command("mountfs", "bucket", "list", "--url", keeper.url, "--token-file", cluster.first.token_file)
    assert "docs" in done.stdout, done.stderr


def test_a_node_comes_back_without_joining_again_at_another_address(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    node = cluster.nodes[1]
    node.stop()
    cluster.until_state(node, "down")
    node.options, before = FAST, node.url
    node.url = ""
    node.start()
    assert node.url != before
    eventually(lambda: cluster.states().get(node.url) == "up", 20, "it is up at its new address")
    assert before not in cluster.states()


def test_a_server_that_stood_still_condemns_nobody(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    with stopped(cluster.first), stopped(cluster.nodes[1]):
        pass
    assert set(cluster.states().values()) == {"up"}
    assert "are down" not in cluster.first.log.read_text()


def test_who_may_not_join_is_told_why(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(1)
    url, token = cluster.first.url, cluster.join_token()
    assert "cannot join" in serve(tmp_path / "a", "--join", url, "--join-token", "forged")
    reader = command("nodeserver", "token", "--data", cluster.first.data).stdout.strip()
    assert "read" in serve(tmp_path / "b", "--join", url, "--join-token", reader)
    assert "cannot join" in serve(tmp_path / "c", "--join", "http://127.0.0.1:1", "--join-token", token)
    assert "--join-token" in serve(tmp_path / "d", "--join", url)
    assert "metadata" in serve(tmp_path / "e", "--join", url, "--join-token", token, "--roles", "metadata,chunks")
    assert "--join" in serve(tmp_path / "f", "--roles", "chunks")
    other = Node(tmp_path / "other", options=FAST)
    other.start()
    try:
        other.stop()
        assert "metadata of its own" in serve(other.data, "--join", url, "--join-token", token)
    finally:
        other.destroy()


def test_a_join_token_does_nothing_else(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1)
    headers = {"Authorization": f"Bearer {cluster.join_token()}"}
    for path in ("/buckets", "/cluster", "/nodes", "/pieces", "/server"):
        answer = httpx.get(f"{cluster.first.url}/v1{path}", headers=headers, trust_env=False, verify=False)
        assert answer.status_code == 403, path


def test_a_node_that_belongs_to_another_cluster_is_refused(make_cluster: MakeCluster) -> None:
    one, other = make_cluster(2), make_cluster(1)
    one.nodes[1].stop()
    said = serve(one.nodes[1].data, "--join", other.first.url, "--join-token", other.join_token())
    assert "another cluster" in said


def test_a_removed_node_does_not_come_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    node = cluster.nodes[1]
    code, said = cluster.command("node", "remove", cluster.id_of(node), "--apply")
    assert code == 0, said
    eventually(lambda: "was removed" in node.log.read_text(), 20, "it is told")
    assert cluster.states()[node.url] == "removed"
    node.kill()
    said = serve(node.data, "--join", cluster.first.url, "--join-token", cluster.join_token())
    assert "was removed" in said


@pytest.mark.parametrize("words", [("drain", "ffffffff"), ("weight", "0"), ("weight",), ("drain", "", "3")])
def test_wrong_orders_are_refused(make_cluster: MakeCluster, words: tuple[str, ...]) -> None:
    cluster = make_cluster(1)
    action, *rest = words
    code, said = cluster.command("node", action, *rest)
    assert code != 0
    assert "Traceback" not in said


def test_weights_and_workers_are_set_from_the_command_line(make_cluster: MakeCluster) -> None:
    cluster: Cluster = make_cluster(2)
    name = cluster.id_of(cluster.nodes[1])
    code, said = cluster.command("node", "weight", name, "2.5", "--apply")
    assert code == 0, said
    assert "weight 2.5" in said
    assert "2.5" in cluster.command("nodes")[1]
    code, said = cluster.command("workers", "throttle", "rebalance", "10M")
    assert code == 0, said
    assert "at most" in said
    code, said = cluster.command("workers", "throttle", "rebalance", "0")
    assert code == 0, said
    assert "at most" not in said
