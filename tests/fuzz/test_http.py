"""Mutated requests to every route, with every kind of token, at real servers: an answer each time, never a 5xx, and the
server is afterwards what it was."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from nodeserver.content.codec import encode
from nodeserver.http import buckets, chunks, cluster, commits, files, history, node, pieces, status, upkeep, workers
from nodeserver.http.limits import READERS
from nodeserver.protocol.cluster import ChunksAsked, NodeChange, PieceBatch, PieceIds
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    JSON,
    MSGPACK,
    BucketSettings,
    ChunkBatch,
    ChunkIds,
    Exchange,
    Link,
    NewBucket,
    NewHold,
    Op,
    Policy,
    Purge,
    Rename,
    SetAttr,
    Unlink,
)
from tests.fuzz.mutation import TEXTS, mutated, nested, plain, torn
from tests.harness import Node, command, tail
from tests.nodeserver.api import DIRECTORY, Api, base64url

CASES = 10_000
THREADS = 4
ANSWER = 60.0
"""Seconds in which every request is answered, on a slow machine."""
MODULES = (buckets, chunks, cluster, commits, files, history, node, pieces, status, upkeep, workers)
TRUSTED = ("/v1/cluster/join", "/v1/cluster/beat")
"""Who may use these makes other nodes part of the cluster, which are not there: not asked with a token that may."""


@dataclass
class Case:
    """A request that is right, but for what is done to it."""

    method: str
    route: str
    path: dict[str, str]
    query: dict[str, str]
    body: Any = None


class Corpus:
    """A bucket with something in it, and a right request to every route about it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        directory, self.file = api.create(b"dir", DIRECTORY), api.new_file(b"file", b"content")
        api.commit(directory)
        self.files = [self.file.hex(), directory.file.id.hex(), api.root.hex()]
        name = base64url(b"file")
        version = api.file(self.file).version.hex()
        chunk = api.put_chunk(b"some content")
        path = {
            "bucket": api.name,
            "file": self.file.hex(),
            "version": version,
            "chunk": chunk.hex(),
            "piece": chunk.hex(),
            "node": bytes(16).hex(),
            "name": "gc",
        }
        query = {"since": "0", "wait": "0", "limit": "10", "at": "1", "name": name, "after": "", "before": "0"}
        query |= {"time_ns": "1", "epoch": "0", "first": "0", "beyond": "256", "under": "", "rate": "0"}
        stored = [(chunk, encode(b"some content"))]
        operations: list[Op] = [
            api.create(b"new", uid=1, target=b"x", xattrs={b"user.a": b"b"}),
            Link(api.root, b"link", self.file, 1),
            Rename(api.root, b"file", self.file, directory.file.id, b"moved", 1),
            Exchange(api.root, b"file", self.file, api.root, b"dir", directory.file.id, 1),
            SetAttr(self.file, 1, 0o600, 1, 1, 1, 1, {b"user.b": b"c"}),
            Unlink(api.root, b"file", self.file, 1),
            api.write(self.file, b"more"),
        ]
        commit = plain(api.batch(*operations[:1]))
        commit["chunks"] = stored
        self.operations = [plain(operation) for operation in operations]
        self.bodies: dict[tuple[str, str], Any] = {
            ("PUT", "/v1/buckets/{bucket}"): NewBucket(new_id()),
            ("PATCH", "/v1/buckets/{bucket}"): BucketSettings(1 << 40, "replicate:1"),
            ("POST", "/v1/buckets/{bucket}/commits"): commit,
            ("POST", "/v1/buckets/{bucket}/chunks"): ChunkBatch(stored),
            ("PUT", "/v1/buckets/{bucket}/chunks/{chunk}"): stored[0][1],
            ("POST", "/v1/buckets/{bucket}/chunks/missing"): ChunkIds([chunk]),
            ("POST", "/v1/buckets/{bucket}/chunks/read"): ChunkIds([chunk]),
            ("POST", "/v1/buckets/{bucket}/chunks/where"): ChunksAsked([chunk]),
            ("POST", "/v1/buckets/{bucket}/chunks/report"): ChunksAsked([chunk]),
            ("PUT", "/v1/buckets/{bucket}/retention/{file}"): Policy([(60, 60)], 5, 1000, 0.5, ["*.o"]),
            ("PUT", "/v1/buckets/{bucket}/holds/{file}"): NewHold("why"),
            ("POST", "/v1/buckets/{bucket}/purge"): Purge(api.root, b"file", [bytes.fromhex(version)]),
            ("POST", "/v1/nodes/{node}"): NodeChange("up", 1.0),
            ("POST", "/v1/nodes/{node}/preview"): NodeChange("draining", 1.0),
            ("POST", "/v1/pieces/{bucket}"): PieceBatch(stored),
            ("PUT", "/v1/pieces/{bucket}/{piece}"): stored[0][1],
            ("POST", "/v1/pieces/{bucket}/read"): PieceIds([chunk]),
            ("POST", "/v1/pieces/{bucket}/find"): ChunksAsked([chunk]),
            ("POST", "/v1/pieces/{bucket}/delete"): PieceIds([bytes(32)]),
            ("POST", "/v1/cluster/join"): {"member": {"id": bytes(16), "url": "http://127.0.0.1:1", "version": "1"}},
            ("POST", "/v1/cluster/beat"): {"member": {"id": bytes(16), "url": "http://127.0.0.1:1", "version": "1"}},
        }
        self.cases = [
            Case(method, route.path, self._path(route.path, path), query, self.bodies.get((method, route.path)))
            for module in MODULES
            for route in module.ROUTES
            for method in methods(route)
        ]

    def _path(self, route: str, path: dict[str, str]) -> dict[str, str]:
        return path | {"bucket": self.api.bucket.id.hex()} if route.startswith("/v1/pieces") else path


def methods(route: Any) -> list[str]:
    """Those of a route."""
    if route.methods:
        return sorted(route.methods - {"HEAD"})
    return [name.upper() for name in ("get", "head", "put", "patch", "post", "delete") if hasattr(route.endpoint, name)]


@dataclass
class Tokens:
    """What a request shows, and whether that lets it change things."""

    admin: str
    read: str
    join: str

    def pick(self, rng: random.Random, route: str) -> list[tuple[str, str]]:
        good = [self.read] if route in TRUSTED else [self.admin] * 10 + [self.read] * 3 + [self.join]
        match rng.random():
            case chance if chance < 0.04:
                return []
            case chance if chance < 0.08:
                text = torn(rng, self.admin.encode()).decode("latin-1")
                return [("Authorization", "Bearer " + "".join(c for c in text if c.isprintable()))]
            case chance if chance < 0.1:
                return [
                    ("Authorization", rng.choice(["", "Bearer", "Basic eDp5", "bearer \t x", "Bearer " + "a" * 9000]))
                ]
            case _:
                return [("Authorization", f"Bearer {rng.choice(good)}")]


def request(rng: random.Random, corpus: Corpus, tokens: Tokens) -> tuple[str, str, bytes, list[tuple[str, str]]]:
    """One mutated request: method, target, body, headers."""
    case = rng.choice(corpus.cases)
    path, query, body, method = dict(case.path), dict(case.query), case.body, case.method
    if case.route.endswith("/commits") and method == "POST":
        body = dict(body, batch=new_id(), ops=rng.choices(corpus.operations, k=rng.choice([1, 1, 2, 5])))
    path["file"] = rng.choice(corpus.files)
    what = rng.random()
    if what < 0.15:
        key = rng.choice([*path])
        path[key] = rng.choice([*TEXTS, path[key].upper(), path[key] + "00", path[key][2:], "x" * 5000])
    elif what < 0.35:
        key = rng.choice([*query])
        query[key] = rng.choice(["-1", "1e3", str(1 << 63), str(1 << 64), "0.01", *TEXTS, "9" * 400, "YWJj", "ab" * 16])
    elif what < 0.4:
        method = rng.choice(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
    query["wait"] = "0"
    kind = MSGPACK
    data = body if isinstance(body, bytes) else b"" if body is None else encoded(rng, plain(body), what > 0.4)
    if what > 0.9:
        data = nested(rng) if rng.random() < 0.05 else torn(rng, data)
    if rng.random() < 0.1:
        kind = rng.choice([JSON, "", "text/html", MSGPACK.upper(), "application/msgpack; charset=x"])
    target = case.route
    for key, value in path.items():
        target = target.replace(f"{{{key}}}", quote(value, safe=""))
    asked = "&".join(
        f"{key}={quote(value, safe='')}" for key, value in query.items() if rng.random() < 0.7 or key == "name"
    )
    headers = [
        ("Content-Type", kind),
        ("Accept", rng.choice([MSGPACK, JSON, "*/*", "x"])),
        *tokens.pick(rng, case.route),
    ]
    return method, f"{target}?{asked}", data, headers


def encoded(rng: random.Random, body: Any, change: bool) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4]) if change else 0):
        body = mutated(rng, body)
    return msgspec.msgpack.encode(body)


class Talker:
    """Sends requests, and keeps what was not answered as it should be."""

    def __init__(self, server: Node, seed: str, count: int, corpus: Corpus, tokens: Tokens) -> None:
        self._address = urlsplit(server.url).netloc
        self._rng = random.Random(seed)
        self._count = count
        self._corpus = corpus
        self._tokens = tokens
        self._connection = self._connect()
        self.wrong: list[str] = []
        self.statuses: dict[int, int] = {}

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=ANSWER)

    def run(self) -> None:
        try:
            for number in range(self._count):
                self._ask(number)
                if len(self.wrong) > 20:
                    break
        except BaseException as error:
            self.wrong.append(repr(error))
        finally:
            self._connection.close()

    def _ask(self, number: int) -> None:
        method, target, body, headers = request(self._rng, self._corpus, self._tokens)
        try:
            code = self._exchange(method, target, body, headers)
        except TimeoutError:
            self.wrong.append(f"{number}: no answer to {method} {target[:300]}")
            self._reconnect()
            return
        self.statuses[code] = self.statuses.get(code, 0) + 1
        if code >= 500:
            shown = b""
            with contextlib.suppress(Exception):
                shown = json.dumps(plain(msgspec.msgpack.decode(body)), default=repr)[:600].encode()
            self.wrong.append(f"{number}: {code} to {method} {target[:300]} {shown or body[:200]!r}")

    def _exchange(self, method: str, target: str, body: bytes, headers: list[tuple[str, str]]) -> int:
        for last in (False, True):
            try:
                self._connection.putrequest(method, target, skip_accept_encoding=True)
                for name, value in headers:
                    self._connection.putheader(name, value.encode("latin-1", "replace"))
                self._connection.putheader("Content-Length", str(len(body)))
                self._connection.endheaders(body)
                answer = self._connection.getresponse()
                answer.read()
            except (http.client.HTTPException, ConnectionError):
                # One that was refused before its body had come ends the connection, and maybe the next request with it.
                self._reconnect()
                if last:
                    return 0
                continue
            if answer.will_close:
                self._reconnect()
            return answer.status
        raise AssertionError

    def _reconnect(self) -> None:
        self._connection.close()
        self._connection = self._connect()


def memory(server: Node, key: str = "VmRSS") -> int:
    """Bytes that a server has."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise AssertionError(key)


def token(server: Node, *options: str) -> str:
    done = command("nodeserver", "token", *options, "--data", server.data)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_mutated_requests(node: Node, make_api: Callable[[Node], Api], soak: int) -> None:
    api = make_api(node)
    corpus = Corpus(api)
    tokens = Tokens(node.token, token(node, "--right", "read"), token(node, "join"))
    idle = memory(node)
    seed = os.environ.get("SEED", "1")
    talkers = [Talker(node, f"{seed}-{number}", CASES * soak // THREADS, corpus, tokens) for number in range(THREADS)]
    threads = [threading.Thread(target=talker.run) for talker in talkers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [line for talker in talkers for line in talker.wrong]
    assert not wrong, "\n".join([f"SEED={seed}", *wrong[:20], tail(node.log)])
    assert "Traceback" not in node.log.read_text(), tail(node.log)
    seen = {code for talker in talkers for code in talker.statuses}
    assert {200, 204, 400, 401, 403, 404, 405} <= seen
    assert memory(node) < 2 * idle + READERS, f"{memory(node) >> 20} MiB after {idle >> 20}"
    assert make_api(node).names() == []


GARBAGE = [
    b"\0" * 100,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/server HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/server HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000,
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]


@pytest.fixture
def sender(module_node: Node) -> Callable[[bytes], bytes]:
    address = urlsplit(module_node.url)

    def send(data: bytes) -> bytes:
        with socket.create_connection((address.hostname, address.port), timeout=ANSWER) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return connection.recv(12)
            except OSError:  # it was cut off
                return b""

    return send


def test_what_is_no_request(module_node: Node, sender: Callable[[bytes], bytes], soak: int) -> None:
    """Bytes that are not HTTP, or nearly: refused or cut off, and nothing comes of it."""
    rng = random.Random(os.environ.get("SEED", "1"))
    for number in range(200 * soak):
        data = GARBAGE[number % len(GARBAGE)]
        answer = sender(data if number < len(GARBAGE) else torn(rng, data))
        assert not answer.startswith(b"HTTP/1.1 5"), (answer, data[:300])
    assert module_node.api("GET", "/buckets") == {"buckets": []}
    assert "Traceback" not in module_node.log.read_text(), tail(module_node.log)
