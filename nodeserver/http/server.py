"""A node server as a process: sockets, signals, and the order of starting and stopping."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server
from starlette.types import ASGIApp, Receive, Scope, Send

from nodeserver.http.app import build
from nodeserver.http.guard import Address, Guard, canonical
from nodeserver.http.limits import Limits, connections, raise_descriptors
from nodeserver.http.services import NodeServices, Services

BACKLOG = 1024
BUFFER = 2 << 20
"""Bytes a connection may buffer: with granian's default of 400 KiB an upload of chunks takes twice as long."""
IDLE = 35.0
"""Seconds that a connection may be without a whole head of a request: longer than this client keeps one."""
UNREAD = 60.0
"""Seconds that a client may leave an answer unread, or vanish."""
GC_THRESHOLD = 100_000
"""Objects that come before garbage is looked for; a page of a listing is tens of thousands."""
GRACE = 30.0
"""Seconds that requests in flight get to finish when the server stops."""

INHERITED = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(UNREAD / 2)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(UNREAD / 6)),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD * 1000)),
]
"""Of a listening socket, for the connections that come out of it."""

log = logging.getLogger(__name__)


class _Embedded(Server):
    """granian in this process, on a socket that is bound already."""

    def __init__(self, app: ASGIApp, listener: socket.socket, clients: int) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=int(IDLE * 1000), max_buffer_size=BUFFER),
            websockets=False,
            backlog=BACKLOG,
            backpressure=clients,
            log_enabled=False,
        )
        self._listener = listener

    _shd: Any

    def _init_shared_socket(self) -> None:
        holder: Any = SocketHolder  # its stub lacks the arguments
        self._shd = holder(self._listener.detach(), False, BACKLOG)  # granian closes it

    def shut(self) -> None:
        """Accept nothing more; ``serve`` returns when the requests in flight are answered."""
        self.interrupt_signal = True
        self.main_loop_interrupt.set()


class _InFlight:
    """Around an application: the requests it is at work on, to end those that outlast the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: dict[asyncio.Task[None], Address] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = canonical(scope.get("client") or ("", 0))
        try:
            await self._app(scope, receive, send)
        finally:
            del self._tasks[task]

    def clients(self) -> Collection[Address]:
        """Who is waited for."""
        return self._tasks.values()

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks one. Raises ``OSError``.

    Without SO_REUSEPORT, so that two servers cannot share a port by accident.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, option, value in INHERITED:
            listener.setsockopt(level, option, value)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


async def serve(listener: socket.socket, services: NodeServices, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are finished, waiting long polls answered at once.

    Takes ``listener`` over. Calls ``ready`` with the URL once requests are answered. Leaves stores and database open.
    """
    address, url = listener.getsockname()[:2], url_of(listener)
    clients = connections(raise_descriptors())
    requests = _InFlight(build(services, Limits(clients)))
    guard = Guard(address[1], clients, requests.clients)
    server = _Embedded(requests, listener, clients)
    async with services.membership.running(), services.workers.running(), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve())
        guarding = tasks.create_task(guard.run())
        await _first_answer(*address)
        stop = _on_signal()
        gc.freeze()  # what is there now stays; scanning it again and again doubles the time of a large listing
        gc.set_threshold(GC_THRESHOLD)
        ready(url)
        notify_systemd("READY=1")
        await asyncio.wait([serving, stop], return_when=asyncio.FIRST_COMPLETED)
        notify_systemd("STOPPING=1")
        if isinstance(services, Services):
            services.metadata.release()
        services.workers.stop()
        guarding.cancel()
        server.shut()
        _, late = await asyncio.wait([serving], timeout=GRACE)
        if late:
            log.warning("requests that ran longer than %g s were cut off", GRACE)
            requests.cancel()


def notify_systemd(state: str) -> None:
    """Tell systemd what sd_notify(3) would; nothing when it is not there."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd was not told %s: %s", state, error)


def _on_signal() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def caught() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught)
    return stop


async def _first_answer(host: str, port: int) -> None:
    """Ask the server for its health, so that who is told it is ready finds it so."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "localhost"
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = await reader.readline()
        if b" 200 " not in status:
            raise OSError(f"the server answered {status!r} to itself")
    finally:
        writer.close()
