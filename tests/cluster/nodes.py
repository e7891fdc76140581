"""A cluster of real node server processes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nodeserver.chunks.reading import check
from nodeserver.content.codec import CorruptChunk
from tests.faultproxy import FaultProxy
from tests.harness import Node, command, eventually, tail

FAST = ("--beat", "0.3s", "--down-after", "3s", "--repair-after", "2s", "--gc-grace", "2s", "--gc-interval", "2s")
"""Times of a cluster that has no time."""
HEALED = 60.0
"""Seconds that a repair of a test's few chunks may take on a slow machine."""
ZONES = 3


class Cluster:
    """Nodes by number; the first has the metadata, with ``database`` (PostgreSQL) the second too.

    With ``proxied`` the others are reached through proxies, by all but themselves.
    """

    def __init__(self, directory: Path, count: int, *, database: str | None = None, proxied: bool = False) -> None:
        self._directory = directory
        self._proxied = proxied
        self.proxies: dict[Node, FaultProxy] = {}
        directory.mkdir(parents=True)
        self.nodes: list[Node] = []
        for number in range(2 if database else 1):
            options = [*FAST, "--zone", f"z{number}", *(["--metadata", database] if database else [])]
            self.nodes.append(Node(directory / f"node{number}", options=options).start())
        while len(self.nodes) < count:
            self.add()

    @property
    def first(self) -> Node:
        """A server with metadata that runs."""
        return next(node for node in self.nodes[:2] if node.running)

    def add(self, data: Path | None = None) -> Node:
        """Start one more node."""
        number = len(self.nodes)
        options = [*FAST, "--zone", f"z{number % ZONES}", "--join", self.first.url, "--join-token", self.join_token()]
        proxy = FaultProxy("http://127.0.0.1:1") if self._proxied else None
        options += ["--url", proxy.url] if proxy else []
        new_database, Node.new_database = Node.new_database, None
        try:
            node = Node(data or self._directory / f"node{number}", options=options)
        finally:
            Node.new_database = new_database
        self.nodes.append(node)
        node.start()
        if proxy:
            self.proxies[node] = proxy
            proxy.retarget(node.url)
        return node

    def join_token(self) -> str:
        done = command("nodeserver", "token", "join", "--data", self.first.data)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        return done.stdout.strip()

    def id_of(self, node: Node) -> str:
        """A node's id, in hexadecimal."""
        found: str = json.loads((node.data / "node.json").read_text())["id"]
        return found

    def command(self, *words: str) -> tuple[int, str]:
        """Run a command of ``nodeserver`` about the cluster; its exit code and what it printed."""
        done = command("nodeserver", *words, "--data", self.first.data)
        return done.returncode, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        code, said = self.command("status", "--json")
        found: dict[str, Any] = json.loads(said)
        assert code == (not found["healthy"])
        return found

    def states(self) -> dict[str, str]:
        """The state of each node, by its URL."""
        _, said = self.command("nodes", "--json")
        return {node["member"]["url"]: node["state"] for node in json.loads(said)["nodes"]}

    def until_state(self, node: Node, state: str) -> None:
        eventually(lambda: self.states()[node.url] == state, HEALED, f"{node.url} is {state}: {self.states()}")

    def until_healed(self, *, but: Sequence[str] = ()) -> None:
        """Until nothing is wrong, except for problems that have one of these words in them."""

        def healed() -> bool:
            for worker in ("repair", "rebalance"):
                self.command("workers", "run", worker)
            problems = self.status()["problems"]
            return all(any(word in problem for word in but) for problem in problems)

        with contextlib.suppress(AssertionError):
            eventually(healed, HEALED)
            return
        raise AssertionError(f"{self.status()}\n{tail(self.first.log)}")

    def pieces(self) -> dict[str, dict[str, int]]:
        """The pieces of each node that answers, by the node's URL: id in hexadecimal, and size."""
        found: dict[str, dict[str, int]] = {}
        for node in self.nodes:
            if node.running:
                found[node.url] = {}
                for bucket in node.api("GET", "/pieces")["buckets"]:
                    listing = node.api("GET", f"/pieces/{decoded(bucket).hex()}")["pieces"]
                    found[node.url] |= {decoded(piece[0]).hex(): piece[1] for piece in listing}
        return found

    def destroy(self) -> None:
        for node in self.nodes:
            if node.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(node.pid, signal.SIGCONT)
            node.destroy()
        for proxy in self.proxies.values():
            proxy.close()


def decoded(text: str) -> bytes:
    """Bytes as JSON answers have them."""
    return base64.b64decode(text)


def flip(path: Path, rng: random.Random) -> None:
    """Turn one bit of a file, not in its first bytes, which tell what it is."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        at = rng.randrange(size // 2, size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def chunk_files(node: Node) -> list[Path]:
    """The files that hold one chunk or fragment each."""
    return sorted(path for kind in ("files", "fragments") for path in (node.data / "chunks").glob(f"*/{kind}/*/*"))


def intact(path: Path) -> bool:
    """Whether the checksum of a chunk or fragment in a file of its own is right."""
    try:
        check([(bytes.fromhex(path.name), path.read_bytes())])
    except CorruptChunk:
        return False
    return True


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """The node's process stands still inside the block."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


Loss = Callable[[Node], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def killed(node: Node) -> Iterator[None]:
    """The node's process is gone inside the block."""
    node.kill()
    try:
        yield
    finally:
        node.start()
