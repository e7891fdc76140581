"""What can go wrong between a client and a node server.

::

    ClientError                 every error of this package
    ├── InvalidUrl              the URL cannot be a node server's (also a ValueError)
    ├── Unreachable             no answer: DNS, connect, TLS, reset, broken off
    │   ├── DeadlineExceeded    no answer in the time the call had
    │   ├── CircuitOpen         not even tried: the server has failed too often just now
    │   └── QuorumLost          too few nodes took a piece of a chunk, or gave one
    ├── BadAnswer               an answer that is not one of ours: garbage, wrong type
    └── Refused                 the server's no: 4xx and 5xx, with its problem details

No other exception of a lower layer (httpx, OSError, ssl, msgspec) leaves the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus

import httpx
import msgspec

from nodeserver.protocol.errors import Code, code_of
from nodeserver.protocol.wire import Problem

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoding raises: msgspec lets the error of text that is not UTF-8 through as it is."""


class ClientError(Exception):
    """The call did not succeed."""

    tries: int = 1
    """Requests the call made; after more than one an earlier one may have had its effect."""

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed a moment later."""
        return False


class InvalidUrl(ClientError, ValueError):
    """The URL cannot be a node server's."""


class Unreachable(ClientError):
    """The server gave no answer, or broke it off."""

    @property
    def transient(self) -> bool:
        return True


class DeadlineExceeded(Unreachable):
    """The call's time was over before the server's answer was complete."""


class CircuitOpen(Unreachable):
    """The server failed too often in a row; it is left alone for ``retry_in`` seconds."""

    def __init__(self, message: str, retry_in: float) -> None:
        super().__init__(message)
        self.retry_in = retry_in


class QuorumLost(Unreachable):
    """Too few nodes took a piece of a chunk, or gave one."""


class BadAnswer(ClientError):
    """What answered does not speak this protocol."""

    @property
    def transient(self) -> bool:
        return True


class Refused(ClientError):
    """The server said no. ``code`` is None when the problem is none of the API's own."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem
        self.code: Code | None = code_of(problem.type)

    @property
    def transient(self) -> bool:
        """5xx, but a full disk or a damaged chunk does not mend itself within a call."""
        return self.problem.status >= 500 and self.problem.status != 507 and self.code is not Code.CORRUPT


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Turn what the lower layers raise into this module's errors."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise InvalidUrl(reason(error)) from error
    except httpx.TimeoutException as error:
        raise DeadlineExceeded(reason(error)) from error
    except (httpx.ProtocolError, httpx.DecodingError, httpx.TooManyRedirects, *UNDECODABLE) as error:
        raise BadAnswer(reason(error)) from error
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        raise Unreachable(reason(error)) from error


def refused(code: Code, detail: str, ids: Iterable[bytes] = ()) -> Refused:
    """A no of our own, as a server would say it."""
    problem = Problem(code.uri, code.title, code.status, detail, ids=[one.hex() for one in ids])
    return Refused(problem)


def refusal(status: int, kind: str, body: bytes | bytearray | memoryview) -> Refused:
    """The error behind an answer of 4xx or 5xx, whether or not it carries problem details."""
    if kind == "application/problem+json":
        with contextlib.suppress(*UNDECODABLE):
            return Refused(msgspec.json.decode(body, type=Problem))
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Unknown status"
    return Refused(Problem(type="about:blank", title=f"{status} {title}", status=status))


def reason(error: Exception) -> str:
    """Why something failed, in words and without numbers."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "the connection broke"
