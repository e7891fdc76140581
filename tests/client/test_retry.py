"""Retries, under a clock that jumps ahead while everybody sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from nodeserver.client import Circuit, CircuitOpen, DeadlineExceeded, Refused, Unreachable
from nodeserver.client.breaker import Breaker
from nodeserver.client.errors import ClientError, refusal
from nodeserver.client.retry import CAP, backoff, retried

Clock = trio.testing.MockClock


class Request:
    """Fails with ``errors`` in turn, then succeeds; each try takes ``seconds``."""

    def __init__(self, *errors: ClientError, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.tries = 0

    async def __call__(self) -> int:
        self.tries += 1
        await trio.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        return self.tries


def breaker(failures: int = 1000) -> Breaker:
    return Breaker(failures=failures, clock=trio.current_time)


@pytest.mark.parametrize("error", [lambda: Unreachable("down"), lambda: refusal(500, "", b"")])
async def test_again_until_it_succeeds(error: Callable[[], ClientError], autojump_clock: Clock) -> None:
    assert await retried(Request(error(), error(), error()), breaker(), 10) == 4


async def test_a_no_is_final(autojump_clock: Clock) -> None:
    request = Request(Unreachable("down"), refusal(507, "", b""))
    with pytest.raises(Refused) as refused:
        await retried(request, breaker(), 10)
    assert refused.value.tries == request.tries == 2


async def test_time_runs_out_between_tries(autojump_clock: Clock) -> None:
    request = Request(*[refusal(503, "", b"") for _ in range(1000)])
    start = trio.current_time()
    with pytest.raises(Refused):
        await retried(request, breaker(), 10)
    assert 10 - CAP <= trio.current_time() - start <= 10
    assert 10 < request.tries < 100


async def test_time_runs_out_within_a_try(autojump_clock: Clock) -> None:
    start = trio.current_time()
    request = Request(seconds=60)
    with pytest.raises(DeadlineExceeded, match="within 10 s"):
        await retried(request, breaker(), 10)
    assert trio.current_time() - start == pytest.approx(10)
    assert request.tries == 1


async def test_time_runs_out_within_a_later_try(autojump_clock: Clock) -> None:
    with pytest.raises(Refused):
        await retried(Request(refusal(500, "", b""), seconds=7), breaker(), 10)


@pytest.mark.parametrize("deadline", [0, -1])
async def test_no_time_at_all(deadline: float, autojump_clock: Clock) -> None:
    with pytest.raises(DeadlineExceeded):
        await retried(Request(seconds=1), breaker(), deadline)


async def test_cancelled_in_a_pause(autojump_clock: Clock) -> None:
    with trio.move_on_after(1) as scope:
        await retried(Request(*[Unreachable("down") for _ in range(1000)]), breaker(), 60)
    assert scope.cancelled_caught


async def test_an_open_circuit_fails_fast(autojump_clock: Clock) -> None:
    circuit = breaker(failures=2)
    with pytest.raises(Unreachable):
        await retried(Request(*[Unreachable("down")] * 9), circuit, 0.5)
    assert circuit.state.circuit is Circuit.OPEN
    request, start = Request(), trio.current_time()
    with pytest.raises(CircuitOpen):
        await retried(request, circuit, 10)
    assert (request.tries, trio.current_time()) == (0, start)


async def test_a_call_that_has_begun_waits_for_the_circuit(autojump_clock: Clock) -> None:
    request = Request(*[Unreachable("down") for _ in range(6)])
    circuit = breaker(failures=5)
    assert await retried(request, circuit, 30) == 7
    assert circuit.state.circuit is Circuit.CLOSED


def test_full_jitter() -> None:
    for tries, most in ((1, 0.05), (2, 0.1), (3, 0.2), (7, CAP), (10_000, CAP)):
        pauses = [backoff(tries) for _ in range(500)]
        assert 0 <= min(pauses) < 0.1 * most
        assert 0.9 * most < max(pauses) <= most
