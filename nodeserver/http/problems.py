"""Errors as RFC 9457 problem details, and the envelope that turns every exception into one."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nodeserver.access.tokens import Forbidden, InvalidToken
from nodeserver.chunks import NoChunk, StoreUnavailable
from nodeserver.content.codec import CorruptChunk
from nodeserver.http.logs import Sparing, cut
from nodeserver.http.services import NodeServices
from nodeserver.http.standing import judged
from nodeserver.metadata import checks, errors
from nodeserver.metadata.database import is_full
from nodeserver.placement.map import BadMap
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import Problem
from nodeserver.workers.registry import Interrupted, NoWorker

if TYPE_CHECKING:
    from nodeserver.http.limits import Limits

PROBLEM = "application/problem+json"
OPEN_PATHS = frozenset({"/v1/health"})
"""Answered without a token."""

log = logging.getLogger(__name__)


class Refused(Exception):
    """An answer that is an error: ``code``, a sentence, and the ids it is about."""

    def __init__(self, code: Code, detail: str = "", ids: list[bytes] | None = None) -> None:
        super().__init__(detail or code.title)
        self.code = code
        self.detail = detail
        self.ids = [id_.hex() for id_ in ids or []]


_CODES: dict[type[Exception], Code] = {
    checks.InvalidName: Code.INVALID_NAME,
    checks.TooLarge: Code.TOO_LARGE,
    checks.Invalid: Code.MALFORMED,
    errors.NoBucket: Code.NO_BUCKET,
    errors.NoFile: Code.NO_FILE,
    errors.NoNode: Code.NO_ROUTE,
    errors.RemovedNode: Code.FORBIDDEN,
    errors.TakenNode: Code.FORBIDDEN,
    BadMap: Code.MALFORMED,
    errors.BucketExists: Code.BUCKET_EXISTS,
    errors.BucketNotEmpty: Code.BUCKET_NOT_EMPTY,
    errors.HasHistory: Code.HAS_HISTORY,
    errors.HistoryGone: Code.HISTORY_GONE,
    errors.Unavailable: Code.BUSY,
    errors.Held: Code.HELD,
    errors.Current: Code.CURRENT,
    NoWorker: Code.NO_ROUTE,
    Interrupted: Code.BUSY,
    StoreUnavailable: Code.BUSY,
    InvalidToken: Code.UNAUTHORIZED,
    Forbidden: Code.FORBIDDEN,
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: Exception) -> Refused:
    """What an exception is to the one who asked; nothing of an unexpected one is told but that it happened."""
    match error:
        case Refused():
            return error
        case NoChunk():
            return Refused(Code.NO_CHUNK, str(error), error.ids)
        case CorruptChunk():
            return Refused(Code.CORRUPT, str(error), [error.chunk] if error.chunk else [])
        case HTTPException(status_code=404):
            return Refused(Code.NO_ROUTE)
        case HTTPException(status_code=405):
            return Refused(Code.METHOD)
        case OSError(errno=number) if number in _FULL:
            return Refused(Code.FULL)
        case OperationalError() if is_full(error):
            return Refused(Code.FULL)
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), Code.INTERNAL)
    return Refused(code, str(error) if code is not Code.INTERNAL else "")


def problem_response(error: Refused, request_id: str) -> Response:
    """The answer for an error."""
    code = error.code
    problem = Problem(code.uri, code.title, code.status, error.detail, f"urn:uuid:{request_id}", error.ids)
    response = Response(msgspec.json.encode(problem), code.status, media_type=PROBLEM)
    if code is Code.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


class Envelope:
    """Around every request: an id, the proof of who asks, and an answer for every exception."""

    def __init__(self, app: ASGIApp, services: NodeServices, limits: Limits) -> None:
        self._app = app
        self._services = services
        self._limits = limits
        self._refusals, self._failures = Sparing(), Sparing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["app"] = self._services  # for the handlers; with one here the router raises instead of answering
        scope["limits"] = self._limits
        leave: list[Callable[[], None]] = []
        scope["leave"] = leave
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                who = self._services.keys.verify(_bearer(Headers(scope=scope)))
                scope["identity"] = judged(who, self._services)
            await self._app(scope, receive, note_start)
        except ClientDisconnect:
            self._note(logging.INFO, scope, "the client went away")
        except Exception as error:
            response = self._explain(error, scope)
            if started:
                raise
            await response(scope, receive, send)
        finally:
            for give_back in leave:
                give_back()

    def _explain(self, error: Exception, scope: Scope) -> Response:
        request_id = str(uuid.uuid4())
        refused = refusal(error)
        level = logging.ERROR if refused.code.status >= 500 else logging.INFO
        if refused.code is Code.NO_CHUNK and scope["path"].startswith("/v1/pieces/"):
            level = logging.DEBUG  # whoever asks has other nodes to ask
        unexpected = error if refused.code is Code.INTERNAL else None
        self._note(level, scope, f"{refused.code.value} {cut(refused.detail)} [{request_id}]", unexpected)
        response = problem_response(refused, request_id)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    def _note(self, level: int, scope: Scope, what: str, error: Exception | None = None) -> None:
        """A line about a request, unless there are too many."""
        if not log.isEnabledFor(level):
            return
        lines = self._failures if level >= logging.ERROR else self._refusals
        if lines.allows():
            if count := lines.dropped():
                log.log(level, "%d lines like the following were left out", count)
            log.log(level, "%s %s: %s", cut(scope["method"]), cut(scope["path"]), what, exc_info=error)


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise InvalidToken("there is no bearer token")
    return token.strip()
