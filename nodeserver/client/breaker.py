"""A circuit breaker: a server that keeps failing is left alone for a while."""

from __future__ import annotations

import contextlib
import enum
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from nodeserver.client.errors import CircuitOpen, ClientError

FAILURES = 5
"""Failures in a row that open the circuit."""
FIRST = 0.5
"""Seconds it stays open the first time; twice as long each further time, jittered by a quarter."""
LONGEST = 5.0
"""Seconds it stays open at most."""


class Circuit(enum.Enum):
    """Whether requests are let through."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"
    """One request is on its way; its outcome closes or opens the circuit."""


@dataclass(frozen=True)
class State:
    """What is known about the server. Times are ``time.time()`` seconds."""

    connected: bool | None = None
    """Whether the last request was answered; None before the first."""
    since: float = 0.0
    """When ``connected`` became what it is."""
    circuit: Circuit = Circuit.CLOSED
    error: ClientError | None = None
    """The last failure, kept after it is over."""
    error_at: float = 0.0


Observer = Callable[[State], None]


class Breaker:
    """Counts what becomes of the requests to one server. Belongs to one event loop."""

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        first: float = FIRST,
        longest: float = LONGEST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = State(since=time.time())
        self._limit = failures
        self._first = first
        self._longest = longest
        self._clock = clock
        self._failures = 0
        self._openings = 0
        self._opens_until = 0.0
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call ``observer`` with the state whenever ``connected`` or ``circuit`` change; the result ends that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    @property
    def retry_in(self) -> float:
        """Seconds until a request may be let through."""
        return max(0.0, self._opens_until - self._clock())

    def hope(self) -> None:
        """Something else says that the server is back: the next request may probe at once."""
        self._opens_until = 0.0

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Around one request. Raises CircuitOpen instead of letting it happen."""
        probe = self._admit()
        try:
            yield
        except ClientError as error:
            if error.transient:
                self._failed(error, probe)
            else:
                self._answered()
            raise
        except BaseException:  # cancelled: nothing was learnt
            if probe:
                self._change(circuit=Circuit.OPEN)
            raise
        self._answered()

    def _admit(self) -> bool:
        """Whether the request is the probe. Raises CircuitOpen."""
        if self.state.circuit is Circuit.CLOSED:
            return False
        if self.state.circuit is Circuit.OPEN and not self.retry_in:
            self._change(circuit=Circuit.PROBING)
            return True
        raise CircuitOpen(f"left alone after failing repeatedly: {self.state.error}", self.retry_in)

    def _answered(self) -> None:
        self._failures = self._openings = 0
        self._change(connected=True, circuit=Circuit.CLOSED)

    def _failed(self, error: ClientError, probe: bool) -> None:
        self._failures += 1
        circuit = self.state.circuit
        if probe or (circuit is Circuit.CLOSED and self._failures >= self._limit):
            pause = min(self._longest, self._first * 2**self._openings)
            self._opens_until = self._clock() + pause * random.uniform(0.75, 1.0)  # noqa: S311
            self._openings += 1
            circuit = Circuit.OPEN
        self._change(connected=False, circuit=circuit, error=error)

    def _change(
        self, *, connected: bool | None = None, circuit: Circuit | None = None, error: ClientError | None = None
    ) -> None:
        old = new = self.state
        if connected is not None and connected is not old.connected:
            new = replace(new, connected=connected, since=time.time())
        if circuit is not None and circuit is not old.circuit:
            new = replace(new, circuit=circuit)
        if error is not None:
            new = replace(new, error=error, error_at=time.time())
        self.state = new
        if (old.connected, old.circuit) != (new.connected, new.circuit):
            for observer in list(self._observers):
                observer(new)
