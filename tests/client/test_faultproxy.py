"""The proxy that all fault tests rely on does what its docstring says."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.faultproxy import FaultProxy

CONTENT = bytes(range(256)) * 1024
CHUNK = "/v1/buckets/b/chunks/0a1b"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def log_message(self, *_: object) -> None:
        pass


class Origin(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # connections are broken here on purpose


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(origin: Origin) -> Iterator[FaultProxy]:
    with FaultProxy(origin.url) as proxy:
        yield proxy


def ask(proxy: FaultProxy, path: str = CHUNK, method: str = "GET", body: bytes = b"", timeout: float = 10) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0, timeout=timeout)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else b"%d" % answer.status
    finally:
        connection.close()


def test_pass(proxy: FaultProxy) -> None:
    assert ask(proxy) == CONTENT
    assert ask(proxy, method="PUT", body=CONTENT) == CONTENT
    assert proxy.count("GET", "/chunks/") == proxy.count("PUT") == 1
    assert proxy.count() == 2
    proxy.forget()
    assert proxy.count() == 0


def test_refuse_and_back(proxy: FaultProxy) -> None:
    for _ in range(3):
        proxy.set("refuse")
        with pytest.raises(ConnectionRefusedError):
            ask(proxy)
        proxy.set("pass")
        assert ask(proxy) == CONTENT


def test_refuse_ends_what_is_connected(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port or 0)
    connection.request("GET", CHUNK)
    assert connection.getresponse().read() == CONTENT
    proxy.set("refuse")
    assert connection.sock.recv(1) == b""
    connection.close()


def test_stall(proxy: FaultProxy, origin: Origin) -> None:
    proxy.set("stall")
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.2)
    proxy.set("pass")
    assert ask(proxy) == CONTENT
    assert len(origin.paths) == 1


def test_stalled_request_ends_with_the_mode(proxy: FaultProxy) -> None:
    proxy.set("stall")
    failures: list[BaseException] = []

    def hang() -> None:
        try:
            ask(proxy)
        except ConnectionError as error:
            failures.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    proxy.wait_for("GET", mode="stall")
    proxy.set("pass")
    thread.join(5)
    assert failures


def test_garbage(proxy: FaultProxy) -> None:
    proxy.set("garbage")
    with pytest.raises(http.client.BadStatusLine):
        ask(proxy)


def test_garbage_body(proxy: FaultProxy, origin: Origin) -> None:
    proxy.set("garbage-body")
    assert ask(proxy).startswith(b"\xc1")
    assert origin.paths == []


def test_error_for_a_number_of_matching_requests(proxy: FaultProxy) -> None:
    proxy.set("error", status=503, match="GET /a", times=2)
    assert ask(proxy, "/b") == CONTENT
    assert [ask(proxy, "/a") for _ in range(3)] == [b"503", b"503", CONTENT]
    assert proxy.count(mode="error") == 2


def test_cut(proxy: FaultProxy) -> None:
    proxy.set("cut")
    with pytest.raises(http.client.IncompleteRead) as broken:
        ask(proxy)
    assert len(broken.value.partial) == len(CONTENT) // 2


def test_flip_hits_chunk_bodies_only(proxy: FaultProxy) -> None:
    proxy.set("flip")
    assert ask(proxy, "/v1/server") == CONTENT
    flipped = ask(proxy)
    assert sum((a ^ b).bit_count() for a, b in zip(flipped, CONTENT, strict=True)) == 1


def test_drop_loses_the_answer_not_the_request(proxy: FaultProxy, origin: Origin) -> None:
    proxy.set("drop", times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, method="PUT", body=b"x")
    assert ask(proxy, method="PUT", body=b"x") == b"x"
    assert len(origin.paths) == 2


def test_delay(proxy: FaultProxy) -> None:
    proxy.set("delay", seconds=0.2)
    before = time.monotonic()
    assert ask(proxy) == CONTENT
    assert time.monotonic() - before >= 0.2


def test_hold_keeps_the_answer(proxy: FaultProxy, origin: Origin) -> None:
    proxy.set("hold")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(ask, proxy)
        proxy.wait_held()
        assert not answer.done()
        assert len(origin.paths) == 1
        proxy.set("pass")
        assert answer.result(timeout=10) == CONTENT


def test_slow_both_ways(proxy: FaultProxy) -> None:
    proxy.set("slow", bytes_per_second=100_000)
    before = time.monotonic()
    assert ask(proxy, method="PUT", body=bytes(20_000)) == bytes(20_000)
    assert 0.3 < time.monotonic() - before < 5


def test_retarget(proxy: FaultProxy) -> None:
    with Origin() as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        proxy.retarget(other.url)
        assert ask(proxy) == CONTENT
        assert other.paths == [CHUNK]
        other.shutdown()
        thread.join()
