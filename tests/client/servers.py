"""Servers that do what a test tells them: one for bytes, one that answers as a node server would."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec

from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MSGPACK, Problem

Script = Callable[[socket.socket], None]


class RawServer:
    """Runs ``script`` on a thread for each connection, which ends with it. ``connections`` counts them."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.connections = 0
        self.ended = threading.Semaphore(0)
        """Released each time a script has ended."""
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._run, args=(connection,)))
            self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            self._script(connection)
        except OSError:
            pass  # the client has gone
        finally:
            connection.close()
            self.ended.release()


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head and body of the next request; raises ConnectionError when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    pieces = [body]
    length -= len(body)
    while length:
        pieces.append(_receive(connection))
        length -= len(pieces[-1])
    return head, b"".join(pieces)


def _receive(connection: socket.socket) -> bytes:
    if not (data := connection.recv(1 << 16)):
        raise ConnectionError
    return data


def answering(answer: bytes) -> Script:
    """A script that answers every request with these bytes."""

    def script(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            connection.sendall(answer)

    return script


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What to answer with."""

    value: Any = None
    """A wire type, sent as MessagePack; bytes are sent as they are, None as no body."""
    status: int = 200
    kind: str = MSGPACK


def problem(code: Code, detail: str = "") -> Answer:
    """An answer with problem details."""
    value = Problem(type=code.uri, title=code.title, status=code.status, detail=detail)
    return Answer(msgspec.json.encode(value), code.status, "application/problem+json")


@dataclass
class ApiServer:
    """Answers with ``answers``, the last one for ever, and keeps what was ``asked``."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # broken on purpose
                    super().handle()

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = api.answer(Asked(self.command, self.path, dict(self.headers), body))
                value = answer.value
                data = value if isinstance(value, bytes) else b"" if value is None else msgspec.msgpack.encode(value)
                self.send_response(answer.status)
                if value is not None:
                    self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        Handler.disable_nagle_algorithm = True
        return Handler
