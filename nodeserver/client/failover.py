"""Several servers that can answer the same: the one that did last is asked, another when it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import httpx
import msgspec

from nodeserver.client.breaker import Breaker
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import ClientError, DeadlineExceeded, Refused, Unreachable
from nodeserver.client.maps import told
from nodeserver.client.node import Node, Token, checked
from nodeserver.client.retry import retried
from nodeserver.protocol.cluster import METADATA, ClusterAnswer
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MSGPACK

TRY = 4.0
"""Seconds that a server gets at most while there is another to ask."""

T = TypeVar("T")


class _Own:
    """The token of the servers, for each request."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def __call__(self) -> str:
        return self._servers.token

    def refused(self) -> None:
        """There is no other."""


class Servers:
    """As one :class:`~nodeserver.client.node.Node`. All its calls can be repeated without harm, at any server.

    The first URL stays a candidate whatever is learnt: it is the one that somebody typed. A node there that keeps
    chunks alone is asked which servers have metadata. Raises as ``Node``, and ValueError for a token that cannot be
    sent.
    """

    def __init__(self, url: str, token: str, transport: httpx.AsyncBaseTransport) -> None:
        self.token = checked(token)
        """What is sent to the servers: those with metadata, which somebody typed or the map names."""
        self._transport = transport
        self._nodes = [self.beside(url)]
        self._current = 0
        self._gone = 0
        self.breaker = Breaker()

    @property
    def url(self) -> httpx.URL:
        """The server's that is asked now."""
        return self._nodes[self._current].url

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self._gone + sum(node.requests for node in self._nodes)

    def beside(self, url: str, token: Token | None = None) -> Node:
        """Another node, with a token of its own or the same, by itself. Raises as ``Node``."""
        return Node(url, token or _Own(self), self._transport)

    def follow(self, urls: Sequence[str]) -> None:
        """Ask these servers too, and no others but the first."""
        first, *others = self._nodes
        known = {str(node.url).rstrip("/"): node for node in others}
        current = self._nodes[self._current]
        wanted = dict.fromkeys(url.rstrip("/") for url in urls if url.rstrip("/") != str(first.url).rstrip("/"))
        self._gone += sum(node.requests for url, node in known.items() if url not in wanted)
        self._nodes = [first, *(known.get(url) or self.beside(url) for url in wanted)]
        self._current = self._nodes.index(current) if current in self._nodes else 0

    async def call(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        deadline: float,
        body: Buffer | None = None,
        once: bool = False,
    ) -> T:
        """As :meth:`Node.call`."""

        def decode(data: Buffer) -> T:
            return msgspec.msgpack.decode(data, type=answer)

        return await self.send(method, path, decode, deadline=deadline, body=body, once=once)

    async def send(
        self,
        method: str,
        path: str,
        decode: Callable[[Buffer], T],
        *,
        deadline: float,
        body: Buffer | None = None,
        kind: str = MSGPACK,
        accept: str = MSGPACK,
        once: bool = False,
    ) -> T:
        """As :meth:`Node.send`."""

        async def request() -> T:
            node = self._nodes[self._current]
            try:
                attempt = node.request(method, path, decode, body=body, kind=kind, accept=accept)
                return await (attempt() if once or len(self._nodes) == 1 else _limited(attempt, min(TRY, deadline / 2)))
            except Refused as refusal:
                if refusal.code is Code.NO_METADATA:
                    await self._learn(node)
                    self._next(node)
                    raise Unreachable(f"{node.url} keeps no metadata") from refusal
                if refusal.transient:
                    self._next(node)
                raise
            except ClientError as error:
                if error.transient:
                    self._next(node)
                raise

        return await retried(request, self.breaker, deadline, once=once)

    async def _learn(self, node: Node) -> None:
        """Ask a node that keeps chunks alone for the servers with metadata, unless they are known."""
        if len(self._nodes) == 1:
            found = told(await node.request("GET", "cluster", _answered)())
            if found is not None:
                self.follow([one.url for one in found.serving(METADATA)])

    def _next(self, failed: Node) -> None:
        """Ask another server from now on, unless somebody has turned to another already."""
        if self._nodes[self._current] is failed:
            self._current = (self._current + 1) % len(self._nodes)


def _answered(data: Buffer) -> ClusterAnswer:
    return msgspec.msgpack.decode(data, type=ClusterAnswer)


async def _limited(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    with anyio.move_on_after(seconds):
        return await attempt()
    raise DeadlineExceeded(f"no answer within {seconds:g} s")
