"""A TCP/HTTP proxy that breaks things on demand, between a mount (or client) and a node server.

It runs on threads of the test process; switching it is a method call::

    with FaultProxy(server_url) as proxy:
        mount(proxy.url)                                  # everything passes
        proxy.set("stall")                                # every request hangs from now on
        proxy.set("drop", match=r"POST .*/commits", times=1)  # then passes again
        proxy.set("pass")
        assert proxy.count("GET", r"/chunks/") == 0
        proxy.wait_for("POST", r"/commits$", at_least=2, timeout=5)

As a fixture, after ``from tests.faultproxy import fault_proxy`` in a conftest: ``proxy = fault_proxy(server_url)``;
it is closed at the end of the test. ``proxy.retarget(url)`` follows a server that came back on another port.

Modes (one at a time; ``match`` is a regular expression searched in ``"METHOD /path?query"``, requests
that do not match pass; ``times`` is how many requests it hits before the mode turns to ``pass``):

=============  ======================================================================================
pass           forward
refuse         no connection is accepted (ECONNREFUSED) and those there are are reset; no ``match``
stall          the head of the request is read, its body is not, nothing is ever answered; what hangs is
               closed, never forwarded, when the mode changes
garbage        bytes that are not HTTP, then the connection ends
garbage-body   status 200, the content type asked for, and bytes that mean nothing
error          status ``status`` (500) with a short HTML body, not forwarded
cut            forwarded; the answer's head and half of its body, then the connection ends
flip           forwarded; one bit in the middle of the bodies of successful answers flipped. Hits only
               GET .../chunks/ID and POST .../chunks/read, and of .../pieces/BUCKET/
drop           forwarded and the answer read, then the connection ends without it (a lost answer)
delay          forwarded after ``seconds``
hold           forwarded; the answer is kept until the mode changes
slow           forwarded, both ways at ``bytes_per_second``
=============  ======================================================================================

Requests are counted when their head has been read, whatever becomes of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import pytest

Mode = Literal[
    "pass", "refuse", "stall", "garbage", "garbage-body", "error", "cut", "flip", "drop", "delay", "hold", "slow"
]
_CHUNK_READ = re.compile(
    r"GET \S*/chunks/[0-9a-f]+$|POST \S*/chunks/read$|GET \S*/pieces/\w+/\w+$|POST \S*/pieces/\w+/read$"
)
_HEAD_MAX = 256 * 1024


@dataclasses.dataclass
class Fault:
    """What happens to requests; see the module's docstring."""

    mode: Mode = "pass"
    match: re.Pattern[str] | None = None
    times: int | None = None
    status: int = 500
    seconds: float = 1.0
    bytes_per_second: int = 64 * 1024
    over: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when another mode has taken its place."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """A request that arrived and the mode that met it."""

    method: str
    path: str
    """With the query."""
    mode: Mode


class _Broken(Exception):
    """A connection ended, or the fault asks for its end."""


class FaultProxy:
    """One listening port before one server. Use as a context manager."""

    def __init__(self, server_url: str) -> None:
        self._target = self._address(server_url)
        self._lock = threading.Condition()
        self._fault = Fault()
        self._seen: list[Seen] = []
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._holding = 0
        self._closed = False
        with socket.create_server(("127.0.0.1", 0)) as finder:
            port = finder.getsockname()[1]
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # bound to an explicit port: it stays ours while the socket does not listen
        self._listener.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{port}"
        self._listening = threading.Event()
        self._listen()
        self._acceptor = threading.Thread(target=self._accept, name="faultproxy", daemon=True)
        self._acceptor.start()

    @staticmethod
    def _address(url: str) -> tuple[str, int]:
        parts = urlsplit(url)
        assert parts.hostname is not None
        return parts.hostname, parts.port or 80

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # control

    def set(
        self,
        mode: Mode,
        *,
        match: str | None = None,
        times: int | None = None,
        status: int = 500,
        seconds: float = 1.0,
        bytes_per_second: int = 64 * 1024,
    ) -> None:
        """Switch the mode, for requests whose head arrives from now on; what hangs in ``stall`` is closed."""
        pattern = None if match is None else re.compile(match)
        with self._lock:
            old, self._fault = self._fault, Fault(mode, pattern, times, status, seconds, bytes_per_second)
            old.over.set()
        if mode == "refuse":
            self._listening.clear()
            self._listener.shutdown(socket.SHUT_RDWR)
            self.reset_connections()
        elif old.mode == "refuse":
            self._listen()

    def retarget(self, server_url: str) -> None:
        """Forward what comes over new connections to another server; present connections are reset."""
        self._target = self._address(server_url)
        self.reset_connections()

    def reset_connections(self) -> None:
        """End every connection there is."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    @property
    def requests(self) -> list[Seen]:
        """Every request since the start or the last :meth:`forget`, in order of arrival."""
        with self._lock:
            return list(self._seen)

    def count(self, method: str = "", path: str = "", mode: Mode | None = None) -> int:
        """Requests with this method (all if empty) in whose path the regular expression ``path`` is found."""
        pattern = re.compile(path)
        return sum(
            (not method or seen.method == method)
            and pattern.search(seen.path) is not None
            and (mode is None or seen.mode == mode)
            for seen in self.requests
        )

    def wait_for(
        self, method: str = "", path: str = "", *, at_least: int = 1, timeout: float = 10.0, mode: Mode | None = None
    ) -> None:
        """Block until :meth:`count` is at least so many. Raises TimeoutError after ``timeout`` seconds."""
        with self._lock:
            if not self._lock.wait_for(lambda: self.count(method, path, mode) >= at_least, timeout):
                raise TimeoutError(f"{self.count(method, path, mode)} of {at_least} {method} {path}: {self._seen}")

    def wait_held(self, timeout: float = 10.0) -> None:
        """Block until an answer is held. Raises TimeoutError after ``timeout`` seconds."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._holding > 0, timeout):
                raise TimeoutError("no answer is held")

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Block until no client is connected. Raises TimeoutError after ``timeout`` seconds."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._sockets, timeout):
                raise TimeoutError(f"{len(self._sockets)} connections are still there")

    def forget(self) -> None:
        """Start the counts at zero again."""
        with self._lock:
            self._seen.clear()

    def close(self) -> None:
        """End everything: listener, connections, threads."""
        with self._lock:
            self._closed = True
            self._fault.over.set()
        self._listening.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.reset_connections()
        for thread in self._threads:
            thread.join()

    # threads

    def _listen(self) -> None:
        self._listener.listen(128)
        self._listening.set()

    def _accept(self) -> None:
        while not self._closed:
            self._listening.wait()
            try:
                client, _ = self._listener.accept()
            except OSError:  # refusing, or closed
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(client,), name="faultproxy", daemon=True)
            with self._lock:
                self._sockets.add(client)
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        link = _Link(client)
        try:
            while True:
                self._exchange(link)
        except (_Broken, OSError):
            pass
        finally:
            with self._lock:
                self._sockets.discard(client)
                if link.server is not None:
                    self._sockets.discard(link.server)
                self._lock.notify_all()
            link.close()

    def _arrived(self, method: str, path: str) -> Fault:
        """Note a request; the fault that is to meet it."""
        line = f"{method} {path}"
        with self._lock:
            fault = self._fault
            hit = fault.match is None or fault.match.search(line) is not None
            if fault.mode == "flip":
                hit = hit and _CHUNK_READ.match(line) is not None
            if hit and fault.times is not None:
                hit = fault.times > 0
                fault.times -= 1
            fault = fault if hit else Fault()
            self._seen.append(Seen(method, path, fault.mode))
            self._lock.notify_all()
        return fault

    def _exchange(self, link: _Link) -> None:
        head = _read_head(link.client)
        method, path, _ = head.decode("latin-1").split(" ", 2)
        fault = self._arrived(method, path)
        if fault.mode == "stall":
            link.hang(fault)
        rate = fault.bytes_per_second if fault.mode == "slow" else None
        if b"100-continue" in head.lower():
            link.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _read_body(link.client, head, fault, rate)
        if _answered_here(link.client, fault, head):
            return
        answer_head, answer = self._forward(link, method, head, body)
        if fault.mode == "drop":
            raise _Broken
        if fault.mode == "hold":
            self._held(fault)
        if fault.mode == "cut":
            link.client.sendall(answer_head + answer[: len(answer) // 2])
            raise _Broken
        if fault.mode == "flip" and _status(answer_head) == 200 and answer:
            answer[len(answer) // 2] ^= 0x10
        if rate is None:
            link.client.sendall(answer_head)
            link.client.sendall(answer)
        else:
            _send_slowly(link.client, answer_head + answer, fault, rate)
        if _last(head) or _last(answer_head):
            raise _Broken

    def _held(self, fault: Fault) -> None:
        with self._lock:
            self._holding += 1
            self._lock.notify_all()
        fault.over.wait()
        with self._lock:
            self._holding -= 1

    def _forward(self, link: _Link, method: str, head: bytes, body: bytearray) -> tuple[bytes, bytearray]:
        if link.server is None:
            server = socket.create_connection(self._target, timeout=10)
            server.settimeout(None)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                link.server = server
                self._sockets.add(server)
        link.server.sendall(head)
        link.server.sendall(body)
        link.wait_for_server()
        while _status(answer_head := _read_head(link.server)) == 100:
            pass
        if method == "HEAD" or _status(answer_head) in (204, 304):
            return answer_head, bytearray()
        return answer_head, _read_body(link.server, answer_head, None, None, to_end=True)


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None

    def close(self) -> None:
        self.client.close()
        if self.server is not None:
            self.server.close()

    def hang(self, fault: Fault) -> None:
        """Wait until the client gives up or the fault is over."""
        poll = select.poll()
        poll.register(self.client, select.POLLRDHUP)
        while not poll.poll(20) and not fault.over.is_set():
            pass
        raise _Broken

    def wait_for_server(self) -> None:
        """Wait until the server answers; raises _Broken when the client gives up before."""
        assert self.server is not None
        poll = select.poll()
        poll.register(self.client, select.POLLRDHUP)
        poll.register(self.server, select.POLLIN)
        if all(fd == self.client.fileno() for fd, _ in poll.poll()):
            raise _Broken


def _read_head(sock: socket.socket) -> bytes:
    """Everything up to the empty line, not a byte of what follows."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        seen = sock.recv(16 * 1024, socket.MSG_PEEK)
        if not seen or len(head) > _HEAD_MAX:
            raise _Broken
        end = (head[-3:] + seen).find(b"\r\n\r\n")
        wanted = len(seen) if end < 0 else end + 4 - len(head[-3:])
        head += sock.recv(wanted)
    return head


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?mi)^" + name + rb": *([^\r\n]*)", head)
    return found[1].strip().lower() if found else None


def _status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def _last(head: bytes) -> bool:
    """Whether the connection ends after the message with this head."""
    return _header(head, b"connection") == b"close" or head.startswith(b"HTTP/1.0")


def _answered_here(client: socket.socket, fault: Fault, head: bytes) -> bool:
    """Do what the fault does instead of forwarding."""
    match fault.mode:
        case "refuse":  # arrived in the moment of the switch
            raise _Broken
        case "garbage":
            client.sendall(b"\x16\x03\x01 this is not HTTP \x00\xff\r\n\r\n" + os.urandom(512))
            raise _Broken
        case "error":
            _answer(client, fault.status, b"text/html", b"<h1>Something went wrong</h1>")
            return True
        case "garbage-body":
            accept = re.search(rb"(?mi)^accept: *([^\r\n,]+)", head)
            _answer(client, 200, accept[1] if accept else b"application/json", b"\xc1" + os.urandom(256))
            return True
        case "delay":
            fault.over.wait(fault.seconds)
    return False


def _read_body(
    sock: socket.socket, head: bytes, fault: Fault | None, rate: int | None, *, to_end: bool = False
) -> bytearray:
    """A body as it is on the wire, chunked framing included."""
    if _header(head, b"transfer-encoding") == b"chunked":
        body = bytearray()
        while True:
            line = _read_line(sock)
            size = int(line.split(b";")[0], 16)
            body += line + _read_exactly(sock, size + 2, fault, rate)
            if size == 0:
                return body
    length = _header(head, b"content-length")
    if length is not None:
        return _read_exactly(sock, int(length), fault, rate)
    body = bytearray()
    if to_end and not _last(head):
        raise _Broken  # a server that sends neither length nor end
    while to_end and (piece := sock.recv(1 << 16)):
        body += piece
    return body


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            raise _Broken
        line += piece
    return line


def _read_exactly(sock: socket.socket, size: int, fault: Fault | None, rate: int | None) -> bytearray:
    body = bytearray(size)
    view = memoryview(body)
    while view:
        step = len(view) if rate is None else _pace(fault, rate)
        count = sock.recv_into(view[:step])
        if not count:
            raise _Broken
        view = view[count:]
    return body


def _send_slowly(sock: socket.socket, data: bytes | bytearray, fault: Fault, rate: int) -> None:
    view = memoryview(data)
    while view:
        step = _pace(fault, rate)
        sock.sendall(view[:step])
        view = view[step:]


def _pace(fault: Fault | None, rate: int) -> int:
    """Wait for the next share of the bandwidth; how many bytes it is. At least ten shares a second."""
    step = max(1, rate // 50)
    if fault is not None and fault.over.wait(step / rate):
        return 1 << 20  # the mode has changed: finish at full speed
    return step


def _answer(sock: socket.socket, status: int, kind: bytes, body: bytes) -> None:
    head = b"HTTP/1.1 %d Fault\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
    sock.sendall(head + body)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str], FaultProxy]]:
    """A function that puts a :class:`FaultProxy` before a server's URL."""
    with contextlib.ExitStack() as stack:
        yield lambda server_url: stack.enter_context(FaultProxy(server_url))
