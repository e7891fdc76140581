"""Weighted rendezvous hashing: on which nodes a chunk lies.

Every node draws a time for every chunk; the lowest times win. Times are -ln(u) / rate with u from a hash of chunk
and node, so the first is node i with probability rate_i / sum of rates, and a node that comes or goes changes only the
places it takes or gives up. (Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996; with weights:
Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005, the logarithmic method.)

The hash: chunk ids are BLAKE3 already, so 64 bits of one, combined with 64 bits of BLAKE3 of the node's id, go
through the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

Zones come first: the nodes of a zone follow each other in the order of their times, the zones' best nodes come
before any zone's second-best. So no zone has two pieces of a chunk while another that could take one has none, and
no node ever has two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from blake3 import blake3

from nodeserver.placement.map import State
from nodeserver.placement.shares import rates
from nodeserver.protocol.cluster import CHUNKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodeserver.placement.map import ClusterMap, Node, NodeId
    from nodeserver.protocol.wire import ChunkId

_MASK = (1 << 64) - 1
_UNIT = 2.0**-53


def node_key(node: NodeId) -> int:
    """64 bits that stand for a node in the hash."""
    return int.from_bytes(blake3(node).digest(8))


def chunk_key(chunk: ChunkId) -> int:
    """64 bits that stand for a chunk in the hash."""
    return int.from_bytes(chunk[:8])


def mixed(key: int) -> int:
    """A hash of 64 bits to 64 bits: the finalizer of SplitMix64."""
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB & _MASK
    return key ^ (key >> 31)


class Placement:
    """Where chunks of ``pieces`` pieces lie under a map. Immutable; any thread may ask.

    Nodes have pieces in proportion to their weights (within the noise of chance) when no zone needs more than one
    piece of a chunk to have its share, or when every zone has the same number. See ``docs/scale.md``.
    """

    def __init__(self, cluster: ClusterMap, pieces: int) -> None:
        self.epoch = cluster.epoch
        self.pieces = pieces
        present = cluster.serving(CHUNKS)
        # A node that is down keeps its share: its absence is made up for, not spread over everybody.
        sharing = [node for node in present if node.state is not State.DRAINING]
        paces = _paces(sharing, pieces)
        self._runners = [
            (node, node_key(node.id), 1 / paces.get(node.id, node.weight), node.state is State.UP, node.zone)
            for node in present
        ]

    def targets(self, chunk: ChunkId) -> list[Node]:
        """The nodes that may take a piece, best first: the home, then who stands in when one of it cannot.

        Only nodes that are up; empty when there are none.
        """
        seen: dict[str, int] = {}
        ranked = []
        for time, index in self._times(chunk):
            node, _, _, up, zone = self._runners[index]
            if up:
                rank = seen[zone] = seen.get(zone, 0) + 1
                ranked.append((rank, time, node))
        ranked.sort(key=_rank_and_time)
        return [node for _, _, node in ranked]

    def home(self, chunk: ChunkId) -> list[Node]:
        """The nodes that should hold a piece, at most ``pieces``; fewer when there are not as many.

        A set, in no order that means anything: which fragment a node has, the fragment says.
        """
        return self.targets(chunk)[: self.pieces]

    def sources(self, chunk: ChunkId) -> list[Node]:
        """Where to look for the pieces: the home, then the others that there are, the likeliest first."""
        home = self.home(chunk)
        found = {node.id for node in home}
        times = (self._runners[index][0] for _, index in self._times(chunk))
        return home + [node for node in times if node.id not in found]

    def _times(self, chunk: ChunkId) -> list[tuple[float, int]]:
        """Every node's time and its number, in order of time."""
        key = chunk_key(chunk)
        log = math.log
        times = []
        for index, (_, node, slowness, _, _) in enumerate(self._runners):
            # ``mixed`` spelt out: a call would cost as much as the hash.
            mix = key ^ node
            mix = (mix ^ (mix >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
            mix = (mix ^ (mix >> 27)) * 0x94D049BB133111EB & _MASK
            times.append((-log((((mix ^ (mix >> 31)) >> 11) + 0.5) * _UNIT) * slowness, index))
        times.sort()
        return times


def _rank_and_time(ranked: tuple[int, float, Node]) -> tuple[int, float]:
    return ranked[:2]


def _paces(nodes: Sequence[Node], pieces: int) -> dict[NodeId, float]:
    """The rate of each node's times, so that it gets its share."""
    zones: dict[str, list[Node]] = {}
    for node in nodes:
        zones.setdefault(node.zone, []).append(node)
    if len(zones) > pieces:
        # One piece a zone: the zone's best time runs at the sum of its nodes' rates.
        weights = [sum(node.weight for node in members) for members in zones.values()]
        scales = [rate / weight for rate, weight in zip(rates(weights, pieces), weights, strict=True)]
        return {
            node.id: node.weight * scale
            for members, scale in zip(zones.values(), scales, strict=True)
            for node in members
        }
    each = round(pieces / len(zones)) if zones else 0
    return {
        node.id: pace
        for members in zones.values()
        for node, pace in zip(members, rates([node.weight for node in members], each), strict=True)
    }
