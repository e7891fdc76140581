"""Requests that are made again until one succeeds or the call's time is over."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from nodeserver.client.breaker import Breaker
from nodeserver.client.errors import CircuitOpen, ClientError, DeadlineExceeded

BASE = 0.05
"""Seconds that the first pause is at most; the most doubles with each try."""
CAP = 2.0
"""Seconds that any pause is at most."""
PROBE = 1.0
"""Seconds to wait for the outcome of another request that probes whether the server is back."""

T = TypeVar("T")


def backoff(tries: int) -> float:
    """Seconds to wait after so many failed tries: exponential, with full jitter."""
    return random.uniform(0.0, min(CAP, BASE * 2 ** min(tries - 1, 16)))  # noqa: S311


async def retried(request: Callable[[], Awaitable[T]], breaker: Breaker, deadline: float, *, once: bool = False) -> T:
    """The result of the first ``request`` that succeeds, within ``deadline`` seconds.

    Raises what the last one raised when it is not transient or there is no time left for another;
    DeadlineExceeded only when none had come to an end before.
    With ``once`` the first failure is the last. A call that finds the circuit open raises CircuitOpen at once;
    one that has tried before waits for it, and one that finds another request probing waits a moment for the outcome:
    to fail would often cancel the probe, which belongs to the same work.
    """
    began = anyio.current_time()
    until = began + deadline
    tries = 0
    last: ClientError | None = None
    opened: CircuitOpen | None = None
    while True:
        try:
            with breaker.request():
                tries += 1
                return await _in_time(request, until, deadline)
        except CircuitOpen as error:
            if last is None and (error.retry_in or anyio.current_time() - began > PROBE):
                raise
            opened = error
            pause = max(error.retry_in, backoff(tries))
        except ClientError as error:
            error.tries = tries
            if once or not error.transient:
                raise
            if last is None or not isinstance(error, DeadlineExceeded):
                last = error  # a last try that was cut short says less than the one before
            pause = backoff(tries)
        if anyio.current_time() + pause >= until:
            raise last or opened or DeadlineExceeded(f"no answer within {deadline:g} s")
        await anyio.sleep(pause)


async def _in_time(request: Callable[[], Awaitable[T]], until: float, deadline: float) -> T:
    with anyio.move_on_after(until - anyio.current_time()):
        return await request()
    raise DeadlineExceeded(f"no answer within {deadline:g} s")
