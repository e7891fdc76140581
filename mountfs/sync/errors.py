"""What an error of the client means to a program: its errno."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

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
    Code.INVALID_NAME: errno.EINVAL,
    Code.FULL: errno.ENOSPC,
}


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


def os_error(error: ClientError) -> OSError:
    """The OSError a caller of the file system gets for ``error``; EIO unless it has one of its own."""
    code = error.code if isinstance(error, Refused) else None
    return OSError(_ERRNO.get(code, errno.EIO) if code else errno.EIO, str(error))
