"""Tokens for single nodes: asked for once, used while they are good, kept over restarts."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest

from nodeserver.client.capabilities import AGAIN, Capabilities
from nodeserver.client.errors import Unreachable, refused
from nodeserver.protocol.cluster import PieceTokens
from nodeserver.protocol.errors import Code

NODE, OTHER = b"n" * 16, b"o" * 16


class Server:
    """Gives tokens with a number, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.nodes = [NODE]

    async def __call__(self, *, deadline: float | None = None) -> PieceTokens:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        if self.failure:
            raise self.failure
        return PieceTokens({node: f"{node[:1].decode()}{self.asked}" for node in self.nodes}, 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were added to both clocks."""
    ahead = [0.0]
    real, monotonic = time.time, time.monotonic
    monkeypatch.setattr("nodeserver.client.capabilities.time.time", lambda: real() + ahead[0])
    monkeypatch.setattr("nodeserver.client.capabilities.time.monotonic", lambda: monotonic() + ahead[0])
    return ahead


def test_tokens_are_asked_for_once_and_renewed_in_time(clock: list[float]) -> None:
    server, kept = Server(), list[bytes]()

    async def main() -> None:
        tokens = Capabilities(server, lambda: "own", keep=kept.append)
        token = tokens.of(NODE)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(token)
        assert (await token(), server.asked) == ("n1", 1)
        clock[0] += 501
        assert (await token(), server.asked) == ("n2", 2)
        clock[0] += 501
        server.failure = Unreachable("away")
        assert await token() == "n2"
        token.refused()
        clock[0] += AGAIN + 300
        with pytest.raises(Unreachable):
            await token()
        again = Capabilities(server, lambda: "own", kept[-1])
        assert await again.of(NODE)() == "n2"
        clock[0] += 1000
        with pytest.raises(Unreachable):
            await again.of(NODE)()
        server.failure = None
        clock[0] += AGAIN + 1
        assert (await again.of(NODE)()).startswith("n")
        with pytest.raises(Unreachable):
            await again.of(OTHER)()
        server.nodes.append(OTHER)
        clock[0] += AGAIN + 1
        assert (await again.of(OTHER)()).startswith("o")

    anyio.run(main)


def test_an_earlier_server_gives_none_and_nodes_get_the_clients_own() -> None:
    server = Server()
    server.failure = refused(Code.NO_ROUTE, "old")

    async def main() -> None:
        token = Capabilities(server, lambda: "own", b"damaged").of(NODE)
        assert [await token() for _ in range(3)] == ["own"] * 3
        assert server.asked == 1

    anyio.run(main)
