"""``/v1/workers``: what goes on behind the requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import MAX_SEQ, answer, integer_parameter
from nodeserver.http.services import identity, node_services
from nodeserver.protocol.wire import Workers
from nodeserver.workers.registry import Worker


async def workers(request: Request) -> Response:
    identity(request)
    return answer(request, Workers(node_services(request).workers.statuses()))


async def run(request: Request) -> Response:
    return answer(request, await _worker(request).run_now())


async def pause(request: Request) -> Response:
    return answer(request, _worker(request).pause())


async def resume(request: Request) -> Response:
    return answer(request, _worker(request).resume())


async def throttle(request: Request) -> Response:
    return answer(request, _worker(request).throttle(integer_parameter(request, "rate", 0, 0, MAX_SEQ)))


def _worker(request: Request) -> Worker:
    identity(request, "admin")
    return node_services(request).workers[request.path_params["name"]]


ROUTES = [
    Route("/v1/workers", workers),
    Route("/v1/workers/{name}/run", run, methods=["POST"]),
    Route("/v1/workers/{name}/pause", pause, methods=["POST"]),
    Route("/v1/workers/{name}/resume", resume, methods=["POST"]),
    Route("/v1/workers/{name}/throttle", throttle, methods=["POST"]),
]
