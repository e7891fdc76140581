"""What an error of the client means to a program: its errno."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from http import HTTPStatus

import trio

from nodeserver.client import ClientError, Refused
from nodeserver.protocol.errors import Code

_ERRNO = {
    Code.UNAUTHORIZED: errno.EACCES,
    Code.FORBIDDEN: errno.EACCES,
    Code.NO_BUCKET: errno.ENOENT,
    Code.NO_FILE: errno.ESTALE,
    Code.BUCKET_EXISTS: errno.EEXIST,
    Code.BUCKET_NOT_EMPTY: errno.ENOTEMPTY,
    Code.HAS_HISTORY: errno.ENOTEMPTY,
    Code.HELD: errno.ENOTEMPTY,
    Code.INVALID_NAME: errno.EINVAL,
    Code.FULL: errno.ENOSPC,
}

_HOPELESS = {Code.MALFORMED, Code.INVALID_NAME, Code.TOO_LARGE}


def hopeless(error: Exception) -> bool:
    """Whether the server refuses what was sent, and would again."""
    return isinstance(error, Refused) and (
        error.code in _HOPELESS or error.problem.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    )


def unreadable(error: BaseException | None) -> bool:
    """Whether content cannot be had, from here or from nodes that answer: an error of one file, not of all."""
    if not isinstance(error, OSError) or error.errno != errno.EIO:
        return False
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return error is None or (isinstance(error, Refused) and error.code in (Code.NO_CHUNK, Code.CORRUPT))


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Of the errors that a nursery collected, raise the first: one is enough to fail."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            rest = error.split(trio.Cancelled)[1] or error
            error = rest.exceptions[0]
        raise error from group


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise OSError(EIO) when the block is not through after ``seconds``."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise OSError(errno.EIO, f"no answer within {seconds:g} s")


def os_error(error: ClientError) -> OSError:
    """The OSError a caller of the file system gets for ``error``; EIO unless it has one of its own."""
    code = error.code if isinstance(error, Refused) else None
    return OSError(_ERRNO.get(code, errno.EIO) if code else errno.EIO, str(error))
