"""The HTTP/1.1 transport below the client: small messages on the event loop, bodies on threads.

A hop to a thread costs more than a whole metadata exchange, and copying megabytes on the event loop
keeps everything else from running; so one connection is used both ways. Its socket belongs to
the loop, which waits for readiness, except while ``connection.BULK`` bytes or more are to be moved: then a
worker thread has it, in blocking mode, and moves them in a few system calls straight from and
into the caller's buffers. A thread is held only while bytes move, never while a server thinks.

Cancelling a request ends its connection: at once on the loop, and by shutting the socket down
under a thread, which ends the thread's system call. Deadlines are the caller's cancel scopes.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import anyio
import httpx

from nodeserver.client.connection import Buffer, Connection
from nodeserver.client.errors import reason
from nodeserver.client.sockets import open_socket, start_tls

Origin = tuple[str, bytes, int | None]


class Body(httpx.AsyncByteStream):
    """A body that is one buffer: the transport takes it and hands it out without a copy."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield bytes(self.buffer)


class Transport(httpx.AsyncBaseTransport):
    """Sends each request once, on a kept connection where there is one.

    ``threads`` move bodies at a time, ``idle`` connections are kept for at most ``keep`` seconds.
    Answers arrive whole, their stream is a :class:`Body`. Not for use by several event loops.
    """

    def __init__(
        self,
        *,
        threads: int = 8,
        idle: int = 8,
        keep: float = 30.0,
        connect_timeout: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._max_idle = idle
        self._keep = keep
        self._connect_timeout = connect_timeout
        self._ssl_context = ssl_context
        self._idle: dict[Origin, list[Connection]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer to ``request``. Raises httpx.TransportError."""
        stream = request.stream
        body = stream.buffer if isinstance(stream, Body) else await request.aread()
        origin = request.url.scheme, request.url.raw_host, request.url.port
        connection = self._kept(origin) or await self._connect(request.url)
        try:
            head, answer = await connection.exchange(request, body)
        except BaseException:
            connection.abort()
            self._drop(origin)  # whatever broke or stalled this one may have done so to the others
            raise
        if head.keep_alive and not self._closed:
            self._put_back(origin, connection)
        else:
            connection.close()
        return httpx.Response(head.status, headers=head.headers, stream=Body(answer), request=request)

    async def aclose(self) -> None:
        """Close the kept connections; those in use end with their requests."""
        self._closed = True
        for origin in list(self._idle):
            self._drop(origin)

    # connections

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.usable(self._keep):
                return connection
            connection.close()
        return None

    def _put_back(self, origin: Origin, connection: Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        if len(idle) == self._max_idle:
            idle.pop(0).close()
        idle.append(connection)

    def _drop(self, origin: Origin) -> None:
        for connection in self._idle.pop(origin, []):
            connection.close()

    async def _connect(self, url: httpx.URL) -> Connection:
        if url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"{url.scheme}: is not a protocol of a node server")
        host, port = url.raw_host.decode("ascii").strip("[]"), url.port or (443 if url.scheme == "https" else 80)
        try:
            with anyio.fail_after(self._connect_timeout):
                sock = await open_socket(host, port)
                if url.scheme == "https":
                    self._ssl_context = self._ssl_context or ssl.create_default_context()
                    sock = await start_tls(sock, self._ssl_context, host)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"{host}:{port} did not accept a connection in time") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"cannot connect to {host}:{port}: {reason(error)}") from error
        return Connection(sock, self._limiter)
