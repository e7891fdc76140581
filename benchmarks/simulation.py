"""``python -m benchmarks.simulation``: a thousand nodes, without a socket.

Places a sample of chunks with the very function that the product uses (in numpy, and compared with it), and scales
what it counts to the whole. What is counted exactly and what is worked out from it, docs/scale.md says.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from nodeserver.placement.map import ClusterMap, Node, State, make_map
from nodeserver.placement.rendezvous import Placement, chunk_key
from nodeserver.placement.scheme import Scheme, parse_scheme

BLOCK = 2000
CHUNK = 1 << 20
WHOLE = 10**8
COMPARED = 100
"""Chunks for which the product's own function must give the same nodes."""
RATE = 50e6
"""Bytes a second that a node gives to repair, in each direction."""
SCRUB_DAYS = 30


def racks(count: int, nodes: int) -> ClusterMap:
    """``nodes`` nodes of equal weight in ``count`` zones."""
    rng = random.Random(1)
    return make_map(
        Node(rng.randbytes(16), f"https://node{number}.example:7070", f"rack{number % count}", "eu-1", capacity=10**13)
        for number in range(nodes)
    )


class Race:
    """``Placement.home`` for many chunks at once: nodes by their number in the map."""

    def __init__(self, cluster: ClusterMap, pieces: int, numbers: dict[bytes, int]) -> None:
        self.product = Placement(cluster, pieces)
        runners = [runner for runner in self.product._runners if runner[3]]
        self.pieces = pieces
        # Nodes of a zone stand together, so that a zone's best is a reduction.
        runners.sort(key=lambda runner: runner[4])
        self.keys = np.array([runner[1] for runner in runners], np.uint64)
        self.slowness = np.array([runner[2] for runner in runners])
        self.numbers = np.array([numbers[runner[0].id] for runner in runners], np.int32)
        zones = [runner[4] for runner in runners]
        self.starts = [number for number, zone in enumerate(zones) if not number or zones[number - 1] != zone]
        assert len(self.starts) >= pieces, "a zone for each piece"

    def home(self, chunks: NDArray[np.uint64]) -> NDArray[np.int32]:
        """For each chunk the numbers of its nodes, sorted."""
        mix = chunks[:, None] ^ self.keys
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mix ^= mix >> np.uint64(shift)
            mix *= np.uint64(factor)
        mix ^= mix >> np.uint64(31)
        times = -np.log(((mix >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53) * self.slowness
        best = np.minimum.reduceat(times, self.starts, axis=1)
        # A zone's best time is found again among its nodes: one of the ``pieces`` lowest of the zones' best.
        last = np.partition(best, self.pieces - 1, axis=1)[:, self.pieces - 1]
        ends = [*self.starts[1:], times.shape[1]]
        widths = [end - start for start, end in zip(self.starts, ends, strict=True)]
        chosen = (times == np.repeat(best, widths, axis=1)) & (times <= last[:, None])
        found = self.numbers[np.nonzero(chosen)[1]].reshape(len(chunks), self.pieces)
        return np.sort(found, axis=1)


def check(race: Race, cluster: ClusterMap) -> None:
    """Stop when the product would place chunks elsewhere."""
    rng = random.Random(2)
    ids = [rng.randbytes(32) for _ in range(COMPARED)]
    found = race.home(np.array([chunk_key(one) for one in ids], np.uint64))
    order = {node.id: number for number, node in enumerate(cluster.nodes)}
    for one, numbers in zip(ids, found, strict=True):
        expected = sorted(order[node.id] for node in race.product.home(one))
        if expected != numbers.tolist():
            raise SystemExit("the simulation and the product place a chunk differently")


def keys(count: int) -> Iterator[NDArray[np.uint64]]:
    """Blocks of random chunk ids, as far as placement looks at them; the same ones every time."""
    rng = np.random.default_rng(3)
    for start in range(0, count, BLOCK):
        yield rng.integers(0, 1 << 64, min(BLOCK, count - start), np.uint64)


@dataclass
class Balance:
    """How evenly pieces lie."""

    largest_over_mean: float
    smallest_over_mean: float
    deviation_percent: float
    expected_deviation_percent: float
    """Of pure chance, for the sample."""
    deviation_percent_of_the_whole: float
    """Of pure chance, for all chunks."""


@dataclass
class Change:
    """What a change of the map moves or loses."""

    pieces_moved_percent: float
    least_possible_percent: float
    bytes_of_the_whole: float
    nodes_that_send: int
    busiest_sends_over_mean: float
    nodes_that_receive: int
    busiest_receives_over_mean: float
    hours: float
    """At ``RATE``, of the whole, until a node with the mean of what those that send or receive have is done."""
    hours_of_the_busiest: float
    """The same for the busiest of the sample: above what the whole would show, by the noise of the sample."""
    chunks_that_lack: list[float]
    """Percent of chunks that lack 1, 2, … pieces until it is done; for nodes that are lost."""


def balance(homes: NDArray[np.int32], nodes: int, count: int, pieces: int) -> Balance:
    """Of the sample."""
    counts = np.bincount(homes.ravel(), minlength=nodes)
    mean = counts.mean()
    noise = 100 * ((1 - pieces / nodes) / mean) ** 0.5
    return Balance(
        counts.max() / mean,
        counts.min() / mean,
        100 * counts.std() / mean,
        noise,
        noise * (count / WHOLE) ** 0.5,
    )


def change(before: NDArray[np.int32], after: NDArray[np.int32], scheme: Scheme, gone: set[int], least: float) -> Change:
    """Compare homes. Who sends: nodes that give a piece up or, if they are gone, those of the others that keep one."""
    count, pieces = before.shape
    rng = np.random.default_rng(4)
    nodes = int(max(before.max(), after.max())) + 1
    arriving = (after[:, :, None] != before[:, None, :]).all(2)
    leaving = (before[:, :, None] != after[:, None, :]).all(2)
    lost = np.isin(before, list(gone))
    scale = WHOLE / count
    piece = scheme.piece_size(CHUNK)
    received = np.bincount(after[arriving], minlength=nodes).astype(float)
    sent = np.bincount(before[leaving & ~lost], minlength=nodes).astype(float)
    # What is rebuilt is read from ``needed`` of the nodes that still have a piece.
    for row in np.nonzero(lost.any(1))[0]:
        sources = before[row][~lost[row]]
        for _ in range(int(lost[row].sum())):
            sent[rng.permutation(sources)[: scheme.needed]] += 1
    hours = scale * piece / RATE / 3600
    lacking = np.bincount(lost.sum(1), minlength=pieces + 1)[1:] / count * 100
    return Change(
        100 * arriving.sum() / arriving.size,
        100 * least,
        float(arriving.sum() * scale * piece),
        int((sent > 0).sum()),
        float(sent.max() / sent[sent > 0].mean()),
        int((received > 0).sum()),
        float(received.max() / received[received > 0].mean()),
        float(max(received[received > 0].mean(), sent[sent > 0].mean()) * hours),
        float(max(received.max(), sent.max()) * hours),
        [float(percent) for percent in lacking if percent],
    )


def simulate(scheme: Scheme, count: int, nodes: int, zones: int) -> dict[str, object]:
    """All changes, for one scheme. Every map is run on the same chunks."""
    base = racks(zones, nodes)
    rng = random.Random(5)
    size = nodes // zones
    rack = [Node(rng.randbytes(16), f"https://new{number}.example:7070", "new", "eu-1") for number in range(size)]
    single = Node(rng.randbytes(16), "https://single.example:7070", "rack0", "eu-1")
    numbers = {node.id: number for number, node in enumerate([*base.nodes, *rack, single])}

    def without(lost: list[Node]) -> tuple[ClusterMap, set[int]]:
        changed = base
        for node in lost:
            changed = changed.with_state(node.id, State.REMOVED)
        return changed, {numbers[node.id] for node in lost}

    maps: dict[str, tuple[ClusterMap, set[int], float]] = {
        "a node joins": (base.with_nodes(single), set(), 1 / (nodes + 1)),
        "a rack joins": (base.with_nodes(*rack), set(), size / (nodes + size)),
        "a node is lost": (*without([base.nodes[0]]), 1 / nodes),
        "a rack is lost": (*without([node for node in base.nodes if node.zone == "rack1"]), size / nodes),
        "two racks are lost": (*without([n for n in base.nodes if n.zone in ("rack1", "rack2")]), 2 * size / nodes),
    }
    race = Race(base, scheme.pieces, numbers)
    check(race, base)
    before = np.concatenate([race.home(block) for block in keys(count)])
    found: dict[str, object] = {"balance": asdict(balance(before, nodes, count, scheme.pieces))}
    for name, (changed, gone, least) in maps.items():
        print(f"{scheme}: {name}", file=sys.stderr)
        other = Race(changed, scheme.pieces, numbers)
        after = np.concatenate([other.home(block) for block in keys(count)])
        found[name] = asdict(change(before, after, scheme, gone, least))
    return found


def sizes(cluster: ClusterMap) -> dict[str, float]:
    """What ends must keep, and what asking costs."""
    packed = cluster.pack()
    started = time.perf_counter()
    placement = Placement(cluster, 3)
    made = time.perf_counter() - started
    ids = [random.Random(number).randbytes(32) for number in range(200)]
    started = time.thread_time()
    for one in ids:
        placement.home(one)
    return {
        "map_bytes": len(packed),
        "map_seconds_to_prepare": made,
        "microseconds_to_place_a_chunk": (time.thread_time() - started) / len(ids) * 1e6,
    }


def main() -> None:
    """Print everything as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--chunks", type=int, default=10**6, help="in the sample (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--racks", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--scheme", action="append", help="(default: replicate:3 and erasure:4+2)")
    options = parser.parse_args()
    found: dict[str, object] = {
        "sample": options.chunks,
        "whole": WHOLE,
        "nodes": options.nodes,
        "racks": options.racks,
    }
    found["sizes"] = sizes(racks(options.racks, options.nodes))
    for text in options.scheme or ["replicate:3", "erasure:4+2"]:
        found[text] = simulate(parse_scheme(text), options.chunks, options.nodes, options.racks)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
