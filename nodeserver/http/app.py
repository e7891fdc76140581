"""The application: all routes inside the envelope."""

from __future__ import annotations

from starlette.routing import Router
from starlette.types import ASGIApp

from nodeserver.http import buckets, chunks, commits, files, history, node, upkeep, workers
from nodeserver.http.problems import Envelope
from nodeserver.http.services import Services


def build(services: Services) -> ASGIApp:
    """The ASGI application of a server."""
    routes = [
        *node.ROUTES,
        *commits.ROUTES,
        *chunks.ROUTES,
        *files.ROUTES,
        *history.ROUTES,
        *buckets.ROUTES,
        *upkeep.ROUTES,
        *workers.ROUTES,
    ]
    return Envelope(Router(routes, redirect_slashes=False), services)
