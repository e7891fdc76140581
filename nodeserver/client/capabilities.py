"""Tokens for the pieces of nodes that keep chunks alone: each is good at one node, for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import anyio
import msgspec

from nodeserver.client.errors import ClientError, Refused, Unreachable
from nodeserver.client.node import Token
from nodeserver.placement.map import NodeId
from nodeserver.protocol.cluster import PieceTokens
from nodeserver.protocol.errors import Code

AGAIN = 5.0
"""Seconds until a server is asked again that did not answer, or had no token for a node."""
SOON = 3.0
"""Seconds that an answer may take while there are tokens that can be used."""
LATER = 300.0
"""Seconds until a server is asked again that did not answer then."""
OLD = 300.0
"""Seconds for which a server is taken for one of an earlier release, which gives no such tokens."""


class Ask(Protocol):
    """The question for tokens, with seconds for the answer, None for the usual. Raises ClientError."""

    async def __call__(self, *, deadline: float | None = None) -> PieceTokens: ...


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
        ask: Ask,
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
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._known = Known({}, 0.0, 0.0)

    def of(self, node: NodeId) -> Token:
        """What gives the token for a node. Raises ClientError when there is none."""
        return _Of(self, node)

    async def token(self, node: NodeId) -> str:
        """The token for a node now. Raises ClientError when there is none."""
        if not self._has(node):
            async with self._asking:
                if not self._has(node) and time.monotonic() >= self._next:
                    await self._learn(None, AGAIN)
        elif time.time() >= self._known.renew and time.monotonic() >= max(self._next, self._old_until):
            await self._learn(SOON, LATER)  # those who come meanwhile use what there is
        if time.monotonic() < self._old_until:
            return self._own()
        if node in self._known.tokens and time.time() < self._known.expires:
            return self._known.tokens[node]
        raise Unreachable(f"there is no token for node {node.hex()}") from self._failure

    def refused(self, node: NodeId) -> None:
        """The node did not take its token: ask for another."""
        self._known.tokens.pop(node, None)

    def _has(self, node: NodeId) -> bool:
        known = node in self._known.tokens and time.time() < self._known.expires
        return known or time.monotonic() < self._old_until

    async def _learn(self, seconds: float | None, again: float) -> None:
        self._failure = None
        self._next = time.monotonic() + again
        try:
            told = await self._ask(deadline=seconds)
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


class _Of:
    """The token for one node."""

    def __init__(self, capabilities: Capabilities, node: NodeId) -> None:
        self._capabilities = capabilities
        self._node = node

    async def __call__(self) -> str:
        return await self._capabilities.token(self._node)

    def refused(self) -> None:
        self._capabilities.refused(self._node)
