"""The nodes that keep pieces, as they are seen from here: how to reach them, and which to ask first."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from nodeserver.client.errors import ClientError, Refused, Unreachable
from nodeserver.client.peer import Peer
from nodeserver.placement.map import ClusterMap, Node, NodeId, State
from nodeserver.placement.rendezvous import Placement
from nodeserver.placement.scheme import Scheme, bucket_scheme
from nodeserver.protocol.cluster import CHUNKS
from nodeserver.protocol.errors import Code

AVOID_SILENT = 5.0
"""Seconds for which a node that did not answer is asked last."""
AVOID_SLOW = 2.0
"""Seconds for which a node is asked last that was slower than the next one, asked later."""
AVOID_FULL = 30.0
"""Seconds for which a node whose disk is full gets nothing while others have room."""
HEDGE_LEAST, HEDGE_FIRST, HEDGE_MOST = 0.03, 0.5, 2.0
"""Seconds after which a second node is asked: at least, before enough is known, at most."""
REMEMBERED = 128
"""Answer times that the 95th percentile is taken of."""


class Roster:
    """Belongs to one event loop; who only asks may do so on a thread."""

    def __init__(self, peer_of: Callable[[Node], Peer], cluster_map: ClusterMap) -> None:
        self._peer_of = peer_of
        self._avoided: dict[NodeId, float] = {}
        self._pace: dict[NodeId, float] = {}
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._peers: dict[NodeId, tuple[str, Peer]] = {}
        self._placements: dict[int, Placement] = {}
        self.map = cluster_map

    def follow(self, cluster_map: ClusterMap) -> None:
        """Take a newer map; an older one is ignored."""
        if cluster_map.epoch > self.map.epoch:
            self.map = cluster_map
            self._placements.clear()

    @property
    def keepers(self) -> list[Node]:
        """The nodes that keep pieces and may be reached."""
        return [node for node in self.map.serving(CHUNKS) if node.state is not State.DOWN]

    def scheme(self, redundancy: str) -> Scheme:
        """The scheme of a bucket with this setting. Raises ``BadScheme``."""
        return bucket_scheme(redundancy, len(self.map.sharing))

    def placement(self, pieces: int) -> Placement:
        """Where chunks of so many pieces go."""
        if pieces not in self._placements:
            self._placements[pieces] = Placement(self.map, pieces)
        return self._placements[pieces]

    def peer(self, node: Node) -> Peer:
        """The way to a node."""
        url, peer = self._peers.get(node.id, ("", None))
        if peer is None or url != node.url:
            peer = self._peer_of(node)
            self._peers[node.id] = node.url, peer
        return peer

    # What experience says

    def willing(self, nodes: Iterable[Node]) -> list[Node]:
        """The same nodes, those last that did badly just now."""
        return sorted(nodes, key=self.avoided)

    def nearest(self, nodes: Iterable[Node]) -> list[Node]:
        """The same nodes, those that did badly last, the faster ones first; a factor of four makes a difference."""
        return sorted(nodes, key=lambda node: (self.avoided(node), self._distance(node)))

    def avoided(self, node: Node) -> bool:
        """Whether a node did badly just now."""
        return self._avoided.get(node.id, 0.0) > time.monotonic()

    def _distance(self, node: Node) -> int:
        return int(math.log(max(self._pace.get(node.id, 0.0), 1e-3) * 1e3, 4))

    def answered(self, node: Node, seconds: float | None = None) -> None:
        """A node did what it was asked; a read took so long."""
        self._avoided.pop(node.id, None)
        if seconds is not None:
            self._times.append(seconds)
            self._pace[node.id] = 0.8 * self._pace.get(node.id, seconds) + 0.2 * seconds

    def failed(self, node: Node, error: ClientError) -> None:
        """A node did not do what it was asked."""
        if isinstance(error, Unreachable):
            self.avoid(node, AVOID_SILENT)
        elif isinstance(error, Refused) and error.code is Code.FULL:
            self.avoid(node, AVOID_FULL)

    def avoid(self, node: Node, seconds: float) -> None:
        """Ask others first for a while."""
        self._avoided[node.id] = time.monotonic() + seconds

    def hedge(self) -> float:
        """Seconds in which 19 of 20 answers came; then it is time to ask another node."""
        if len(self._times) < 20:
            return HEDGE_FIRST
        return min(max(sorted(self._times)[len(self._times) * 19 // 20], HEDGE_LEAST), HEDGE_MOST)
