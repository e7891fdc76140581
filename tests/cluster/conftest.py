"""Clusters for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster

MakeCluster = Callable[[int], Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Starts clusters of so many nodes; they end with the test, and none may have logged a traceback."""
    clusters: list[Cluster] = []

    def make(count: int) -> Cluster:
        clusters.append(Cluster(tmp_path / f"cluster{len(clusters)}", count))
        return clusters[-1]

    try:
        yield make
    finally:
        for cluster in clusters:
            cluster.destroy()
    for cluster in clusters:
        for node in cluster.nodes:
            assert "Traceback" not in node.log.read_text(errors="replace"), node.log.read_text()[-3000:]
