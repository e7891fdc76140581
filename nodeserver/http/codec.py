"""Bodies, answers and parameters: between bytes on the wire and the types of ``protocol.wire``."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nodeserver.http.limits import make_room
from nodeserver.http.problems import Refused
from nodeserver.metadata.checks import check_names
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import JSON, MAX_BODY, MSGPACK

BODY_DEADLINE = 120.0
"""Seconds a client may take to send a body, however large."""
PAUSE, SLOWEST = 15.0, 64 * 1024
"""Seconds it may take for a small one; bytes a second that it takes longer for a larger one."""
ASKED = 128 * 1024
"""Bytes in a body of those who may only read: ids of as many chunks as can be asked for at a time, even as JSON."""

MAX_SEQ = (1 << 63) - 1

T = TypeVar("T")


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body of a request. Raises ``Refused``; never holds more than ``limit`` bytes."""
    declared = request.headers.get("content-length")
    expected = limit if declared is None else int(declared)
    if expected > limit:
        raise _too_large(limit)
    await make_room(request, expected)
    parts, size = [], 0
    seconds = min(BODY_DEADLINE, PAUSE + expected / SLOWEST)
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError as error:
        raise Refused(Code.BUSY, f"the body did not arrive within {seconds:.0f} s") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read(request: Request, kind: type[T], limit: int = MAX_BODY) -> T:
    """The value that a request's body of at most ``limit`` bytes encodes. Raises ``Refused``."""
    body = await read_body(request, limit)
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    try:
        if media_type == MSGPACK:
            return msgspec.msgpack.decode(body, type=kind)
        if media_type == JSON:
            return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(Code.MALFORMED, str(error)) from error
    except RecursionError as error:
        raise Refused(Code.MALFORMED, "nested too deeply") from error
    raise Refused(Code.MALFORMED, f"a body is {MSGPACK} or {JSON}")


def answer(request: Request, value: Any) -> Response:
    """``value`` as the client wants it: MessagePack when it says so, else JSON."""
    if MSGPACK in request.headers.get("accept", ""):
        return Response(msgspec.msgpack.encode(value), media_type=MSGPACK)
    return Response(msgspec.json.encode(value), media_type=JSON)


def hex_id(request: Request, parameter: str, size: int) -> bytes:
    """An id in the path: lower-case hexadecimal of ``size`` bytes. Raises ``Refused``."""
    return _hex(request.path_params[parameter], size)


def hex_parameter(request: Request, name: str, size: int) -> bytes:
    """An id in the query string: lower-case hexadecimal of ``size`` bytes; empty when absent. Raises ``Refused``."""
    text = request.query_params.get(name, "")
    return _hex(text, size) if text else b""


def base64_parameter(request: Request, name: str) -> bytes:
    """Bytes in the query string: base64url without padding; empty when absent. Raises ``Refused``."""
    text = request.query_params.get(name, "")
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Code.MALFORMED, f"{name} is not base64url") from error
    return value


def name_parameter(request: Request) -> bytes:
    """The name of a directory entry in the query string. Raises ``Refused``, ``InvalidName``."""
    name = base64_parameter(request, "name")
    check_names(name)
    return name


def at_parameter(request: Request) -> int | None:
    """The commit that is asked about; None for the present. Raises ``Refused``."""
    return integer_parameter(request, "at", 0, 0, MAX_SEQ) if "at" in request.query_params else None


def integer_parameter(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number in the query string, at most ``most``. Raises ``Refused``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) >= least):
        raise Refused(Code.MALFORMED, f"{name} is not a number from {least} on")
    return min(int(text), most)


def seconds_parameter(request: Request, name: str, most: float) -> float:
    """A time in seconds in the query string, 0 when absent, at most ``most``. Raises ``Refused``."""
    try:
        value = float(request.query_params.get(name, "0"))
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise Refused(Code.MALFORMED, f"{name} is not a number of seconds")
    return min(value, most)


def _hex(text: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size or value.hex() != text:
        raise Refused(Code.MALFORMED, f"{text[:80]!r} is not {size} bytes in lower-case hexadecimal")
    return value


def _too_large(limit: int) -> Refused:
    return Refused(Code.TOO_LARGE, f"a body here has at most {limit} bytes")
