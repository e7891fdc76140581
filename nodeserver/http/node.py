"""``/v1/health`` and ``/v1/server``."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nodeserver import __version__
from nodeserver.http.codec import answer
from nodeserver.http.services import identity, node_services
from nodeserver.protocol.wire import PROTOCOL, Server


async def health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def server(request: Request) -> Response:
    identity(request)
    here = node_services(request)
    space = here.space()
    roles = next((list(node.roles) for node in here.membership.map.nodes if node.id == here.node), [])
    answered = Server(
        here.node,
        __version__,
        PROTOCOL,
        time.time_ns(),
        space.capacity_bytes,
        space.free_bytes,
        bytes.fromhex(here.keys.audience),
        here.membership.map.epoch,
        roles,
    )
    return answer(request, answered)


ROUTES = [Route("/v1/health", health), Route("/v1/server", server)]
