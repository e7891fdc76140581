"""Non-blocking sockets under any event loop that anyio runs on."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]
"""A peer that vanished without a word is noticed within 25 seconds, by waiting requests too."""


async def open_socket(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket, to the first of the host's addresses that accepts. Raises OSError."""
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await _addresses(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await _connect(sock, address)
            for option in _KEEP_ALIVE:
                sock.setsockopt(*option)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def start_tls(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """The TLS client side over a connected socket, which it takes over. Raises OSError (ssl.SSLError)."""
    try:
        tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        await nonblocking(tls, tls.do_handshake, anyio.wait_readable)
    except BaseException:
        tls.close()
        raise
    return tls


async def nonblocking(
    sock: socket.socket, operation: Callable[[], T], wait: Callable[[socket.socket], Awaitable[None]]
) -> T:
    """The result of ``operation`` on ``sock``, tried again after ``wait`` until it does not block."""
    while True:
        try:
            return operation()
        except BlockingIOError:
            await wait(sock)
        except ssl.SSLWantReadError:
            await anyio.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await anyio.wait_writable(sock)


def shut_down(sock: socket.socket) -> None:
    """End both directions, waking whoever waits in a system call on it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(
            sock, socket.SHUT_RDWR
        )  # not SSLSocket's: it would take the TLS state from under a thread


async def _addresses(host: str, port: int) -> Sequence[tuple[int, int, int, str, tuple[Any, ...]]]:
    try:
        # a literal address needs no thread to resolve it
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _connect(sock: socket.socket, address: tuple[Any, ...]) -> None:
    try:
        sock.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code)) from None
