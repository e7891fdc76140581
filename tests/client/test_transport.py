"""The transport against servers that answer byte by byte as the test says."""

from __future__ import annotations

import datetime
import ipaddress
import os
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nodeserver.client import connection
from nodeserver.client.connection import BULK, Buffer
from nodeserver.client.transport import Body, Transport

from .backends import both
from .servers import RawServer, answering, read_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PROMPT = 2.0
"""Seconds that what is immediate takes at most, on a slow machine."""


@asynccontextmanager
async def transport(
    connect_timeout: float = 5.0, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Transport]:
    async with Transport(connect_timeout=connect_timeout, ssl_context=ssl_context, threads=4) as transport:
        yield transport


async def ask(via: Transport, server: RawServer, method: str = "GET", body: Buffer = b"") -> httpx.Response:
    headers = {"Content-Length": str(len(body))} if body else {}
    return await via.handle_async_request(httpx.Request(method, server.url, headers=headers, stream=Body(body)))


def content(response: httpx.Response) -> Buffer:
    assert isinstance(response.stream, Body)
    return response.stream.buffer


@both
async def test_connection_is_kept() -> None:
    with RawServer(answering(OK)) as server:
        async with transport() as via:
            for _ in range(3):
                response = await ask(via, server)
                assert (response.status_code, bytes(content(response))) == (200, b"ok")
        assert server.connections == 1


@both
async def test_as_a_transport_of_httpx() -> None:
    with RawServer(answering(OK)) as server:
        async with httpx.AsyncClient(transport=Transport(), trust_env=False) as client:
            assert (await client.get(server.url)).text == "ok"
            assert (await client.post(server.url, content=b"x" * (BULK + 1))).text == "ok"


@both
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nTrailer: 1\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    ],
)
async def test_framing(answer: bytes, expected: bytes) -> None:
    """The same whether the answer comes at once or byte by byte, and the connection is good for another."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        read_request(connection)
        for byte in answer:
            connection.sendall(bytes([byte]))
        read_request(connection)
        connection.sendall(OK)

    with RawServer(script) as server:
        async with transport() as via:
            assert bytes(content(await ask(via, server))) == expected
            assert bytes(content(await ask(via, server))) == expected
            assert bytes(content(await ask(via, server))) == b"ok"
        assert server.connections == 1


@both
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        OK + b"more than was promised",
    ],
)
async def test_connection_is_not_used_again(answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    with RawServer(script) as server:
        async with transport() as via:
            assert bytes(content(await ask(via, server))) == b"ok"
            assert bytes(content(await ask(via, server))) == b"ok"
        assert server.connections == 2


@both
async def test_connection_that_ended_meanwhile_is_not_used() -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)

    with RawServer(script) as server:
        async with transport() as via:
            for _ in range(3):
                assert bytes(content(await ask(via, server))) == b"ok"
                await anyio.to_thread.run_sync(server.ended.acquire)
        assert server.connections == 3


SIZES = [0, 1, 2047, 2048, 65536, BULK - 1, BULK, BULK + 1, 4 << 20]


@both
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_bodies_of_all_sizes(tls: bool, certificate: Certificate) -> None:
    def echo(connection: socket.socket) -> None:
        while True:
            _, body = read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            connection.sendall(body)

    with RawServer(echo, certificate.server if tls else None) as server:
        async with transport(ssl_context=certificate.client) as via:
            for size in SIZES:
                data = os.urandom(size)
                for body in (data, bytearray(data), memoryview(data)):
                    assert content(await ask(via, server, "POST", body)) == data
        assert server.connections == 1


@both
async def test_certificate_that_is_not_trusted(certificate: Certificate) -> None:
    with RawServer(answering(OK), certificate.server) as server:
        async with transport() as via:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await ask(via, server)


@both
@pytest.mark.parametrize("size", [10, BULK - 1, BULK, 4 << 20])
@pytest.mark.parametrize("head", [b"Content-Length: %d", b"Transfer-Encoding: chunked"])
async def test_broken_off(size: int, head: bytes) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        chunked = head.startswith(b"T")
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + (head if chunked else head % size) + b"\r\n\r\n")
        connection.sendall((b"%x\r\n" % size if chunked else b"") + bytes(size // 2))

    with RawServer(script) as server:
        async with transport() as via:
            with pytest.raises(httpx.ReadError):
                await ask(via, server)


@both
async def test_server_that_says_nothing_and_goes() -> None:
    with RawServer(lambda connection: None) as server:
        async with transport() as via:
            with pytest.raises(httpx.TransportError):
                await ask(via, server)
            with pytest.raises(httpx.TransportError):
                await ask(via, server, "PUT", bytes(4 << 20))


@both
@pytest.mark.parametrize("size", [100, 8 << 20])
async def test_answer_instead_of_reading_the_body(size: int) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"

    def script(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(refusal)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with RawServer(script) as server:
        async with transport() as via:
            assert (await ask(via, server, "PUT", bytes(size))).status_code == 413


@both
async def test_answer_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_MAX", 1000)
    for head in (b"Content-Length: 1001\r\n\r\n", b"\r\n" + bytes(100_000), b"X: " + b"y" * 200_000):
        with RawServer(answering(b"HTTP/1.1 200 OK\r\n" + head)) as server:
            async with transport() as via:
                with pytest.raises(httpx.RemoteProtocolError):
                    await ask(via, server)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@both
@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"A"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED, b"1;" + b"e" * 1000 + b"\r\nx\r\n"),
        (CHUNKED + b"0\r\n", b"T: u\r\n"),
    ],
    ids=["continue", "hints", "fields", "a field", "tiny chunks", "extensions", "trailers"],
)
@pytest.mark.parametrize("together", [1, 20_000], ids=["one by one", "many at a time"])
async def test_an_answer_without_an_end(begin: bytes, again: bytes, together: int) -> None:
    """It is refused before it has cost much."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(begin)
        while True:
            connection.sendall(again * max(1, together // len(again)))

    with RawServer(script) as server:
        async with transport() as via:
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(via, server)


@both
async def test_a_server_that_is_always_ahead_does_not_keep_the_loop() -> None:
    """A body without an end, as fast as it can be read: a deadline ends it."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(CHUNKED)
        while True:
            connection.sendall(b"400\r\n" + bytes(1024) + b"\r\n")

    with RawServer(script) as server:
        async with transport() as via:
            with anyio.move_on_after(0.2) as scope:
                await ask(via, server)
    assert scope.cancelled_caught


@both
async def test_refused() -> None:
    with RawServer(answering(OK)) as server:
        pass
    async with transport() as via:
        with pytest.raises(httpx.ConnectError, match="refused"):
            await ask(via, server)


@both
async def test_unknown_host_and_protocol() -> None:
    async with transport() as via:
        with pytest.raises(httpx.ConnectError):
            await via.handle_async_request(httpx.Request("GET", "http://no-such-host.invalid/"))
        with pytest.raises(httpx.UnsupportedProtocol):
            await via.handle_async_request(httpx.Request("GET", "ftp://127.0.0.1/"))


@both
async def test_connect_timeout() -> None:
    """A full queue of connections: the next one is not answered at all."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            async with transport(connect_timeout=0.2) as via:
                with pytest.raises(httpx.ConnectTimeout):
                    await via.handle_async_request(httpx.Request("GET", f"http://127.0.0.1:{port}/"))


def half_an_answer(size: int) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size // 2))
        connection.recv(1)  # until the client has gone

    return script


def never_reads(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll(10_000)  # until the client has gone


@both
@pytest.mark.parametrize(
    ("script", "body"),
    [
        (half_an_answer(100), 0),
        (half_an_answer(4 << 20), 0),
        (never_reads, BULK // 2),
        (never_reads, 32 << 20),
    ],
    ids=["small answer", "large answer", "small body", "large body"],
)
async def test_cancelled_at_once(script: Callable[[socket.socket], None], body: int) -> None:
    """The server sees the end of the connection, no thread stays, and the next request goes through."""
    threads = threading.active_count()
    with RawServer(script) as server:
        async with transport() as via:
            begun = anyio.current_time()
            with anyio.move_on_after(0.1) as scope:
                await ask(via, server, "PUT", bytes(body))
            assert scope.cancelled_caught
            assert anyio.current_time() - begun < PROMPT
            with anyio.fail_after(PROMPT):
                await anyio.to_thread.run_sync(server.ended.acquire, abandon_on_cancel=True)
                while via._limiter.borrowed_tokens:
                    await anyio.lowlevel.checkpoint()
    assert threading.active_count() <= threads + 8  # workers that wait for work, not for the server


@both
async def test_cancelled_while_others_hold_the_threads() -> None:
    with RawServer(half_an_answer(4 << 20)) as server:
        async with transport() as via, anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(ask, via, server)
            for _ in range(8):
                with anyio.fail_after(PROMPT):
                    while server.connections < 8:
                        await anyio.lowlevel.checkpoint()
            begun = anyio.current_time()
            tasks.cancel_scope.cancel()
        assert anyio.current_time() - begun < PROMPT


@both
async def test_waiting_requests_hold_no_threads() -> None:
    """Sixteen long polls and four threads: a chunk still comes through."""
    release = threading.Event()

    def script(connection: socket.socket) -> None:
        head, _ = read_request(connection)
        if head.startswith(b"POST"):
            release.wait(10)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BULK + bytes(BULK))

    with RawServer(script) as server:
        async with transport() as via, anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(ask, via, server, "POST")
            with anyio.fail_after(5):
                assert content(await ask(via, server)) == bytes(BULK)
            release.set()


class Certificate:
    """A self-signed certificate for 127.0.0.1, and the TLS settings of a server and a client that trust it."""

    def __init__(self, directory: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = directory / "server.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(pem)
        self.client = ssl.create_default_context(cafile=str(pem))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))
