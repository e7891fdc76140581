"""What wraps every FUSE handler: an error is the caller's, never the daemon's end.

pyfuse3 lets an unexpected exception end the session; here everything becomes an errno. It cannot
interrupt a handler either, and a stalled one leaves its caller unkillable: whatever waits for the
network has a deadline of its own (``sync.errors.deadline``), for a scope here would cost every
request as much as its work.
"""

from __future__ import annotations

import errno
import functools
import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import apsw
import pyfuse3
import trio

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Guarded(Protocol):
    """What a class with guarded handlers has."""

    def failed(self, message: str) -> None:
        """A handler failed for a reason that is ours."""

    def full(self) -> None:
        """A handler failed for want of room."""


S = TypeVar("S", bound=Guarded)


def guard(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Let nothing but FUSEError out of a handler."""

    @functools.wraps(handler)
    async def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.full()
            if error.errno is None or error.errno == errno.EIO:
                log.info("%s%r: %s", handler.__name__, _shown(args), error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except apsw.FullError:
            self.full()
            raise pyfuse3.FUSEError(errno.ENOSPC) from None
        except (pyfuse3.FUSEError, trio.Cancelled):
            raise
        except Exception:
            mark = secrets.token_hex(4)
            log.exception("error %s in %s%r", mark, handler.__name__, _shown(args))
            self.failed(f"internal error {mark} in {handler.__name__}, see the log")
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, T]]", guarded)


def _shown(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments for the log, without content."""
    return tuple(arg if not isinstance(arg, bytes) or len(arg) <= 255 else len(arg) for arg in args)
