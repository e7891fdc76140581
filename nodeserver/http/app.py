"""The application: all routes inside the envelope."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from nodeserver.http import buckets, chunks, commits, files, node
from nodeserver.http.problems import Envelope, reraise
from nodeserver.http.services import Services


def build(services: Services) -> ASGIApp:
    """The ASGI application of a server."""
    app = Starlette(
        routes=[*node.ROUTES, *commits.ROUTES, *chunks.ROUTES, *files.ROUTES, *buckets.ROUTES],
        middleware=[Middleware(Envelope, keys=services.keys)],
        exception_handlers={HTTPException: reraise},
    )
    app.router.redirect_slashes = False
    app.state.services = services
    return app
