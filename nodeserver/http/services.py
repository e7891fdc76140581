"""What the routes work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

from starlette.requests import HTTPConnection

from nodeserver.access.tokens import Deed, Identity, Keys
from nodeserver.chunks import ChunkStore
from nodeserver.chunks.engine import Space
from nodeserver.chunks.store import DiskStore
from nodeserver.metadata.store import Metadata
from nodeserver.workers.healer import Healer
from nodeserver.workers.membership import Membership
from nodeserver.workers.registry import Workers
from nodeserver.workers.retention import Retention


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeServices:
    """The parts of every running server."""

    node: bytes
    """The 16-byte id of the data directory."""
    keys: Keys
    membership: Membership
    workers: Workers
    pieces: DiskStore | None
    """What this node keeps of chunks; None when another store keeps them."""
    space: Callable[[], Space]
    """The room there is, on all nodes as far as this one knows them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services(NodeServices):
    """The parts of a server with metadata."""

    metadata: Metadata
    chunks: ChunkStore
    """All chunks, wherever they are."""
    retention: Retention
    healer: Healer | None
    """None when another store keeps the chunks."""


def node_services(request: HTTPConnection) -> NodeServices:
    """The server's parts, for the handler of a request that any server answers."""
    return cast(NodeServices, request.app)


def services(request: HTTPConnection) -> Services:
    """The server's parts, for the handler of a request that takes metadata."""
    return cast(Services, request.app)


def identity(request: HTTPConnection, deed: Deed = "read") -> Identity:
    """Who asks. Raises ``Forbidden`` unless they may do ``deed``: the first line of each route says what it is."""
    who = cast(Identity, request.scope["identity"])
    who.require(deed)
    return who
