"""The durability model against a simulation that knows nothing of it, and against what can be worked out by hand."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from nodeserver.cli.main import main
from nodeserver.durability import DAY, YEAR, Cluster, ImpossibleCluster, Step, mean_years, model
from nodeserver.placement.scheme import parse_scheme


class Simulation:
    """A year of a cluster: nodes that fail, chunks that lack pieces, repair in order of danger, decay, scrub.

    A failed node is out until all its pieces are rebuilt, then it is as before. Bytes are pieces here.
    """

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.spare = cluster.scheme.pieces - cluster.scheme.needed
        # Each chunk: which nodes have its pieces.
        self.chunks = [
            self.random.sample(range(cluster.nodes), cluster.scheme.pieces) for _ in range(round(cluster.chunks))
        ]
        self.on_node = [[c for c, held in enumerate(self.chunks) if node in held] for node in range(cluster.nodes)]
        self.lacking: dict[int, set[int]] = {}
        self.decayed: dict[tuple[int, int], float] = {}
        # How many pieces each node has yet to get back.
        self.out = Counter[int]()

    def loses_data(self) -> bool:
        """Whether anything is lost within a year."""
        cluster = self.cluster
        failures, decays = cluster.nodes * cluster.afr, cluster.nodes * cluster.capacity / 1e12 * cluster.latent
        now = before = idle_until = 0.0
        while True:
            now += self.random.expovariate(failures + decays)
            self._repair(now - max(before, idle_until))
            if now > 1:
                return False
            if self.random.random() * (failures + decays) < failures:
                node = self.random.randrange(cluster.nodes)
                if not self.out[node]:
                    idle_until = now + cluster.grace / YEAR
                    if self._fail(node, now):
                        return True
            elif self._decay(now):
                return True
            before = now

    def _fail(self, node: int, now: float) -> bool:
        self.out[node] = len(self.on_node[node])
        for chunk in self.on_node[node]:
            if self.decayed:
                self.decayed.pop((chunk, node), None)
            self.lacking.setdefault(chunk, set()).add(node)
        return any(self._is_lost(chunk, now) for chunk in self.on_node[node] if len(self.lacking[chunk]) >= self.spare)

    def _decay(self, now: float) -> bool:
        chunk = self.random.randrange(len(self.chunks))
        node = self.random.choice(self.chunks[chunk])
        if node not in self.lacking.get(chunk, ()):
            self.decayed[chunk, node] = now + self.random.random() * self.cluster.scrub_days * DAY / YEAR
        return self._is_lost(chunk, now)

    def _is_lost(self, chunk: int, now: float) -> bool:
        lacking = self.lacking.get(chunk, set())
        if len(lacking) < self.spare:
            # What has decayed is found and made good as long as nothing else happens to the chunk.
            return False
        bad = sum(self.decayed.get((chunk, node), 0) > now for node in self.chunks[chunk] if node not in lacking)
        return len(lacking) + bad > self.spare

    def _repair(self, years: float) -> None:
        cluster = self.cluster
        pieces = cluster.scheme.needed
        while self.lacking and years > 0:
            worst = max(len(nodes) for nodes in self.lacking.values())
            most = [chunk for chunk, nodes in self.lacking.items() if len(nodes) == worst]
            failed = sum(count > 0 for count in self.out.values())
            each = pieces / (cluster.repair_rate * max(1, cluster.nodes - failed)) / YEAR
            can = years / each
            count = min(len(most), int(can) + (self.random.random() < can % 1))
            for chunk in self.random.sample(most, count):
                self.out[self.lacking[chunk].pop()] -= 1
                if not self.lacking[chunk]:
                    del self.lacking[chunk]
            years -= len(most) * each


def simulated(cluster: Cluster, runs: int) -> float:
    """The part of ``runs`` years that lose data."""
    return sum(Simulation(cluster, seed).loses_data() for seed in range(runs)) / runs


def frequent(nodes: int, scheme: str, **figures: Any) -> Cluster:
    """A cluster with pieces of one byte that loses data often."""
    found = Cluster(
        nodes, parse_scheme(scheme), afr=1.0, repair_rate=1e-3, scrub_days=30, capacity=100, grace=0, latent=0
    )
    return replace(found, chunk_size=float(found.scheme.needed), **figures)


@pytest.mark.parametrize(
    "cluster",
    [
        frequent(6, "replicate:2", repair_rate=1e-4),
        frequent(6, "replicate:2", repair_rate=2e-4, grace=DAY),
        frequent(10, "replicate:2", afr=2.0, repair_rate=1e-5, capacity=8),
        frequent(8, "replicate:3", afr=6.0, repair_rate=1.2e-4, capacity=100),
        frequent(6, "erasure:3+2", afr=6.0, repair_rate=6.5e-4, capacity=100),
        frequent(9, "erasure:4+2", afr=5.0, repair_rate=6.5e-4, capacity=100),
        frequent(6, "replicate:2", repair_rate=1e-3, latent=0.002e12, scrub_days=60),
        frequent(8, "replicate:3", afr=5.0, repair_rate=1.65e-4, latent=0.02e12, scrub_days=60),
    ],
    ids=lambda cluster: f"{cluster.nodes} {cluster.scheme}",
)
def test_the_model_agrees_with_a_simulation(cluster: Cluster) -> None:
    expected = model(cluster).loss
    runs = 600
    found = simulated(cluster, runs)
    noise = 3 * math.sqrt(found * (1 - found) / runs)
    assert 0.02 < found < 0.7, (found, expected)
    assert abs(expected - found) < noise + 0.2 * found, (found, expected)


def test_chains_that_can_be_solved_by_hand() -> None:
    assert mean_years([Step(2.0, 0)]) == 0.5
    # A mirror: (3 * fail + repair) / (2 * fail ** 2).
    assert mean_years([Step(2 * 0.1, 0), Step(0.1, 1000)]) == pytest.approx((3 * 0.1 + 1000) / (2 * 0.1**2))
    assert mean_years([Step(1.0, 0, lost=1.0), Step(1.0, 0)]) == 1.0
    assert mean_years([Step(0.0, 0), Step(0.0, 5)]) == math.inf
    # Eight failures deep, each a millionth as likely as its repair: nothing drowns in rounding.
    deep = mean_years([Step(1.0, 0), *[Step(1.0, 1e6)] * 7])
    assert deep == pytest.approx(1e42, rel=1e-4)


DEFAULT = Cluster(6, parse_scheme("replicate:3"), afr=0.05, repair_rate=50e6, scrub_days=30)


def test_without_redundancy_a_loss_is_a_failure_or_a_decay() -> None:
    single = replace(DEFAULT, scheme=parse_scheme("replicate:1"))
    assert model(single).loss == pytest.approx(1 - math.exp(-6 * (0.05 + 4 * 0.1)))
    assert model(replace(single, latent=0)).chunk_loss == pytest.approx(1 - math.exp(-0.05))


def test_what_never_fails_is_never_lost() -> None:
    found = model(replace(DEFAULT, afr=0.0))
    assert (found.loss, found.chunk_loss, found.years, found.nines) == (0, 0, math.inf, math.inf)


@pytest.mark.parametrize(
    "worse",
    [
        {"afr": 0.1},
        {"repair_rate": 5e6},
        {"scrub_days": 300.0},
        {"capacity": 8e12},
        {"grace": 86_400.0},
        {"latent": 1.0},
        {"scheme": parse_scheme("replicate:2")},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_what_is_worse_loses_more(worse: dict[str, Any]) -> None:
    good, bad = model(DEFAULT), model(replace(DEFAULT, **worse))
    assert bad.loss > good.loss
    assert bad.chunk_loss > good.chunk_loss
    assert bad.years < good.years


def test_schemes_rank_as_they_should() -> None:
    nodes = replace(DEFAULT, nodes=20)
    losses = {
        name: model(replace(nodes, scheme=parse_scheme(name))).loss
        for name in ("replicate:2", "erasure:4+2", "replicate:3", "erasure:10+4")
    }
    assert sorted(losses, key=lambda name: -losses[name]) == [
        "replicate:2",
        "erasure:4+2",
        "replicate:3",
        "erasure:10+4",
    ]
    assert model(replace(nodes, scheme=parse_scheme("erasure:4+2"))).overhead == 1.5


@pytest.mark.parametrize("wrong", [{"nodes": 2}, {"afr": -1.0}, {"repair_rate": 0.0}, {"capacity": math.inf}])
def test_figures_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ImpossibleCluster):
        replace(DEFAULT, **wrong)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["durability", *arguments])
    return result.exit_code, result.output


def test_the_command_says_what_the_model_does() -> None:
    code, output = run("--nodes", "6", "--afr", "0.05", "--repair-rate", "50M", "--scrub-days", "30")
    assert code == 0
    assert f"any data lost within a year     {model(DEFAULT).loss:.2e}\n" in output
    code, output = run("--nodes", "6", "--scheme", "erasure:4+2", "--capacity", "2Ti", "--json")
    plain = json.loads(output)
    expected = model(replace(DEFAULT, scheme=parse_scheme("erasure:4+2"), capacity=2.0 * 2**40))
    assert (code, plain["scheme"], plain["capacity"], plain["loss"]) == (0, "erasure:4+2", 2 * 2**40, expected.loss)
    assert json.loads(run("--nodes", "6", "--afr", "0", "--json")[1])["years"] is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--nodes", "2"], "replicate:3:2 needs 3 nodes, there are 2"),
        (["--nodes", "6", "--scheme", "raid"], "'raid' is not replicate:N"),
        (["--nodes", "6", "--capacity", "much"], "'much' is not a number of bytes"),
        (["--nodes", "6", "--repair-rate", "0"], "repair_rate of 0"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], why: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert why in output
