"""How likely it is that data is lost: a Markov model of failing nodes, repair and scrub.

The state is j, the most pieces that any chunk lacks because of failed nodes. Chunks have n pieces on n of N nodes at
random and survive the loss of m of them.

- j to j + 1: one of the N - j other nodes fails (``afr`` each, a year), and it holds a piece of a chunk that lacks j
  and is not yet repaired. With many chunks that is certain; with few it is not.
- j to j - 1: the chunks that lack j pieces are repaired first. They are the part of a node's content that the other
  j - 1 failed nodes shared, less what was repaired before the j-th failed: of j repairs that overlap at random, 1 / j
  is left. They are read from all survivors at once, from each at ``repair_rate``, once ``grace`` has gone by.
- Loss: beyond j = m. Also at the step to j = m when one of the pieces that the chunks still need has decayed and
  no scrub has found it: ``latent`` errors arise a year and TB, and are on average half of ``scrub_days`` old.

Right as long as repairs seldom overlap, that is while failures a year times the duration of a repair is far below 1.
Failures are independent: not in the model are the loss of a zone at once, mistakes of operators and of programs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeserver.placement.scheme import Scheme

YEAR = 365.25 * 86_400.0
"""Seconds."""
DAY = 86_400.0
TB = 1e12


class ImpossibleCluster(ValueError):
    """The scheme does not fit the number of nodes, or a figure cannot be."""


@dataclass(frozen=True)
class Cluster:
    """What the probability depends on."""

    nodes: int
    scheme: Scheme
    afr: float
    """Failures a node and year after which its content is gone."""
    repair_rate: float
    """Bytes a second that each node reads for repairs."""
    scrub_days: float
    """Every piece is read and checked once in so many days."""
    capacity: float = 4e12
    """Bytes that each node holds."""
    chunk_size: float = 1024.0 * 1024
    grace: float = 900.0
    """Seconds from a failure to the start of its repair."""
    latent: float = 0.1
    """Pieces that decay unnoticed, a year and TB: about what a study of 1.5 million disks found for the poorer
    kind (Bairavasundaram et al., "An analysis of latent sector errors in disk drives", 2007)."""

    def __post_init__(self) -> None:
        if self.nodes < self.scheme.pieces:
            raise ImpossibleCluster(f"{self.scheme} needs {self.scheme.pieces} nodes, there are {self.nodes}")
        for name in ("afr", "scrub_days", "grace", "latent"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ImpossibleCluster(f"{name} of {getattr(self, name):g}")
        for name in ("repair_rate", "capacity", "chunk_size"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ImpossibleCluster(f"{name} of {getattr(self, name):g}")

    @property
    def chunks(self) -> float:
        """How many chunks there are."""
        return self.nodes * self.capacity / (self.scheme.pieces * self.chunk_size / self.scheme.needed)


@dataclass(frozen=True)
class Durability:
    """What the model says."""

    loss: float
    """Probability that within a year any data is lost."""
    years: float
    """Mean time to the first loss; infinite when nothing ever fails."""
    chunk_loss: float
    """Probability that within a year one given chunk is lost."""
    repair_seconds: float
    """From a node's failure until every chunk has all its pieces again."""
    overhead: float
    """Bytes on disks for a byte of data."""

    @property
    def nines(self) -> float:
        """``chunk_loss`` as the number of nines of a chunk's durability."""
        return -math.log10(self.chunk_loss) if self.chunk_loss else math.inf


@dataclass(frozen=True)
class Step:
    """The rates, a year, with which the chain leaves a state."""

    up: float
    down: float
    lost: float = 0.0


def model(cluster: Cluster) -> Durability:
    """Solve the chain for ``cluster``."""
    scheme = cluster.scheme
    years = mean_years(_steps(cluster, cluster.nodes, cluster.capacity))
    # The chain of one chunk: it has n pieces to lose, and meets the same repairs.
    piece = cluster.chunk_size / scheme.needed
    chunk_years = mean_years(_steps(cluster, scheme.pieces, piece))
    return Durability(
        loss=_within_a_year(years),
        years=years,
        chunk_loss=_within_a_year(chunk_years),
        repair_seconds=_repair_seconds(cluster, 1),
        overhead=scheme.pieces / scheme.needed,
    )


def mean_years(steps: list[Step]) -> float:
    """Mean time from the first state to absorption: beyond the last state, or by ``lost``.

    States are eliminated from the last to the first by sums, products and quotients alone: nothing cancels, however
    rare a loss is.
    """
    through, waited = 1.0, 0.0
    absorbed, spent = 0.0, 1.0
    for step in reversed(steps):
        absorbed = step.lost + step.up * through
        spent = 1 + step.up * waited
        out = absorbed + step.down
        through, waited = (absorbed / out, spent / out) if out else (0.0, 0.0)
    return spent / absorbed if absorbed else math.inf


def _steps(cluster: Cluster, holders: int, content: float) -> list[Step]:
    """The chain of data on ``holders`` nodes of which each holds ``content`` bytes."""
    scheme = cluster.scheme
    pieces, spare = scheme.pieces, scheme.pieces - scheme.needed
    chunks = holders * content / (pieces * cluster.chunk_size / scheme.needed)
    steps = []
    for gone in range(spare + 1):
        met = 1.0 if gone == 0 else _met(cluster, holders, gone, chunks)
        up = (holders - gone) * cluster.afr * met
        down = YEAR / _repair_seconds(cluster, gone) if gone else 0.0
        # The step to the last state: all pieces that are left of the chunks concerned must be good.
        needed = scheme.needed * content * _shared(holders, pieces, gone + 1) * _left(cluster, gone + 1)
        if gone + 1 == spare:
            bad = -math.expm1(-needed / TB * cluster.latent * cluster.scrub_days / 2 * DAY / YEAR)
            steps.append(Step(up * (1 - bad), down, up * bad))
        elif gone == spare == 0:
            steps.append(Step(up, down, holders * content / TB * cluster.latent))
        else:
            steps.append(Step(up, down))
    return steps


def _shared(holders: int, pieces: int, gone: int) -> float:
    """The part of a node's chunks that have a piece on each of ``gone`` - 1 certain others."""
    return math.prod((pieces - one) / (holders - one) for one in range(1, gone))


def _met(cluster: Cluster, holders: int, gone: int, chunks: float) -> float:
    """The probability that the next node to fail has a piece of one of the chunks that lack ``gone``.

    While the grace goes by all of them are there, during the repair on average half.
    """
    pieces = cluster.scheme.pieces
    if holders == pieces:
        # Every chunk is on every node: any one that is not yet repaired will do.
        waiting, working = 1.0, 1.0 if chunks > 1 else 0.5
    else:
        concerned = max(1.0, chunks * pieces / holders * _shared(holders, pieces, gone) * _left(cluster, gone))
        none = concerned * math.log1p(-(pieces - gone) / (holders - gone))
        waiting, working = -math.expm1(none), 1 - math.expm1(none) / none
    whole = _repair_seconds(cluster, gone)
    return (waiting * cluster.grace + working * (whole - cluster.grace)) / whole


def _repair_seconds(cluster: Cluster, gone: int) -> float:
    """From the failure of the last of ``gone`` nodes until no chunk lacks as many pieces."""
    return cluster.grace + _working_seconds(cluster, gone) * _left(cluster, gone)


def _working_seconds(cluster: Cluster, gone: int) -> float:
    """How long the repair of all chunks that ``gone`` certain nodes share takes."""
    scheme = cluster.scheme
    read = cluster.capacity * _shared(cluster.nodes, scheme.pieces, gone) * scheme.needed
    return read / (cluster.repair_rate * max(1, cluster.nodes - gone))


def _left(cluster: Cluster, gone: int) -> float:
    """The part of the chunks shared by ``gone`` failed nodes that is not repaired when the last of them fails."""
    if gone < 2:
        return 1.0
    # What fails during the grace finds everything as it was.
    before = _working_seconds(cluster, gone - 1)
    return 1 - before / (cluster.grace + before) * (1 - 1 / gone)


def _within_a_year(years: float) -> float:
    return -math.expm1(-1 / years) if years else 1.0
