"""``/v1/cluster`` and ``/v1/nodes``: the map, who joins, who is there."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.access.tokens import Forbidden, Identity, Right, node_subject
from nodeserver.http.codec import ASKED, MAX_SEQ, answer, hex_id, integer_parameter, read
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, node_services, services
from nodeserver.metadata import members, repairs
from nodeserver.metadata.checks import check_damaged, check_member
from nodeserver.placement.map import NODE_ID, ClusterMap, State
from nodeserver.protocol.cluster import (
    CHUNKS,
    METADATA,
    Beat,
    ClusterAnswer,
    Join,
    Joined,
    Member,
    NodeChange,
    Nodes,
    PieceTokens,
)
from nodeserver.protocol.errors import Code

CHANGES = {State.UP.value, State.DRAINING.value, State.REMOVED.value}
"""What a person can make of a node; that one is down is found out."""


NODE_TOKEN = 30 * 86_400.0
"""Seconds that a node's token is valid."""
NODE_TOKEN_RENEWED = 86_400.0
"""Seconds after which it gets another."""
PIECE_TOKEN = 86_400.0
"""Seconds that a token for a node's pieces is valid."""


async def cluster(request: Request) -> Response:
    identity(request, "map")
    epoch = integer_parameter(request, "epoch", 0, 0, MAX_SEQ)
    return answer(request, _answer(request, node_services(request).membership.map, epoch))


async def join(request: Request) -> Response:
    who, here = identity(request, "join"), services(request)
    member = (await read(request, Join, ASKED)).member
    _check_member(who, member, here.membership.map)
    found = await here.metadata.write_across(members.heard, member, time.time_ns(), joining=who.member is None)
    here.membership.follow(found)
    keys = here.keys
    token = keys.mint(node_subject(member.id), "node", NODE_TOKEN)
    return answer(request, Joined(bytes.fromhex(keys.audience), keys.audience, keys.public, token, found.pack()))


async def beat(request: Request) -> Response:
    who, here = identity(request, "beat"), services(request)
    said = await read(request, Beat)
    _check_member(who, said.member, here.membership.map)
    check_damaged(said.damaged)
    found = await here.metadata.write_across(members.heard, said.member, time.time_ns())
    here.membership.follow(found)
    if said.damaged:
        await here.metadata.write_across(repairs.note_by_id, said.damaged, time.time_ns())
        here.workers["repair"].wake()
    answered = _answer(request, found, said.epoch)
    if who.member and (who.expires is None or who.expires < time.time() + NODE_TOKEN - NODE_TOKEN_RENEWED):
        answered.token = here.keys.mint(who.subject, "node", NODE_TOKEN)
    return answer(request, answered)


async def tokens(request: Request) -> Response:
    who, here = identity(request, "read"), services(request)
    seconds = PIECE_TOKEN if who.expires is None else min(PIECE_TOKEN, who.expires - time.time())
    right: Right = "keep" if who.may("keep") else "fetch"
    nodes = [node for node in here.membership.map.serving(CHUNKS) if METADATA not in node.roles]
    minted = {node.id: here.keys.mint(who.subject, right, seconds, only=node.id) for node in nodes}
    return answer(request, PieceTokens(minted, seconds))


async def nodes(request: Request) -> Response:
    identity(request)
    epoch, found = await services(request).metadata.read(members.statuses)
    return answer(request, Nodes(epoch, found))


async def change(request: Request) -> Response:
    identity(request, "admin")
    here, node, wanted = services(request), hex_id(request, "node", NODE_ID), await read(request, NodeChange)
    check_change(wanted)
    here.membership.follow(await here.metadata.write_across(members.change, node, wanted))
    _, found = await here.metadata.read(members.statuses)
    return answer(request, next(status for status in found if status.member.id == node))


def check_change(wanted: NodeChange) -> None:
    """Raises ``Refused`` for what nobody can make of a node."""
    if wanted.state is not None and wanted.state not in CHANGES:
        raise Refused(Code.MALFORMED, f"a node can be made {', '.join(sorted(CHANGES))}")


def _check_member(who: Identity, member: Member, known: ClusterMap) -> None:
    """Raises ``Invalid``, ``Refused`` for what nobody can be, ``Forbidden`` when it is another node that asks."""
    check_member(member)
    if METADATA in member.roles:
        raise Refused(Code.MALFORMED, "a server with metadata joins by the database, not by a token")
    if who.member not in (None, member.id) or member.id in {node.id for node in known.serving(METADATA)}:
        raise Forbidden(f"{who.subject} is not node {member.id.hex()}")


def _answer(request: Request, found: ClusterMap, known: int) -> ClusterAnswer:
    packed = found.pack() if found.epoch != known else b""
    return ClusterAnswer(bytes.fromhex(node_services(request).keys.audience), found.epoch, packed)


MAP_ROUTES = [Route("/v1/cluster", cluster)]
"""Of every server."""
ROUTES = [
    *MAP_ROUTES,
    Route("/v1/cluster/join", join, methods=["POST"]),
    Route("/v1/cluster/beat", beat, methods=["POST"]),
    Route("/v1/cluster/tokens", tokens),
    Route("/v1/nodes", nodes),
    Route("/v1/nodes/{node}", change, methods=["POST"]),
]
