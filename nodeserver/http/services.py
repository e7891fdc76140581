"""What the routes work with."""

from __future__ import annotations

import dataclasses
from typing import cast

from starlette.requests import HTTPConnection

from nodeserver.access.tokens import Identity, Keys, Right
from nodeserver.chunks import ChunkStore
from nodeserver.metadata.store import Metadata
from nodeserver.workers.registry import Workers
from nodeserver.workers.retention import Retention


@dataclasses.dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    node: bytes
    """The 16-byte id of the data directory."""
    metadata: Metadata
    chunks: ChunkStore
    keys: Keys
    retention: Retention
    workers: Workers


def services(request: HTTPConnection) -> Services:
    """The server's parts, for the handler of a request."""
    return cast(Services, request.app)


def identity(request: HTTPConnection, right: Right = "read") -> Identity:
    """Who asks. Raises ``Forbidden`` unless they have ``right``."""
    who = cast(Identity, request.scope["identity"])
    who.require(right)
    return who
