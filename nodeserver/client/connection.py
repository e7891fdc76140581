"""One HTTP/1.1 connection whose bytes are moved by the event loop or by a thread."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx

from nodeserver.client.errors import reason
from nodeserver.client.http1 import (
    END,
    HEAD_MAX,
    INTERIM_MAX,
    Head,
    check_framing,
    parse_head,
    parse_size,
    request_head,
)
from nodeserver.client.sockets import nonblocking, shut_down

BULK = 256 * 1024
"""Bytes from which a thread moves them."""
ANSWER_MAX = 128 * 1024 * 1024
"""Bytes in the body of an answer."""

PEEK = 2048
"""Bytes that hold the whole head of most answers."""

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class Connection:
    """A connected socket, for one request at a time."""

    def __init__(self, sock: socket.socket, limiter: anyio.CapacityLimiter) -> None:
        self._sock = sock
        self._limiter = limiter
        self._scratch = memoryview(bytearray(HEAD_MAX))
        self._unread = memoryview(b"")  # of bytes
        self._used = time.monotonic()
        self._lock = threading.Lock()
        self._on_thread = False
        self._closed = False

    def usable(self, keep: float) -> bool:
        """Whether it was used in the last ``keep`` seconds and nothing has come since, not its end either."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return time.monotonic() - self._used < keep and not poll.poll(0)

    def abort(self) -> None:
        """End the connection in the middle of an exchange, also while a thread works on it."""
        with contextlib.suppress(OSError):
            # a reset: what is still to be sent is dropped, and a server that does not read learns of it too
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._closed = True
            if self._on_thread:
                # ends the thread's system call, and the thread closes: to close here would free the descriptor under it
                shut_down(self._sock)
            else:
                self._sock.close()

    async def exchange(self, request: httpx.Request, body: Buffer) -> tuple[Head, Buffer]:
        """Send ``request`` with ``body``, return the head and the body of its answer.

        Raises httpx.TransportError, after which, as after a cancellation, the connection must be aborted.
        """
        try:
            try:
                await self._send(request_head(request), body)
            except OSError as error:
                return await self._answer_instead(request.method, error)
            return await self._answer(request.method)
        except OSError as error:
            raise httpx.ReadError(reason(error)) from error

    # sending

    async def _send(self, head: bytes, body: Buffer) -> None:
        if len(body) >= BULK:
            await self._in_thread(lambda: self._send_blocking(head, body))
            return
        data = memoryview(head + body)
        while data:
            count = await nonblocking(self._sock, lambda: self._sock.send(data), anyio.wait_writable)  # noqa: B023
            data = data[count:]

    def _send_blocking(self, head: bytes, body: Buffer) -> None:
        self._sock.sendall(head)
        self._sock.sendall(body)

    async def _answer_instead(self, method: str, error: OSError) -> tuple[Head, Buffer]:
        """What the server said before it stopped reading the request."""
        try:
            head, body = await self._answer(method)
        except (OSError, httpx.TransportError):
            raise httpx.WriteError(reason(error)) from error
        return head._replace(keep_alive=False), body

    # receiving

    async def _answer(self, method: str) -> tuple[Head, Buffer]:
        await self._begin()
        for _ in range(INTERIM_MAX):
            head = parse_head(await self._until(END), method)
            if head.status >= 200:
                break
        else:
            raise httpx.RemoteProtocolError(f"{INTERIM_MAX} interim answers and no final one")
        if head.chunked:
            body = await self._chunked()
        elif head.length is None:
            body = await self._rest()
        else:
            body = await self._exactly(head.length)
        self._used = time.monotonic()
        return head._replace(keep_alive=head.keep_alive and not self._unread), body

    async def _begin(self) -> None:
        """Read the first bytes of an answer; when they bring a large body, its head only.

        The body can then be received as one ``bytes``, whose memory nobody clears before.
        """
        if isinstance(self._sock, ssl.SSLSocket):
            return
        peek = functools.partial(self._sock.recv, PEEK, socket.MSG_PEEK)
        seen = await nonblocking(self._sock, peek, anyio.wait_readable)
        head = seen.find(END) + len(END) if len(seen) == PEEK else 0
        self._unread = memoryview(self._sock.recv(head if head >= len(END) else PEEK))

    async def _until(self, mark: bytes) -> bytes:
        """What comes before ``mark``, which is consumed too."""
        data = self._unread.obj
        assert isinstance(data, bytes)
        start = len(data) - len(self._unread)
        if (end := data.find(mark, start)) < 0:
            start, data, end = 0, await self._more(bytes(self._unread), mark), -1
            end = data.index(mark)
        self._unread = memoryview(data)[end + len(mark) :]
        return data[start:end]

    async def _more(self, begun: bytes, mark: bytes) -> bytes:
        """``begun`` and what follows it, at least until ``mark``."""
        data = bytearray(begun)
        looked = 0
        while data.find(mark, looked) < 0:
            if len(data) > HEAD_MAX:
                raise httpx.RemoteProtocolError(f"more than {HEAD_MAX} bytes without an end of line or head")
            looked = max(0, len(data) - len(mark) + 1)
            data += await self._some(self._scratch)
        return bytes(data)

    async def _exactly(self, length: int) -> Buffer:
        _check_size(length)
        if not self._unread and length >= BULK and not isinstance(self._sock, ssl.SSLSocket):
            return await self._in_thread(lambda: self._receive_bytes(length))
        if length <= len(self._unread):
            body, self._unread = self._unread[:length], self._unread[length:]
            return body
        buffer = bytearray(length)
        view = memoryview(buffer)
        view[: len(self._unread)] = self._unread
        view, self._unread = view[len(self._unread) :], self._unread[:0]
        if len(view) >= BULK:
            await self._in_thread(lambda: self._receive_blocking(view))
            return buffer
        while view:
            view = view[len(await self._some(view)) :]
        return buffer

    def _receive_blocking(self, view: memoryview) -> None:
        flags = 0 if isinstance(self._sock, ssl.SSLSocket) else socket.MSG_WAITALL
        while view:
            count = self._sock.recv_into(view, 0, flags)
            if not count:
                raise _broken_off()
            view = view[count:]

    def _receive_bytes(self, length: int) -> Buffer:
        body = self._sock.recv(length, socket.MSG_WAITALL)
        if len(body) == length:
            return body
        whole = bytearray(length)  # a signal or the end cut it short
        whole[: len(body)] = body
        self._receive_blocking(memoryview(whole)[len(body) :])
        return whole

    async def _chunked(self) -> Buffer:
        body = bytearray()
        framing = 0
        while size := parse_size(line := await self._until(b"\r\n")):
            _check_size(len(body) + size)
            framing += len(line) + 4
            check_framing(framing, len(body))
            body += await self._exactly(size)
            if await self._until(b"\r\n"):
                raise httpx.RemoteProtocolError("a chunk of the body is longer than it says")
        while trailer := await self._until(b"\r\n"):
            framing += len(trailer) + 2
            check_framing(framing, len(body))
        return body

    async def _rest(self) -> Buffer:
        """Everything until the connection ends."""
        body = bytearray(self._unread)
        self._unread = self._unread[:0]
        while count := await self._receive(self._scratch):
            body += self._scratch[:count]
            _check_size(len(body))
        return body

    async def _some(self, view: memoryview) -> memoryview:
        """At least one byte, read into the front of ``view``."""
        count = await self._receive(view)
        if not count:
            raise _broken_off()
        return view[:count]

    async def _receive(self, view: memoryview) -> int:
        # A server that is always ahead must not keep the loop, and everybody else's requests, to itself.
        await anyio.lowlevel.checkpoint()
        return await nonblocking(self._sock, lambda: self._sock.recv_into(view), anyio.wait_readable)

    # on a thread

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(self._work, work, abandon_on_cancel=True, limiter=self._limiter)

    def _work(self, work: Callable[[], T]) -> T:
        with self._lock:
            if self._closed:  # cancelled before it began
                raise httpx.CloseError("the connection is closed")
            self._on_thread = True
        try:
            self._sock.setblocking(True)
            result = work()
            self._sock.setblocking(False)
            return result
        finally:
            self._leave_thread()

    def _leave_thread(self) -> None:
        with self._lock:
            self._on_thread = False
            if self._closed:
                self._sock.close()


def _broken_off() -> httpx.ReadError:
    return httpx.ReadError("the server closed the connection in the middle of an answer")


def _check_size(size: int) -> None:
    if size > ANSWER_MAX:
        raise httpx.RemoteProtocolError(f"an answer of {size} bytes is more than any there should be")
