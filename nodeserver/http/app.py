"""The applications: all routes inside the envelope."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from nodeserver.http import (
    buckets,
    chunks,
    cluster,
    commits,
    files,
    history,
    node,
    pieces,
    status,
    upkeep,
    workers,
)
from nodeserver.http.limits import Limits, connections, raise_descriptors
from nodeserver.http.problems import Envelope, Refused
from nodeserver.http.services import NodeServices, Services
from nodeserver.protocol.errors import Code


async def _no_metadata(_request: Request) -> Response:
    raise Refused(Code.NO_METADATA, "it has no metadata; /v1/cluster tells which nodes have")


def build(services: NodeServices, limits: Limits | None = None) -> ASGIApp:
    """The ASGI application of a server."""
    limits = limits or Limits(connections(raise_descriptors()))
    routes = [*node.ROUTES, *pieces.ROUTES, *workers.ROUTES]
    if not isinstance(services, Services):
        rest = Route("/v1/{path:path}", _no_metadata, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
        return Envelope(Router([*routes, *cluster.MAP_ROUTES, rest], redirect_slashes=False), services, limits)
    routes += [
        *cluster.ROUTES,
        *status.ROUTES,
        *commits.ROUTES,
        *chunks.ROUTES,
        *files.ROUTES,
        *history.ROUTES,
        *buckets.ROUTES,
        *upkeep.ROUTES,
    ]
    return Envelope(Router(routes, redirect_slashes=False), services, limits)
