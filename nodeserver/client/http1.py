"""HTTP/1.1 message heads (RFC 9112): writing a request's, reading an answer's."""

from __future__ import annotations

import re
from typing import NamedTuple

import httpx

HEAD_MAX = 64 * 1024
"""Bytes in the head of an answer."""
FIELDS_MAX = 256
"""Fields in the head of an answer."""
INTERIM_MAX = 16
"""Answers of 1xx before the final one, and that one."""
END = b"\r\n\r\n"

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_ONCE = (b"content-length", b"transfer-encoding")
"""Fields that say where the answer ends: it does so in one place."""


class Head(NamedTuple):
    """An answer's head, and how its body ends."""

    status: int
    headers: list[tuple[bytes, bytes]]
    length: int | None
    """None: the body is chunked, or ends with the connection."""
    chunked: bool
    keep_alive: bool
    """Whether the connection can carry another request after the body."""


def request_head(request: httpx.Request) -> bytes:
    """The bytes of a request before its body. The extension ``target`` replaces path and query of the URL."""
    target = request.extensions.get("target") or request.url.raw_path
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), target)]
    lines += [b"%s: %s" % field for field in request.headers.raw]
    return b"\r\n".join(lines) + END


def parse_head(data: bytes, method: str) -> Head:
    """The head in ``data`` (everything before the empty line) of the answer to a ``method`` request.

    Raises httpx.RemoteProtocolError when it is not HTTP/1.
    """
    first, *lines = data.split(b"\r\n")
    if not (status_line := _STATUS.fullmatch(first)):
        raise httpx.RemoteProtocolError(f"not an HTTP/1 answer: {first[:40]!r}")
    if len(lines) > FIELDS_MAX:
        raise httpx.RemoteProtocolError(f"more than {FIELDS_MAX} header fields")
    headers = []
    fields: dict[bytes, bytes] = {}
    for line in lines:
        if not (field := _FIELD.fullmatch(line)):
            raise httpx.RemoteProtocolError(f"not a header field: {line[:40]!r}")
        name, value = field.groups()
        headers.append((name, value))
        if fields.setdefault(name.lower(), value) != value and name.lower() in _ONCE:
            raise httpx.RemoteProtocolError(f"two different fields {name!r}")
    status = int(status_line[2])
    chunked = fields.get(b"transfer-encoding", b"").lower() == b"chunked"
    length = None if chunked else _length(fields.get(b"content-length"))
    if method == "HEAD" or status < 200 or status in (204, 304):
        length, chunked = 0, False
    connection = [token.strip() for token in fields.get(b"connection", b"").lower().split(b",")]
    persistent = b"close" not in connection and (status_line[1] == b"1" or b"keep-alive" in connection)
    return Head(status, headers, length, chunked, persistent and (chunked or length is not None))


def parse_size(line: bytes) -> int:
    """The size of a chunk of a chunked body. Raises httpx.RemoteProtocolError when there is none."""
    digits = line.partition(b";")[0].strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", digits):
        raise httpx.RemoteProtocolError(f"not the size of a chunk: {line[:40]!r}")
    return int(digits, 16)


def check_framing(framing: int, body: int) -> None:
    """Raises httpx.RemoteProtocolError when a chunked body has more around it, trailers included, than is in it.

    One of tiny chunks, or one whose trailers do not end, would take the time of its reader for nothing.
    """
    if framing > HEAD_MAX + body:
        raise httpx.RemoteProtocolError(f"{framing} bytes of chunk sizes and trailers around {body} of body")


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise httpx.RemoteProtocolError(f"not a content length: {value[:40]!r}")
    return int(value)
