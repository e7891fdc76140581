"""Whatever the lower layers raise leaves the client as one of its own errors."""

from __future__ import annotations

import errno
import inspect
import re
import socket
import ssl

import httpx
import msgspec
import pytest

import nodeserver.client
from nodeserver.client import (
    BadAnswer,
    CircuitOpen,
    ClientError,
    DeadlineExceeded,
    InvalidUrl,
    Refused,
    Unreachable,
    errors,
)
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import Problem

BAD = (httpx.ProtocolError, httpx.DecodingError, httpx.TooManyRedirects)
HTTPX = [
    kind
    for kind in vars(httpx).values()
    if inspect.isclass(kind) and issubclass(kind, (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError))
]


def lower(kind: type[Exception]) -> Exception:
    """An exception as httpx makes them, whatever its arguments."""
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    error.args = ("why",)
    return error


@pytest.mark.parametrize("kind", HTTPX, ids=lambda kind: kind.__name__)
def test_httpx(kind: type[Exception]) -> None:
    expected: type[ClientError] = Unreachable
    if issubclass(kind, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        expected = InvalidUrl
    elif issubclass(kind, httpx.TimeoutException):
        expected = DeadlineExceeded
    elif issubclass(kind, BAD):
        expected = BadAnswer
    with pytest.raises(expected, match="why") as raised, errors.mapped():
        raise lower(kind)
    assert type(raised.value) is expected
    assert isinstance(raised.value.__cause__, kind)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        BrokenPipeError(errno.EPIPE, "broken"),
        OSError(errno.EHOSTUNREACH, "no route"),
        OSError(errno.EMFILE, "too many files"),
        TimeoutError("late"),
        socket.gaierror(socket.EAI_NONAME, "unknown"),
        ssl.SSLError(1, "bad"),
        ssl.SSLCertVerificationError(1, "not trusted"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_operating_system(error: OSError) -> None:
    with pytest.raises(Unreachable) as raised, errors.mapped():
        raise error
    assert raised.value.transient


@pytest.mark.parametrize("kind", [msgspec.MsgspecError, msgspec.DecodeError, msgspec.ValidationError])
def test_body_that_does_not_decode(kind: type[Exception]) -> None:
    with pytest.raises(BadAnswer, match="why"), errors.mapped():
        raise kind("why")


def test_others_pass() -> None:
    with pytest.raises(KeyError), errors.mapped():
        raise KeyError
    with pytest.raises(Refused), errors.mapped():
        raise errors.refusal(404, "text/html", b"")


def test_the_drawn_tree_is_the_tree() -> None:
    drawn: list[str] = re.findall(r"^ *[│├└─ ]*([A-Z][A-Za-z]+)  ", errors.__doc__ or "", re.MULTILINE)
    defined = [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, ClientError)]
    assert sorted(drawn) == sorted(defined)
    assert set(defined) <= set(nodeserver.client.__all__)
    assert issubclass(DeadlineExceeded, Unreachable)
    assert issubclass(CircuitOpen, Unreachable)


def test_refusal_with_problem_details() -> None:
    problem = Problem(type=Code.MISSING_CHUNKS.uri, title="missing", status=409, detail="two", ids=["ab", "cd"])
    refused = errors.refusal(409, "application/problem+json", msgspec.json.encode(problem))
    assert (refused.code, refused.problem) == (Code.MISSING_CHUNKS, problem)
    assert str(refused) == "missing: two"
    assert not refused.transient


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'{"title": 3}', b"\xff"])
@pytest.mark.parametrize("kind", ["text/html", "application/problem+json", ""])
def test_refusal_without(body: bytes, kind: str) -> None:
    refused = errors.refusal(404, kind, body)
    assert (refused.code, refused.problem.status) == (None, 404)
    assert str(refused) == "404 Not Found"


@pytest.mark.parametrize(
    ("status", "transient"),
    [(400, False), (401, False), (404, False), (409, False), (500, True), (503, True), (507, False), (599, True)],
)
def test_what_is_worth_another_try(status: int, transient: bool) -> None:
    assert errors.refusal(status, "", b"").transient is transient


def test_a_damaged_chunk_stays_damaged() -> None:
    problem = Problem(type=Code.CORRUPT.uri, title="damaged", status=500)
    assert not errors.refusal(500, "application/problem+json", msgspec.json.encode(problem)).transient
