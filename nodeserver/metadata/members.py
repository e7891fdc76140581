"""The nodes of a cluster: the map, and what each node last said of itself."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import Connection, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.errors import NoNode, RemovedNode, TakenNode
from nodeserver.placement.map import BadMap, ClusterMap, Node, NodeId, State, unpack
from nodeserver.protocol.cluster import Member, NodeChange, NodeStatus
from nodeserver.protocol.wire import pack

NODES_MAX = 1000
"""In a cluster, those that were removed among them: each request for the map carries all."""

_cluster, _member = tables.cluster.c, tables.member.c
_said = msgspec.msgpack.Decoder(Member)


def current(connection: Connection) -> ClusterMap:
    """The map; one without nodes before the first registers."""
    packed = connection.execute(select(_cluster.map)).scalar()
    return ClusterMap() if packed is None else unpack(packed)


def heard(connection: Connection, member: Member, now_ns: int, *, joining: bool = False) -> ClusterMap:
    """Note that a node is there, and what it says of itself; the map then.

    A new node joins; one that was down is up. With ``joining`` it has not proven that it is the node it says it is.
    Raises ``RemovedNode``, ``BadMap``, ``TakenNode``.
    """
    found = current(connection)
    known = {node.id: node for node in found.nodes}.get(member.id)
    if known is not None and known.state is State.REMOVED:
        raise RemovedNode(f"node {member.id.hex()} was removed from the cluster")
    if joining and known is not None and known.state is not State.DOWN and known.url != member.url:
        raise TakenNode(f"node {member.id.hex()} is there, at {known.url}")
    if known is None and len(found.nodes) >= NODES_MAX:
        raise BadMap(f"a cluster has at most {NODES_MAX} nodes")
    _note(connection, member, now_ns)
    said = Node(
        member.id,
        member.url,
        member.zone,
        member.region,
        weight=known.weight if known else member.weight,
        state=State.UP if known is None or known.state is State.DOWN else known.state,
        roles=tuple(member.roles),
    )
    if said != known:
        found = _save(connection, found.with_nodes(said))
    return found


def silent(connection: Connection, before_ns: int) -> set[NodeId]:
    """The nodes that are taken for up and were last heard of before a moment."""
    late = set(connection.execute(select(_member.id).where(_member.last_seen_ns < before_ns)).scalars())
    return {node.id for node in current(connection).nodes if node.state is State.UP} & late


def mark_down(connection: Connection, nodes: Collection[NodeId], before_ns: int) -> ClusterMap:
    """Take nodes for down that were last heard of before a moment; the map then."""
    found = current(connection)
    for node in silent(connection, before_ns) & set(nodes):
        found = _save(connection, found.with_state(node, State.DOWN))
    return found


def change(connection: Connection, node: NodeId, changed: NodeChange) -> ClusterMap:
    """Change the state or weight of a node; the map then. Raises ``NoNode``, ``BadMap``."""
    before = current(connection)
    after = changed_map(before, node, changed)
    return after if after is before else _save(connection, after)


def changed_map(found: ClusterMap, node: NodeId, changed: NodeChange) -> ClusterMap:
    """The map with a change to a node; the same when nothing changes. Raises ``NoNode``, ``BadMap``."""
    try:
        now = found.node(node)
    except KeyError:
        raise NoNode(f"there is no node {node.hex()}") from None
    if changed.state is not None and State(changed.state) is not now.state:
        found = found.with_state(node, State(changed.state))
    if changed.weight is not None and changed.weight != now.weight:
        found = found.with_weight(node, changed.weight)
    return found


def statuses(connection: Connection) -> tuple[int, list[NodeStatus]]:
    """The epoch of the map, and its nodes as they last said they were."""
    found = current(connection)
    rows = {row.id: row for row in connection.execute(select(tables.member))}
    nodes = []
    for node in found.nodes:
        row = rows.get(node.id)
        member = _said.decode(row.said) if row else Member(node.id, node.url, "")
        member.weight, member.zone, member.region, member.url = node.weight, node.zone, node.region, node.url
        nodes.append(NodeStatus(member, node.state.value, row.last_seen_ns if row else 0))
    return found.epoch, nodes


def _note(connection: Connection, member: Member, now_ns: int) -> None:
    values = {"said": pack(member), "last_seen_ns": now_ns}
    if not connection.execute(update(tables.member).where(_member.id == member.id).values(values)).rowcount:
        connection.execute(insert(tables.member), {"id": member.id, **values})


def _save(connection: Connection, found: ClusterMap) -> ClusterMap:
    values = {"epoch": found.epoch, "map": found.pack()}
    if not connection.execute(update(tables.cluster).values(values)).rowcount:
        connection.execute(insert(tables.cluster), {"one": 1, **values})
    return found
