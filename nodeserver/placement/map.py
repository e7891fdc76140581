"""The cluster map: which nodes there are, where they stand and what they may take.

A map is a value. A change makes a new one with the next epoch; of two maps the one with the higher epoch is right.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import msgspec

from nodeserver.protocol.cluster import CHUNKS, METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

VERSION = 1
"""Of the packed form. Fields with defaults may be added within it."""

NODE_ID = 16
"""Bytes in a node's id."""

NodeId = bytes


class BadMap(ValueError):
    """Not a cluster map, or one that contradicts itself."""


class State(enum.Enum):
    """What a node is used for."""

    UP = "up"
    """Takes chunks and gives them."""
    DRAINING = "draining"
    """Takes nothing new; its chunks move away."""
    DOWN = "down"
    """Cannot be reached; keeps its share, others stand in for it."""
    REMOVED = "removed"
    """Gone for ever. Stays in the map, so that it is known when it comes back with old chunks."""


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node server."""

    id: NodeId
    url: str
    zone: str = ""
    """What fails together: a rack, a room. Nodes without one are in one zone together."""
    region: str = ""
    weight: float = 1.0
    """Its share of the chunks, relative to the others' weights."""
    state: State = State.UP
    capacity: int = 0
    """Bytes it can hold; 0: not known."""
    roles: tuple[str, ...] = (METADATA, CHUNKS)
    """What it answers for: buckets and files, pieces of chunks, or both."""


class ClusterMap(msgspec.Struct, frozen=True, omit_defaults=True):
    """All nodes that ever joined, at one epoch."""

    epoch: int = 0
    nodes: tuple[Node, ...] = ()
    version: int = VERSION

    def node(self, node: NodeId) -> Node:
        """The node with this id. Raises ``KeyError``."""
        for one in self.nodes:
            if one.id == node:
                return one
        raise KeyError(node)

    def serving(self, role: str) -> list[Node]:
        """The nodes with a role, but for those that were removed."""
        return [node for node in self.nodes if role in node.roles and node.state is not State.REMOVED]

    @property
    def sharing(self) -> list[Node]:
        """The nodes that have a share of the chunks: those that keep some, are not drained and not removed."""
        return [node for node in self.serving(CHUNKS) if node.state is not State.DRAINING]

    def with_nodes(self, *changed: Node) -> ClusterMap:
        """The next epoch: ``changed`` replace the nodes with their ids, or join. Raises ``BadMap``."""
        nodes = {node.id: node for node in self.nodes} | {node.id: node for node in changed}
        return _checked(ClusterMap(self.epoch + 1, tuple(sorted(nodes.values(), key=lambda node: node.id))))

    def with_state(self, node: NodeId, state: State) -> ClusterMap:
        """The next epoch, with one node in another state. Raises ``KeyError``, or ``BadMap`` when it was removed, or is
        to be, and is the last with metadata."""
        if state is State.REMOVED and [one.id for one in self.serving(METADATA)] == [node]:
            raise BadMap(f"node {node.hex()} is the only server with metadata: without it there are no files")
        return self.with_nodes(msgspec.structs.replace(self._present(node), state=state))

    def with_weight(self, node: NodeId, weight: float) -> ClusterMap:
        """The next epoch, with one node of another weight. Raises ``KeyError``, ``BadMap``."""
        return self.with_nodes(msgspec.structs.replace(self._present(node), weight=weight))

    def _present(self, node: NodeId) -> Node:
        found = self.node(node)
        if found.state is State.REMOVED:
            raise BadMap(f"node {node.hex()} was removed")
        return found

    def pack(self) -> bytes:
        """The map as MessagePack."""
        return _encoder.encode(self)


class _Versioned(msgspec.Struct):
    version: int = VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ClusterMap)
_version_decoder = msgspec.msgpack.Decoder(_Versioned)


def make_map(nodes: Iterable[Node], epoch: int = 1) -> ClusterMap:
    """A map of these nodes. Raises ``BadMap``."""
    return _checked(ClusterMap(epoch, tuple(sorted(nodes, key=lambda node: node.id))))


def unpack(packed: Buffer) -> ClusterMap:
    """The map that ``pack`` made. Raises ``BadMap``, also for a version that this release does not know."""
    try:
        # The version alone first: what a newer one holds may not fit the types of this release.
        version = _version_decoder.decode(packed).version
        if version != VERSION:
            raise BadMap(f"version {version} of the cluster map is not known to this release")
        return _checked(_decoder.decode(packed))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMap(f"not a cluster map: {error}") from error


def newer(one: ClusterMap, other: ClusterMap) -> ClusterMap:
    """The map with the higher epoch."""
    return other if other.epoch > one.epoch else one


def _checked(found: ClusterMap) -> ClusterMap:
    if found.epoch < 0:
        raise BadMap(f"epoch {found.epoch}")
    seen: set[NodeId] = set()
    for node in found.nodes:
        name = node.id.hex()
        if len(node.id) != NODE_ID:
            raise BadMap(f"the id {name!r} of a node has {len(node.id)} bytes, not {NODE_ID}")
        if node.id in seen:
            raise BadMap(f"node {name} is in the map twice")
        if not (math.isfinite(node.weight) and node.weight > 0):
            raise BadMap(f"node {name} has weight {node.weight:g}; it must be above 0")
        if node.capacity < 0:
            raise BadMap(f"node {name} has a capacity of {node.capacity} bytes")
        seen.add(node.id)
    return found
