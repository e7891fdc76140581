"""One node server: requests with credentials, retries and the circuit breaker, answers checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import httpx
import msgspec

from nodeserver import __version__
from nodeserver.client.breaker import Breaker
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import BadAnswer, InvalidUrl, Refused, mapped, refusal
from nodeserver.client.retry import retried
from nodeserver.client.transport import Body
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MSGPACK

STORED = "application/octet-stream"
"""The content type of a chunk in its stored form."""

T = TypeVar("T")


class Token(Protocol):
    """What gives the token for a request: it may be another from time to time."""

    async def __call__(self) -> str:
        """The token now. Raises ClientError."""

    def refused(self) -> None:
        """The server did not take it."""


def checked(token: str) -> str:
    """A token that can be sent. Raises ValueError for any other."""
    if not token or not token.isascii() or not token.isprintable() or token != token.strip():
        raise ValueError("the token has characters that no token has")
    return token


class Node:
    """The server at ``url``. Raises InvalidUrl."""

    def __init__(self, url: str, token: Token, transport: httpx.AsyncBaseTransport) -> None:
        self.breaker = Breaker()
        self.requests = 0
        """How many were sent."""
        self.url = base(url)
        self._prefix = self.url.raw_path.rstrip(b"/") + b"/v1/"
        self._transport = transport
        self._headers = [
            (b"Host", self.url.netloc),
            (b"User-Agent", f"mountfs/{__version__}".encode()),
        ]
        self._token = token

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
        """The answer to a request with a MessagePack body, decoded. Raises ClientError."""

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
        """What ``decode`` makes of the body of the answer to a request below ``/v1/``.

        ``deadline`` is the time in seconds for everything, retries included; there are none with ``once``.
        Raises ClientError.
        """
        request = self.request(method, path, decode, body=body, kind=kind, accept=accept)
        return await retried(request, self.breaker, deadline, once=once)

    def request(
        self,
        method: str,
        path: str,
        decode: Callable[[Buffer], T],
        *,
        body: Buffer | None = None,
        kind: str = MSGPACK,
        accept: str = MSGPACK,
    ) -> Callable[[], Awaitable[T]]:
        """What makes a request below ``/v1/`` once, whatever the circuit breaker says. Raises ClientError."""
        target = {"target": self._prefix + path.encode("ascii")}  # to build a URL of it takes longer than the rest
        headers = [*self._headers, (b"Accept", accept.encode())]
        if body is not None:
            headers += [(b"Content-Type", kind.encode()), (b"Content-Length", b"%d" % len(body))]

        async def once() -> T:
            proof = (b"Authorization", f"Bearer {await self._token()}".encode())
            self.requests += 1
            with mapped():
                message = httpx.Request(
                    method, self.url, headers=[*headers, proof], stream=Body(body or b""), extensions=target
                )
                try:
                    return decode(await self._answer(message, accept))
                except Refused as refusal:
                    if refusal.code is Code.UNAUTHORIZED:
                        self._token.refused()
                    raise

        return once

    async def _answer(self, request: httpx.Request, accept: str) -> Buffer:
        response = await self._transport.handle_async_request(request)
        body = response.stream.buffer if isinstance(response.stream, Body) else await response.aread()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code >= 400:
            raise refusal(response.status_code, kind, body)
        if not 200 <= response.status_code < 300:
            raise BadAnswer(f"{_asked(request)} answered with status {response.status_code}")
        if body and kind != accept:
            raise BadAnswer(f"{_asked(request)} answered with {kind or 'no content type'} instead of {accept}")
        return body


def _asked(request: httpx.Request) -> str:
    return f"{request.method} {request.extensions['target'].decode()} at {request.url}"


def base(url: str) -> httpx.URL:
    """The URL of a node server. Raises InvalidUrl when it cannot be one."""
    with mapped():
        parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidUrl(f"{url!r} is not the URL of a node server: http(s)://HOST[:PORT] is")
    return parsed
