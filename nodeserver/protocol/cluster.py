"""Wire types between and about the nodes of a cluster. Conventions as in :mod:`nodeserver.protocol.wire`."""

from __future__ import annotations

import msgspec

from nodeserver.protocol.pieces import PieceId
from nodeserver.protocol.wire import ChunkId, Int

METADATA = "metadata"
CHUNKS = "chunks"
"""Roles: to answer requests about buckets and files, and to keep pieces of chunks."""

MAX_FIND = 1024
"""Chunks in one question of where they are, and in one report of bad ones."""

# Pieces: ``/v1/pieces/{bucket}/…``, bucket ids in hexadecimal. Every node with the role ``chunks`` answers them from
# what it keeps itself, with or without metadata. ``PUT`` and ``GET …/{piece}`` take and give the stored form.


class PieceIds(msgspec.Struct):
    """Body of ``POST …/read`` and ``POST …/delete``."""

    ids: list[PieceId]


class PieceBatch(msgspec.Struct):
    """Body of ``POST /v1/pieces/{bucket}`` (all stored, durably, or none) and answer of ``POST …/read``: for the first
    of what was asked for, as far as ``MAX_BATCH_BYTES`` goes, the pieces that are there and the ids of those that are
    not, or are damaged."""

    pieces: list[tuple[PieceId, bytes]]
    absent: list[PieceId] = []


class Held(msgspec.Struct, array_like=True):
    """A piece that a node has."""

    piece: PieceId
    size: Int
    """Bytes of the stored form."""
    stored_ns: Int
    verified_ns: Int = 0
    """When its checksum was last found right; at the latest when it was stored. 0 in listings."""


class ChunksAsked(msgspec.Struct):
    """Body of ``POST …/find``: at most ``MAX_FIND`` chunks."""

    chunks: list[ChunkId]


class Pieces(msgspec.Struct):
    """Answer of ``POST …/find``, the pieces that a node has of some chunks, and of
    ``GET /v1/pieces/{bucket}?first=N&beyond=M``, all whose ids begin with a byte from N on and below M. Ascending."""

    pieces: list[Held]


class PieceBuckets(msgspec.Struct):
    """``GET /v1/pieces``: the buckets that a node has pieces of. ``DELETE /v1/pieces/{bucket}`` deletes all of one."""

    buckets: list[bytes]


# Members


class Member(msgspec.Struct, omit_defaults=True):
    """What a node says of itself, at its start and every few seconds."""

    id: bytes
    url: str
    """Where clients reach it."""
    version: str
    zone: str = ""
    region: str = ""
    weight: float = 1.0
    """Counts when it joins; later the map's counts."""
    roles: list[str] = msgspec.field(default_factory=lambda: [METADATA, CHUNKS])
    capacity_bytes: Int = 0
    free_bytes: Int = 0
    used_bytes: Int = 0
    """Of its pieces, as stored."""
    pieces: Int = 0


class Join(msgspec.Struct):
    """``POST /v1/cluster/join``, with a token whose right is ``join``, or the node's own. Repeated, it has the same
    answer; a node that is up moves to another address only with its own."""

    member: Member


class Joined(msgspec.Struct):
    """The answer: what a node without metadata must know to verify tokens and to talk to the others."""

    cluster: bytes
    """16 bytes: the id of the cluster."""
    audience: str
    public_key: bytes
    """PEM, Ed25519."""
    token: str
    """The node's own: to give signs of life and to follow the map. Renewed by the answers to those."""
    map: bytes
    """The cluster map, packed: :mod:`nodeserver.placement.map`."""


class Beat(msgspec.Struct):
    """``POST /v1/cluster/beat``: a node is there."""

    member: Member
    epoch: Int
    """Of the map it knows."""
    damaged: list[tuple[bytes, ChunkId]] = []
    """Pairs of bucket and chunk of pieces that were found damaged since the last beat was answered."""


class ClusterAnswer(msgspec.Struct):
    """``GET /v1/cluster?epoch=E`` from any node, and the answer to a beat: the map, empty when it is the one of epoch
    E."""

    cluster: bytes
    epoch: Int
    map: bytes = b""
    token: str = ""
    """In the answer to a beat: what the node shall use from now on; empty: what it has."""


class PieceTokens(msgspec.Struct):
    """``GET /v1/cluster/tokens``: for the nodes that keep chunks alone, what gives whoever asked the right to what they
    have. Each token is good at one node, so that nobody learns from a request what others would do at a third."""

    tokens: dict[bytes, str]
    """By the node's id."""
    seconds: float
    """For which they are valid."""


class NodeStatus(msgspec.Struct):
    """A node as ``GET /v1/nodes`` shows it."""

    member: Member
    """As it last said; with the weight of the map."""
    state: str
    """``up``, ``draining``, ``down``, ``removed``: :class:`nodeserver.placement.map.State`."""
    last_seen_ns: Int


class Nodes(msgspec.Struct):
    """``GET /v1/nodes``."""

    epoch: Int
    nodes: list[NodeStatus]


class NodeChange(msgspec.Struct, omit_defaults=True):
    """Body of ``POST /v1/nodes/{id}`` (answer: ``NodeStatus``) and ``…/preview`` (``MovePreview``)."""

    state: str | None = None
    """``up`` (ends draining), ``draining`` or ``removed``."""
    weight: float | None = None


class Flow(msgspec.Struct, array_like=True):
    """What would move from a node to another; from nobody (empty): made from the pieces that others keep."""

    source: bytes
    target: bytes
    pieces: Int
    size: Int
    """Bytes."""


class MovePreview(msgspec.Struct):
    """What a change of the map would move."""

    chunks: Int
    """That were looked at."""
    share: float
    """Of all chunks: below 1 only some were looked at, and the figures are scaled up from them."""
    moved: Int
    pieces: Int
    size: Int
    """Bytes that move."""
    missing: Int
    """Pieces for which there would be no node: chunks that stay below their redundancy."""
    flows: list[Flow]
    seconds: float
    """At the present throttle of the workers, 0 when there is none."""
    lost: Int = 0
    """Chunks that nobody could read any more: no node that stays has enough of their pieces."""


class ClusterStatus(msgspec.Struct):
    """``GET /v1/status``: how the cluster is."""

    healthy: bool
    problems: list[str]
    """What is wrong, for people; empty when healthy."""
    nodes: Int
    up: Int
    below: Int
    """Chunks with fewer pieces than their bucket wants, as far as is known."""
    lost: Int
    """Chunks of which fewer pieces can be reached than are needed."""
    queued: Int
    """Repairs that wait."""
    seconds: float
    """Until repairs under way are through, estimated; 0 when none are."""
    surveyed_ns: Int
    """When all pieces were last looked at; 0: not since the server started."""


class Holder(msgspec.Struct, array_like=True):
    """A node that has a piece of a chunk."""

    node: bytes
    held: Held


class ChunkWhere(msgspec.Struct):
    """Where a chunk is."""

    id: ChunkId
    scheme: str
    """What it should have: ``replicate:N:W`` or ``erasure:k+m``."""
    home: list[bytes]
    """The nodes that should have a piece."""
    holders: list[Holder]
    silent: list[bytes] = []
    """Nodes that did not answer, and may have pieces."""
    have: Int = 0
    """Pieces of its scheme that there are."""
    wanted: Int = 0
    """Pieces of its scheme that there should be."""


class Where(msgspec.Struct):
    """``POST /v1/buckets/{bucket}/chunks/where`` (body: ``ChunksAsked``). ``POST …/chunks/report`` (same body, 204)
    queues the repair of chunks of which somebody met a bad or missing piece."""

    chunks: list[ChunkWhere]
