"""A mount at work for minutes while nodes are killed, stopped, filled, damaged, added and drained."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster
from tests.cluster.soak import Faults, Workload, tree
from tests.conftest import MakeMount
from tests.harness import command, eventually
from tests.nodeserver.postgres import Postgres

SEED = int(os.environ.get("SEED", "20261123"))


@pytest.fixture
def cluster(tmp_path: Path, postgres_server: Postgres) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster", 5, database=postgres_server.create(), proxied=True)
    try:
        yield made
    finally:
        made.destroy()


@pytest.mark.parametrize("redundancy", ["replicate:3:2", "erasure:2+2"])
def test_nothing_is_lost_whatever_happens_to_one_node_at_a_time(
    cluster: Cluster, make_mount: MakeMount, tmp_path: Path, soak: int, redundancy: str
) -> None:
    cluster.first.create_bucket("docs")
    token = Path(shutil.copy(cluster.first.token_file, tmp_path / "token"))
    options = ("--url", cluster.first.url, "--token-file", token)
    assert command("mountfs", "bucket", "set", "docs", f"redundancy={redundancy}", *options).returncode == 0
    mount = make_mount(cluster.first, "docs", token_file=token)
    eventually(lambda: len(mount.status()["nodes"]) == 5, 30, "the mount knows all")
    oracle = tmp_path / "oracle"
    rng = random.Random(f"{SEED}{redundancy}")
    faults = Faults(cluster, rng)
    print(f"SEED={SEED}")
    for number, (fault, node) in enumerate(faults.rounds(soak)):
        print(f"round {number}: {fault}, {node.data.name}", flush=True)
        with Workload(mount.path, oracle, rng.randrange(1 << 32)) as work:
            work.until(10)
            with faults.all[fault](node):
                work.until(work.operations + 40)
        mount.sync(timeout=120)
        cluster.until_healed()
    assert tree(mount.path) == tree(oracle)

    def settled() -> bool:
        """Nothing that nobody needs is left, and all that is needed is whole."""
        code, said = cluster.command("workers", "run", "gc")
        assert code == 0, said
        return "deleted 0 chunks" in said and cluster.status()["healthy"]

    eventually(settled, 60, "settled")
    for node in cluster.nodes:
        scrubbed = command("nodeserver", "workers", "run", "scrub", "--data", node.data)
        assert " 0 were damaged" in scrubbed.stdout, scrubbed.stdout + scrubbed.stderr
    files = [path for path in oracle.rglob("*") if path.is_file() and path.stat().st_size]
    for path in files:
        have, _, wanted = os.getxattr(mount.path / path.relative_to(oracle), "user.mountfs.durability").partition(b"/")
        assert have.removeprefix(b"ec ") == wanted, path
    assert tree(make_mount(cluster.first, "docs", token_file=token).path) == tree(oracle)
