"""Heads of HTTP/1.1 messages."""

from __future__ import annotations

import httpx
import pytest

from nodeserver.client.http1 import Head, parse_head, parse_size, request_head


def parsed(*lines: bytes, method: str = "GET") -> Head:
    return parse_head(b"\r\n".join(lines), method)


def test_request() -> None:
    request = httpx.Request("GET", "http://h:81/a%20b?c=d", headers={"A": "1"})
    assert request_head(request) == b"GET /a%20b?c=d HTTP/1.1\r\nHost: h:81\r\nA: 1\r\n\r\n"


def test_request_for_another_target() -> None:
    request = httpx.Request("GET", "http://h/", extensions={"target": b"/x"})
    assert request_head(request).startswith(b"GET /x HTTP/1.1\r\n")


def test_answer() -> None:
    head = parsed(b"HTTP/1.1 200 OK", b"content-length: 12", b"X-Y:  z \t", b"Empty:")
    assert head == Head(200, [(b"content-length", b"12"), (b"X-Y", b"z"), (b"Empty", b"")], 12, False, True)


@pytest.mark.parametrize(
    ("lines", "length", "chunked", "keep_alive"),
    [
        ([b"HTTP/1.1 200 "], None, False, False),
        ([b"HTTP/1.1 200"], None, False, False),
        ([b"HTTP/1.1 204 No Content"], 0, False, True),
        ([b"HTTP/1.1 304 Not Modified", b"Content-Length: 9"], 0, False, True),
        ([b"HTTP/1.1 200 OK", b"Transfer-Encoding: Chunked"], None, True, True),
        ([b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"Content-Length: 5"], None, True, True),
        ([b"HTTP/1.1 200 OK", b"Content-Length: 5", b"Connection: Close"], 5, False, False),
        ([b"HTTP/1.1 200 OK", b"Content-Length: 5", b"Connection: x, close"], 5, False, False),
        ([b"HTTP/1.0 200 OK", b"Content-Length: 5"], 5, False, False),
        ([b"HTTP/1.0 200 OK", b"Content-Length: 5", b"Connection: keep-alive"], 5, False, True),
    ],
)
def test_how_the_body_ends(lines: list[bytes], length: int | None, chunked: bool, keep_alive: bool) -> None:
    head = parsed(*lines)
    assert (head.length, head.chunked, head.keep_alive) == (length, chunked, keep_alive)


def test_head_has_no_body() -> None:
    assert parsed(b"HTTP/1.1 200 OK", b"Content-Length: 5", method="HEAD").length == 0


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b"SSH-2.0-OpenSSH_9.2"],
        [b"HTTP/2 200"],
        [b"HTTP/1.1 20 OK"],
        [b"HTTP/1.1 2000 OK"],
        [b"HTTP/1.1 200 OK", b"no colon"],
        [b"HTTP/1.1 200 OK", b" folded: line"],
        [b"HTTP/1.1 200 OK", b"space : before"],
        [b"HTTP/1.1 200 OK", b"nul: \0"],
        [b"HTTP/1.1 200 OK", b"bare: a\nb"],
        [b"HTTP/1.1 200 OK", b"Content-Length: -1"],
        [b"HTTP/1.1 200 OK", b"Content-Length: 1, 2"],
        [b"HTTP/1.1 200 OK", b"Content-Length: 1", b"Content-Length: 2"],
        [b"HTTP/1.1 200 OK", b"Content-Length: " + b"9" * 30],
    ],
)
def test_not_http(lines: list[bytes]) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        parsed(*lines)


def test_size_of_a_chunk() -> None:
    assert [parse_size(line) for line in (b"0", b"1F", b"a;name=value", b"10 ")] == [0, 31, 10, 16]


@pytest.mark.parametrize("line", [b"", b"-1", b"0x10", b"g", b"f" * 16, b" ;"])
def test_not_the_size_of_a_chunk(line: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        parse_size(line)
