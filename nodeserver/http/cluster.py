"""``/v1/cluster`` and ``/v1/nodes``: the map, who joins, who is there."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import ASKED, MAX_SEQ, answer, hex_id, integer_parameter, read
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, node_services, services
from nodeserver.metadata import members, repairs
from nodeserver.placement.map import NODE_ID, ClusterMap, State
from nodeserver.protocol.cluster import METADATA, Beat, ClusterAnswer, Join, Joined, NodeChange, Nodes
from nodeserver.protocol.errors import Code

CHANGES = {State.UP.value, State.DRAINING.value, State.REMOVED.value}
"""What a person can make of a node; that one is down is found out."""


async def cluster(request: Request) -> Response:
    identity(request)
    epoch = integer_parameter(request, "epoch", 0, 0, MAX_SEQ)
    return answer(request, _answer(request, node_services(request).membership.map, epoch))


async def join(request: Request) -> Response:
    identity(request, "join")
    here, member = services(request), (await read(request, Join, ASKED)).member
    if len(member.id) != NODE_ID or METADATA in member.roles:
        raise Refused(Code.MALFORMED, "a server with metadata joins by the database, not by a token")
    found = await here.metadata.write_across(members.heard, member, time.time_ns())
    here.membership.follow(found)
    keys = here.keys
    token = keys.mint(f"node {member.id.hex()}", "admin")
    return answer(request, Joined(bytes.fromhex(keys.audience), keys.audience, keys.public, token, found.pack()))


async def beat(request: Request) -> Response:
    identity(request, "admin")
    here, said = services(request), await read(request, Beat)
    found = await here.metadata.write_across(members.heard, said.member, time.time_ns())
    here.membership.follow(found)
    if said.damaged:
        await here.metadata.write_across(repairs.note_by_id, said.damaged, time.time_ns())
        here.workers["repair"].wake()
    return answer(request, _answer(request, found, said.epoch))


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


def _answer(request: Request, found: ClusterMap, known: int) -> ClusterAnswer:
    packed = found.pack() if found.epoch != known else b""
    return ClusterAnswer(bytes.fromhex(node_services(request).keys.audience), found.epoch, packed)


MAP_ROUTES = [Route("/v1/cluster", cluster)]
"""Of every server."""
ROUTES = [
    *MAP_ROUTES,
    Route("/v1/cluster/join", join, methods=["POST"]),
    Route("/v1/cluster/beat", beat, methods=["POST"]),
    Route("/v1/nodes", nodes),
    Route("/v1/nodes/{node}", change, methods=["POST"]),
]
