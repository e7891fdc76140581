"""Tokens for the pieces of nodes that keep chunks alone: each is good at one node, for a while."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from nodeserver.client.errors import ClientError, Refused, Unreachable
from nodeserver.client.node import Token
from nodeserver.placement.map import NodeId
from nodeserver.protocol.cluster import PieceTokens
from nodeserver.protocol.errors import Code

AGAIN = 5.0
"""Seconds until a server is asked again that did not answer, or had no token for a node."""
OLD = 300.0
"""Seconds for which a server is taken for one of an earlier release, which gives no such tokens."""


class Known(msgspec.Struct):
    """The tokens that a server gave."""

    tokens: dict[NodeId, str]
    renew: float
    """Seconds since the epoch: from when on others are asked for."""
    expires: float


class Capabilities:
    """Asks with ``ask`` for tokens and has each used until half its time is over; without an answer, as long as it
    is valid. ``keep`` is called with what is known then, packed; ``packed`` is what it was called with once.

    ``own`` is sent while the server is of an earlier release: nodes then know no other tokens.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[PieceTokens]],
        own: Callable[[], str],
        packed: bytes | None = None,
        keep: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._ask = ask
        self._own = own
        self._keep = keep
        self._asking = anyio.Lock()
        self._next = 0.0
        self._old_until = 0.0
        self._failure: ClientError | None = None
        try:
            self._known = msgspec.msgpack.decode(packed, type=Known) if packed else Known({}, 0.0, 0.0)
        except msgspec.MsgspecError:
            self._known = Known({}, 0.0, 0.0)

    def of(self, node: NodeId) -> Token:
        """What gives the token for a node. Raises ClientError when there is none."""

        async def token() -> str:
            if self._stale(node):
                async with self._asking:
                    if self._stale(node):
                        await self._learn()
            if time.monotonic() < self._old_until:
                return self._own()
            if node in self._known.tokens and time.time() < self._known.expires:
                return self._known.tokens[node]
            raise Unreachable(f"there is no token for node {node.hex()}") from self._failure

        return token

    def _stale(self, node: NodeId) -> bool:
        fresh = node in self._known.tokens and time.time() < self._known.renew
        return not fresh and time.monotonic() >= max(self._next, self._old_until)

    async def _learn(self) -> None:
        self._failure = None
        self._next = time.monotonic() + AGAIN
        try:
            told = await self._ask()
        except Refused as refusal:
            if refusal.code is Code.NO_ROUTE:
                self._old_until = time.monotonic() + OLD
            self._failure = refusal
        except ClientError as error:
            self._failure = error
        else:
            now = time.time()
            self._known = Known(told.tokens, now + told.seconds / 2, now + told.seconds)
            self._keep(msgspec.msgpack.encode(self._known))
