"""A server whose answers parse, or nearly, and are not true: it costs its callers errors, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import httpx
import msgspec

from nodeserver.client import ClientError, connect
from nodeserver.client.api import Client
from nodeserver.client.transport import Body
from nodeserver.protocol import cluster, wire
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import MSGPACK
from tests.conftest import MakeMount
from tests.fuzz.mutation import mutated, plain, torn
from tests.harness import Mount, Node, eventually, tail
from tests.nodeserver.api import Api

CASES = 10_000
DEADLINE = 4
"""Seconds, of the mount; a call may take some of them one after the other."""
CALL = 60.0
"""Seconds in which a call of the file system ends, on a slow machine."""

FILE = wire.File(bytes(16), 0o100644, size=3, version=bytes(16), manifest=wire.Manifest([wire.Slice(bytes(32), 0, 3)]))
DIRECTORY = wire.File(bytes(16), 0o040755)
USAGE = wire.Usage(1, 1, None, 1 << 40, 1 << 39)
BUCKET = wire.Bucket(bytes(16), "docs", bytes(16), bytes(32), 1, 1, USAGE, "")

Call = Callable[[Client], Awaitable[Any]]
CALLS: list[tuple[Any, Call]] = [
    (wire.Server(bytes(16), "1", 1, 1, 1, 1, bytes(16), 1, []), lambda client: client.server()),
    (wire.Buckets([BUCKET]), lambda client: client.buckets()),
    (BUCKET, lambda client: client.bucket("docs")),
    (wire.Committed(1, 1, [wire.Result()]), lambda client: client.commit_packed("docs", b"")),
    (wire.FileAnswer(1, FILE), lambda client: client.file("docs", bytes(16))),
    (wire.FileAnswer(1, FILE), lambda client: client.lookup("docs", bytes(16), b"name")),
    (wire.Listing(1, DIRECTORY, [wire.Entry(b"a", FILE), wire.Entry(b"b", FILE)]), lambda client: _listing(client)),
    (wire.TreeListing(1, DIRECTORY, [wire.Entry(b"a/b", FILE)]), lambda client: _tree(client)),
    (wire.PastNames(1, [wire.PastName(b"a", 1, True, 1)]), lambda client: _names(client)),
    (wire.Events([wire.Event(1, 1, "create", b"a", bytes(16), 0)], 1), lambda client: _log(client)),
    (wire.Changes(1, [], USAGE, "", 1), lambda client: client.changes("docs", 0)),
    (wire.ChunkIds([bytes(32)]), lambda client: client.missing("docs", [bytes(32)])),
    ({"chunks": [(bytes(32), b"stored")]}, lambda client: client.read_chunks("docs", [bytes(32)] * 2)),
    (cluster.ClusterAnswer(bytes(16), 1, b""), lambda client: client.cluster()),
    ({"pieces": [(bytes(32), b"stored")]}, lambda client: client.peer("http://x").read(bytes(16), [bytes(32)])),
    (cluster.Pieces([cluster.Held(bytes(32), 1, 1)]), lambda client: client.peer("http://x").find(bytes(16), [])),
]


async def _listing(client: Client) -> None:
    after, more = b"", True
    while more:
        page = await client.entries("docs", bytes(16), after)
        more = page.more
        after = page.entries[-1].name if more else b""


async def _tree(client: Client) -> None:
    after, more = b"", True
    while more:
        page = await client.tree("docs", bytes(16), None, after)
        more = page.more
        after = page.entries[-1].name if more else b""


async def _names(client: Client) -> None:
    after, more = b"", True
    while more:
        page = await client.names("docs", bytes(16), after)
        more = page.more
        after = page.names[-1].name if more else b""


async def _log(client: Client) -> None:
    before = (await client.log("docs", bytes(16))).before
    while before:
        before = (await client.log("docs", bytes(16), before)).before


class Liar(httpx.AsyncBaseTransport):
    """Answers every request with the same lie."""

    answer = b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return httpx.Response(200, headers={"content-type": MSGPACK}, stream=Body(self.answer))


def test_the_client(soak: int) -> None:
    """Whatever an answer says, a call ends, and with nothing but a ClientError."""
    seed = os.environ.get("SEED", "1")

    async def run() -> None:
        rng, liar = random.Random(seed), Liar()
        async with connect("http://x", "token", metadata_deadline=0.001, data_deadline=0.001, transport=liar) as client:
            for number in range(CASES * soak):
                truth, call = rng.choice(CALLS)
                value = plain(truth)
                for _ in range(rng.choice([0, 1, 1, 2, 4])):
                    value = mutated(rng, value)
                if isinstance(value, dict) and "more" in value and rng.random() < 0.3:
                    value["more"] = True
                packed = msgspec.msgpack.encode(value)
                liar.answer = torn(rng, packed) if rng.random() < 0.2 else packed
                try:
                    with anyio.fail_after(CALL), contextlib.suppress(ClientError):
                        await call(client)
                except BaseException as error:
                    raise AssertionError(f"SEED={seed}, case {number}: {liar.answer[:500]!r}") from error

    anyio.run(run, backend="trio")


class LyingProxy:
    """Before a server: of the answers it lets through some are changed, at a ``rate``."""

    def __init__(self, server: Node, seed: str) -> None:
        self._address = urlsplit(server.url).netloc
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self.rate = 0.0
        self.lies = 0

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def twisted(self, kind: str, body: bytes) -> bytes:
        with self._lock:
            if self._rng.random() >= self.rate or not body:
                return body
            self.lies += 1
            if kind != MSGPACK or self._rng.random() < 0.1:
                return torn(self._rng, body)
            value = msgspec.msgpack.decode(body, strict=False)
            if isinstance(value, dict) and "more" in value and self._rng.random() < 0.3:
                value["more"] = True
            elif isinstance(value, dict) and "seq" in value and self._rng.random() < 0.2:
                value["seq"] = self._rng.choice([0, value["seq"] - 1])
            else:
                value = mutated(self._rng, value)
            return msgspec.msgpack.encode(value)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    super().handle()

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                connection = http.client.HTTPConnection(proxy._address, timeout=CALL)
                with contextlib.closing(connection):
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    kind = answer.getheader("Content-Type", "")
                    data = proxy.twisted(kind, answer.read())
                self.send_response(answer.status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        Handler.disable_nagle_algorithm = True
        return Handler


class _Becoming(LyingProxy):
    """It says of every operation of a commit that it ended in ``result``."""

    result: wire.Result | None = None

    def twisted(self, kind: str, body: bytes) -> bytes:
        value = msgspec.msgpack.decode(body, strict=False) if kind == MSGPACK else None
        if self.result is None or not isinstance(value, dict) or "results" not in value:
            return body
        self.lies += 1
        value["results"] = [self.result for _ in value["results"]]
        return msgspec.msgpack.encode(value)


def test_a_directory_does_not_become_one_it_is_in(node: Node, make_mount: MakeMount) -> None:
    api = Api(node, "becoming")
    with contextlib.closing(api.http), _Becoming(node, "") as proxy:
        mount = make_mount(node, "becoming", url=proxy.url)
        proxy.result = wire.Result("conflict", api.root, b"directory", api.root)
        (mount.path / "directory").mkdir()
        eventually(lambda: proxy.lies, CALL, "a lie")
        proxy.result = None
        for _ in range(2):
            eventually(lambda: os.listdir(mount.path) == ["directory"], CALL, "the directory")
            assert os.listdir(mount.path / "directory") == []
            mount.stop()
            mount.start()


def use(mount: Mount, rng: random.Random) -> None:
    """Do something with the files; it may fail."""
    path = mount.path / f"d{rng.randrange(3)}"
    file = path / f"f{rng.randrange(6)}"
    with contextlib.suppress(OSError):
        match rng.randrange(8):
            case 0:
                path.mkdir()
            case 1:
                os.listdir(path)
            case 2:
                file.read_bytes()
            case 3:
                file.write_bytes(rng.randbytes(rng.choice([10, 5000, 600_000])))
            case 4:
                with file.open("ab") as opened:
                    opened.write(b"more")
                    opened.flush()
                    os.fsync(opened.fileno())
            case 5:
                file.rename(path / f"f{rng.randrange(6)}")
            case 6:
                file.stat()
            case _:
                file.unlink()


def test_a_mount(node: Node, make_mount: MakeMount, soak: int) -> None:
    """No call hangs, the daemon lives, and from a fresh mount afterwards everything can be used."""
    node.create_bucket("docs")
    seed = os.environ.get("SEED", "1")
    rng = random.Random(seed)
    options = {"metadata-deadline": str(DEADLINE), "data-deadline": str(DEADLINE)}
    with LyingProxy(node, seed) as proxy:
        mount = make_mount(node, "docs", url=proxy.url, options=options)
        other = make_mount(node, "docs")
        for number in range(150 * soak):
            proxy.rate = rng.choice([0, 0.1, 0.5, 1])
            done = threading.Thread(target=use, args=(mount, random.Random(f"{seed}-{number}")), daemon=True)
            done.start()
            with contextlib.suppress(OSError):
                (other.path / f"d{rng.randrange(3)}" / f"f{rng.randrange(6)}").write_bytes(new_id())
            done.join(CALL)
            assert not done.is_alive(), f"SEED={seed}, {number}: a call hangs\n{tail(mount.log)}"
            assert mount.alive, f"SEED={seed}, {number}: the daemon ended\n{tail(mount.log)}"
        assert proxy.lies
        proxy.rate = 0
        eventually(lambda: mount.status()["version"], CALL, "it tells of itself")
    fresh = make_mount(node, "docs")
    (fresh.path / "after").write_bytes(b"all is well")
    fresh.sync()
    assert (fresh.path / "after").read_bytes() == b"all is well"
