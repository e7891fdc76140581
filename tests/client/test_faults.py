"""Each thing that can go wrong on the way gives the right error, in time, and is got over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from nodeserver.client import (
    BadAnswer,
    Circuit,
    CircuitOpen,
    Client,
    ClientError,
    DeadlineExceeded,
    Refused,
    State,
    Unreachable,
    connect,
)
from nodeserver.client.connection import BULK
from nodeserver.protocol.wire import ChunkBatch, Server
from tests.faultproxy import FaultProxy

from .backends import both
from .servers import Answer, ApiServer

SERVER = Server(bytes(16), "1", 1, 5, 100, 50)
CHUNK = bytes(range(32))
DEADLINE = 0.3
SLACK = 1.0
"""Seconds past its deadline in which a call must have ended, on a slow machine."""


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer([Answer(SERVER)]) as server:
        yield server


@pytest.fixture
def proxy(api: ApiServer) -> Iterator[FaultProxy]:
    with FaultProxy(api.url) as proxy:
        yield proxy


def impatient(client: Client) -> Client:
    """With a circuit breaker that opens for a tenth of a second."""
    client._node.breaker._first = 0.1
    return client


async def warm(client: Client) -> None:
    """Have a connection to be reused."""
    assert await client.server() == SERVER


FAULTS: list[tuple[str, dict[str, Any], type[ClientError]]] = [
    ("refuse", {}, Unreachable),
    ("stall", {}, DeadlineExceeded),
    ("garbage", {}, BadAnswer),
    ("garbage-body", {}, BadAnswer),
    ("error", {}, Refused),
    ("error", {"status": 503}, Refused),
    ("cut", {}, Unreachable),
    ("drop", {}, Unreachable),
    ("slow", {"bytes_per_second": 50}, DeadlineExceeded),
    ("delay", {"seconds": 30}, DeadlineExceeded),
]


@both
@pytest.mark.parametrize(("mode", "options", "expected"), FAULTS, ids=[f"{m}{o or ''}" for m, o, _ in FAULTS])
async def test_fault_that_lasts(mode: Any, options: dict[str, Any], expected: type, proxy: FaultProxy) -> None:
    async with connect(proxy.url, "token") as client:
        await warm(client)
        proxy.set(mode, **options)
        begun = anyio.current_time()
        with pytest.raises(expected) as raised:
            await client.server(deadline=DEADLINE)
        assert anyio.current_time() - begun < DEADLINE + SLACK
        assert type(raised.value) is expected
        assert client.state.connected is False
        assert client.state.error is not None


@both
@pytest.mark.parametrize(
    ("mode", "options"), [(m, o) for m, o, kind in FAULTS if m not in ("refuse", "stall", "slow", "delay")]
)
async def test_fault_that_passes(mode: Any, options: dict[str, Any], proxy: FaultProxy) -> None:
    async with connect(proxy.url, "token") as client:
        await warm(client)
        proxy.forget()
        proxy.set(mode, times=2, **options)
        assert await client.server() == SERVER
        assert proxy.count("GET", "/v1/server") == 3
        assert client.state.connected is True


@both
@pytest.mark.parametrize("size", [1000, BULK * 8])
async def test_chunk_against_faults(size: int, api: ApiServer, proxy: FaultProxy) -> None:
    """Up and down, with bodies that the loop moves and such that a thread does."""
    stored = os.urandom(size)
    async with connect(proxy.url, "token", data_deadline=DEADLINE) as client:
        impatient(client)
        for mode, expected in (("stall", DeadlineExceeded), ("cut", Unreachable), ("slow", DeadlineExceeded)):
            api.answers = [Answer(stored, kind="application/octet-stream")]
            proxy.set("pass")
            assert await client.get_chunk("b", CHUNK, deadline=10) == stored
            proxy.set(mode, bytes_per_second=500)  # type: ignore[arg-type]
            begun = anyio.current_time()
            with pytest.raises(expected):
                await client.get_chunk("b", CHUNK)
            if mode != "cut":  # an answer without a body cannot be cut
                with pytest.raises(DeadlineExceeded):
                    await client.put_chunk("b", CHUNK, stored)
            assert anyio.current_time() - begun < 2 * (DEADLINE + SLACK)
            await closed(client, proxy)


async def closed(client: Client, proxy: FaultProxy) -> None:
    """Let requests through until the circuit is closed."""
    proxy.set("pass")
    while client.state.circuit is not Circuit.CLOSED:
        try:
            await client.get_chunk("b", CHUNK)
        except CircuitOpen as error:
            await anyio.sleep(error.retry_in)


@both
async def test_damaged_chunk_is_handed_on(api: ApiServer, proxy: FaultProxy) -> None:
    """Only who knows the bucket's key can tell; but the request is not retried for it."""
    stored = os.urandom(1000)
    api.answers = [Answer(stored, kind="application/octet-stream")]
    proxy.set("flip", times=1)
    async with connect(proxy.url, "token") as client:
        assert await client.get_chunk("b", CHUNK) != stored
        assert await client.get_chunk("b", CHUNK) == stored


@both
async def test_damaged_batch(api: ApiServer, proxy: FaultProxy) -> None:
    api.answers = [Answer(ChunkBatch([(CHUNK, bytes(1000))]))]
    proxy.set("flip", times=1)
    async with connect(proxy.url, "token") as client:
        [(chunk, stored)] = await client.read_chunks("b", [CHUNK])
    assert (chunk, sum(bytes(stored))) == (CHUNK, 0x10)


@both
async def test_breaker_stops_hammering(proxy: FaultProxy) -> None:
    seen: list[State] = []
    async with connect(proxy.url, "token") as client:
        client.observe(seen.append)
        await warm(client)
        proxy.set("error")
        with pytest.raises(Refused):
            await client.server(deadline=1.5)
        assert client.state.circuit is Circuit.OPEN
        asked = proxy.count()
        for _ in range(100):
            with pytest.raises(CircuitOpen) as refused:
                await client.server()
        assert proxy.count() == asked
        proxy.set("pass")
        await anyio.sleep(refused.value.retry_in)
        await warm(client)
    assert [state.connected for state in seen[:2]] == [True, False]
    assert (seen[-1].connected, seen[-1].circuit) == (True, Circuit.CLOSED)


@both
async def test_only_one_probes(proxy: FaultProxy) -> None:
    async with connect(proxy.url, "token") as client:
        impatient(client)
        proxy.set("refuse")
        with pytest.raises(Unreachable):
            await client.server(deadline=1.5)
        assert client.state.circuit is Circuit.OPEN
        proxy.set("stall")
        await anyio.sleep(client._node.breaker.retry_in)
        results: list[ClientError] = []

        async def ask() -> None:
            with pytest.raises(Unreachable) as raised:
                await client.server(deadline=DEADLINE)
            results.append(raised.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
        assert proxy.count(mode="stall") == 1
        assert sorted(type(result).__name__ for result in results) == ["CircuitOpen"] * 9 + ["DeadlineExceeded"]


@both
async def test_server_that_comes_back(proxy: FaultProxy) -> None:
    """A call that began while it was away gets its answer."""
    async with connect(proxy.url, "token") as client:
        proxy.set("refuse")
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                assert await client.server() == SERVER

            tasks.start_soon(ask)
            while client.state.connected is None:
                await anyio.lowlevel.checkpoint()
            proxy.set("pass")


@both
@pytest.mark.parametrize("mode", ["stall", "delay", "refuse", "slow"])
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.server(),
        lambda client: client.get_chunk("b", CHUNK),
        lambda client: client.put_chunk("b", CHUNK, bytes(8 << 20)),
    ],
    ids=["server", "get_chunk", "put_chunk"],
)
async def test_cancellation_is_prompt(mode: Any, call: Callable[[Client], Any], proxy: FaultProxy) -> None:
    async with connect(proxy.url, "token") as client:
        await warm(client)
        proxy.set(mode, seconds=30, bytes_per_second=100)
        with anyio.move_on_after(0.1) as scope:
            await call(client)
        assert scope.cancelled_caught
        assert anyio.current_time() - scope.deadline < SLACK
        assert (
            mode == "refuse" or client.state.circuit is Circuit.CLOSED
        )  # to be refused is a failure, to be cancelled none


@both
async def test_long_polls_do_not_hold_others_up(proxy: FaultProxy) -> None:
    proxy.set("stall", match="/changes")
    async with connect(proxy.url, "token") as client, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(client.changes, "b", 0, 30.0)
        await anyio.to_thread.run_sync(partial(proxy.wait_for, "GET", "/changes", at_least=40))
        begun = anyio.current_time()
        await warm(client)
        assert anyio.current_time() - begun < SLACK
        tasks.cancel_scope.cancel()


@both
async def test_connections_end_with_the_client(proxy: FaultProxy) -> None:
    async with connect(proxy.url, "token") as client, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(warm, client)
    await anyio.to_thread.run_sync(proxy.wait_idle)
