"""The circuit breaker, with a clock that the test turns."""

from __future__ import annotations

import contextlib

import pytest

from nodeserver.client import Circuit, CircuitOpen, Refused, State, Unreachable
from nodeserver.client.breaker import Breaker
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import Problem


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, first=1.0, longest=5.0, clock=clock)


def circuit(breaker: Breaker) -> Circuit:
    return breaker.state.circuit


def fail(breaker: Breaker, times: int = 1, error: Exception | None = None) -> None:
    for _ in range(times):
        with contextlib.suppress(Unreachable, Refused), breaker.request():
            raise error or Unreachable("down")


def succeed(breaker: Breaker) -> None:
    with breaker.request():
        pass


def refusal(code: Code) -> Refused:
    return Refused(Problem(type=code.uri, title=code.title, status=code.status))


def test_nothing_is_known_before_the_first_request(breaker: Breaker) -> None:
    assert (breaker.state.connected, breaker.state.circuit) == (None, Circuit.CLOSED)


def test_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    fail(breaker, 2)
    succeed(breaker)
    fail(breaker, 2)
    assert circuit(breaker) is Circuit.CLOSED
    fail(breaker)
    assert circuit(breaker) is Circuit.OPEN
    with pytest.raises(CircuitOpen, match="down") as refused:
        succeed(breaker)
    assert 0.75 <= refused.value.retry_in <= 1.0


def test_one_probe_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.0
    with breaker.request():
        assert circuit(breaker) is Circuit.PROBING
        with pytest.raises(CircuitOpen):
            succeed(breaker)
    assert circuit(breaker) is Circuit.CLOSED
    fail(breaker, 2)
    assert circuit(breaker) is Circuit.CLOSED


def test_a_failed_probe_opens_it_for_longer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    for longest in (2.0, 4.0, 5.0, 5.0):
        clock.now += breaker.retry_in
        fail(breaker)
        assert 0.75 * longest <= breaker.retry_in <= longest


def test_a_cancelled_probe_lets_the_next_one_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.0
    with pytest.raises(KeyboardInterrupt), breaker.request():
        raise KeyboardInterrupt
    succeed(breaker)
    assert circuit(breaker) is Circuit.CLOSED


def test_late_outcomes_of_requests_let_through_before(breaker: Breaker) -> None:
    """Failures after the opening do not prolong it; a success closes the circuit."""
    with contextlib.ExitStack() as late:
        late.enter_context(breaker.request())
        fail(breaker, 3)
        before = breaker.retry_in
        assert circuit(breaker) is Circuit.OPEN
        assert breaker.retry_in == before
    assert circuit(breaker) is Circuit.CLOSED


@pytest.mark.parametrize("code", [Code.NO_FILE, Code.UNAUTHORIZED, Code.FULL, Code.CORRUPT])
def test_a_server_that_says_no_is_well(breaker: Breaker, code: Code) -> None:
    fail(breaker, 5, refusal(code))
    assert (breaker.state.connected, breaker.state.circuit) == (True, Circuit.CLOSED)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.BUSY])
def test_a_server_that_fails_is_not(breaker: Breaker, code: Code) -> None:
    fail(breaker, 3, refusal(code))
    assert (breaker.state.connected, breaker.state.circuit) == (False, Circuit.OPEN)


def test_observers(breaker: Breaker, clock: Clock) -> None:
    seen: list[State] = []
    stop = breaker.observe(seen.append)
    succeed(breaker)
    succeed(breaker)
    fail(breaker, 3)
    clock.now = 1.0
    succeed(breaker)
    assert [(state.connected, state.circuit) for state in seen] == [
        (True, Circuit.CLOSED),
        (False, Circuit.CLOSED),
        (False, Circuit.OPEN),
        (False, Circuit.PROBING),
        (True, Circuit.CLOSED),
    ]
    assert isinstance(seen[1].error, Unreachable)
    assert seen[-1].error is not None  # kept, with its time
    assert seen[1].since <= seen[1].error_at <= seen[-1].since
    stop()
    fail(breaker)
    assert len(seen) == 5
