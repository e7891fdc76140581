"""One client takes what it likes, and the others are served all the same."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from nodeserver.http import limits
from nodeserver.http.limits import Room, Waiting
from nodeserver.http.logs import BURST, CUT
from nodeserver.http.problems import Refused
from nodeserver.protocol.cluster import ChunksAsked
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MAX_BATCH_CHUNKS, ChunkIds
from tests.conftest import MakeNode
from tests.harness import Node, command, eventually
from tests.nodeserver.api import Api, problem

MakeApi = Callable[[Node], Api]

DESCRIPTORS = 600
"""Of a small server."""
CLIENTS = limits.connections(DESCRIPTORS)
PATIENCE = 15.0
"""Seconds in which an honest client is served, on a slow machine."""


@pytest.fixture
def small(make_node: MakeNode) -> Node:
    return make_node(prefix=["prlimit", f"--nofile={DESCRIPTORS}"])


@contextlib.contextmanager
def connected(node: Node, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Connections on which nothing comes after ``sent``."""
    address = urlsplit(node.url)
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex((address.hostname, address.port))
            sockets.append(connection)
        waiting = select.poll()
        for connection in sockets:
            waiting.register(connection, select.POLLOUT)
        eventually(lambda: len(waiting.poll(0)) == count, PATIENCE, "connected")
        for connection in sockets:
            connection.send(sent)
        yield sockets


def read_token(node: Node) -> str:
    done = command("nodeserver", "token", "--right", "read", "--data", node.data)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def served(api: Api) -> None:
    """Health, a read and a commit. A kept connection may be one of those that were ended: then it asks again."""

    def once() -> bool:
        with contextlib.suppress(httpx.TransportError):
            assert api.http.get("/health").status_code == 200
            api.new_file(b"f%d" % len(api.names()))
            return True
        return False

    api.http.timeout = PATIENCE
    eventually(once, PATIENCE, "served")


@pytest.mark.parametrize("sent", [b"", b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"], ids=["idle", "half-open"])
def test_connections_that_are_not_used(small: Node, make_api: MakeApi, sent: bytes) -> None:
    """More of them than the server can have; one that is used outlasts them."""
    api = make_api(small)
    with connected(small, 2 * CLIENTS, sent):
        for _ in range(3):
            served(api)
        eventually(lambda: "without a request" in small.log.read_text(), PATIENCE)


def test_long_polls(small: Node, make_api: MakeApi) -> None:
    """More of them than there are places: the oldest are answered, the others hear of a commit."""
    api, token = make_api(small), read_token(small)
    poll = (
        f"GET /v1/buckets/{api.name}/changes?since=0&wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    )
    with connected(small, CLIENTS - 20, poll.encode() + b"\r\n") as polls:
        answered = select.poll()
        for connection in polls:
            answered.register(connection, select.POLLIN)
        eventually(lambda: answered.poll(0), PATIENCE, "the oldest are answered")
        assert len(answered.poll(0)) < len(polls) // 2
        served(api)
        eventually(lambda: len(answered.poll(0)) == len(polls), PATIENCE, "all are answered")
        assert all(connection.recv(12) == b"HTTP/1.1 200" for connection in polls)


def test_bodies_that_do_not_come(small: Node, make_api: MakeApi) -> None:
    api, token = make_api(small), read_token(small)
    begun = f"POST /v1/buckets/{api.name}/chunks/missing HTTP/1.1\r\nHost: x\r\nContent-Length: {128 * 1024}\r\n"
    with connected(small, CLIENTS - 20, f"{begun}Authorization: Bearer {token}\r\n\r\n".encode()):
        served(api)


def test_more_than_readers_may_ask(api: Api) -> None:
    wrong, many = ChunkIds([b"x" * 31]), ChunkIds([bytes(32)] * (MAX_BATCH_CHUNKS + 1))
    for path in ("missing", "read"):
        problem(api.request("POST", f"/chunks/{path}", many), Code.TOO_LARGE)
        problem(api.request("POST", f"/chunks/{path}", wrong), Code.MALFORMED)
    for path in ("report", "where"):
        problem(api.request("POST", f"/chunks/{path}", ChunksAsked(many.ids)), Code.TOO_LARGE)
        problem(api.request("POST", f"/chunks/{path}", ChunksAsked(wrong.ids)), Code.MALFORMED)
    problem(api.request("POST", "/chunks/missing", ChunkIds([bytes(100_000)] * 3)), Code.TOO_LARGE)


def test_a_report_of_what_is_not_there_leaves_nothing(api: Api) -> None:
    assert api.request("POST", "/chunks/report", ChunksAsked([bytes(32)])).status_code == 204
    assert api.node.api("GET", "/status")["queued"] == 0


def test_the_log_says_what_happened_and_no_more(node: Node) -> None:
    forged = "/v1/x%0a2026-01-01%20INFO%20root:%20all%20is%20well%0d%1b[2J%e2%80%a8" + "y" * 5_000
    before = node.log.stat().st_size
    address = urlsplit(node.url)
    asked = f"GET {forged} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    count = int(2 * BURST)
    with socket.create_connection((address.hostname, address.port)) as connection:
        answers = connection.makefile("rb")
        for _ in range(count):
            connection.sendall(asked)
            while field := answers.readline().strip():
                if field.lower().startswith(b"content-length:"):
                    length = int(field.split()[1])
            answers.read(length)
    written = node.log.read_bytes()[before:].decode().splitlines()
    assert 0 < len(written) <= count
    for line in written:
        assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ INFO nodeserver\.", line), line
        assert len(line) < 2 * CUT + 200
        assert line.isprintable()


def test_room() -> None:
    """An address gets half; who gives up leaves nothing behind; the others are served in order."""

    async def run() -> None:
        room = Room(100)
        greedy = [await room.take("a", 25), await room.take("a", 25)]
        more = asyncio.create_task(room.take("a", 1))
        gone = asyncio.create_task(room.take("a", 1))
        other = await asyncio.wait_for(room.take("b", 50), PATIENCE)
        gone.cancel()
        await asyncio.wait([gone])
        third = asyncio.create_task(room.take("c", 10))
        await asyncio.sleep(0)
        assert not more.done()
        assert not third.done()
        greedy[0]()
        leave = [await asyncio.wait_for(more, PATIENCE), await asyncio.wait_for(third, PATIENCE)]
        for give_back in (*leave, other, greedy[1]):
            give_back()
        whole = await asyncio.wait_for(room.take("d", 1000), PATIENCE)
        whole()
        assert (room._free, dict(room._taken), room._waiting) == (100, {}, {})

    asyncio.run(run())


def test_room_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.05)

    async def run() -> None:
        room = Room(10)
        await room.take("a", 5)
        with pytest.raises(Refused) as refused:
            await room.take("a", 1)
        assert refused.value.code is Code.BUSY
        (await room.take("b", 5))()

    asyncio.run(run())


def test_places_for_long_polls() -> None:
    """The oldest of who has most makes room; of who asks, when they have half."""

    async def run() -> None:
        waiting, never = Waiting(4), asyncio.Event()

        def poll(address: str) -> asyncio.Task[bool | None]:
            return asyncio.create_task(waiting.wait(address, never.wait()))

        first, second, third = poll("a"), poll("a"), poll("a")
        other = poll("b")
        await asyncio.sleep(0)
        new = poll("b")
        assert await asyncio.wait_for(first, PATIENCE) is None
        newest = poll("b")
        assert await asyncio.wait_for(other, PATIENCE) is None
        never.set()
        assert all(await asyncio.gather(second, third, new, newest))
        assert (waiting._count, waiting._of) == (0, {})

    asyncio.run(run())
