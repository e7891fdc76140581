"""How many commits and look-ups a second node servers do, by database, servers and clients, and by files there are."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import MSGPACK, Bucket, Commit, Create, File, NewBucket, pack, unpack
from tests.harness import Node
from tests.nodeserver.postgres import postgres, programs

CLIENTS = (1, 4, 16)
LINE = "{database:10} {servers} servers {clients:3} clients  buckets: {buckets:13} {what:15} {per_second:9.1f}/s"
BATCH = 100
"""Operations in a large commit."""
SIZES = (10_000, 100_000, 1_000_000)
"""Files that a bucket grows to."""
QUICK_SIZES = (2_000, 10_000)
DIRECTORY = 500
"""Files in each directory, made with it in one commit."""
GROWN = "{database:10} {files:9,} files {clients:3} clients  {what:25} {per_second:9.1f}/s"


@dataclass(frozen=True)
class Line:
    """A measurement."""

    database: str
    servers: int
    clients: int
    buckets: str
    what: str
    per_second: float
    files: int = 0
    """In the bucket when it was measured; 0: few."""


@dataclass(frozen=True)
class Job:
    """What a client does until the time is over."""

    url: str
    token: str
    bucket: str
    root: bytes
    what: str
    seconds: float
    fill: int = 0
    """Full directories to make, instead of working for some seconds."""


def measure(base: Path, seconds: float, console: Console) -> list[Line]:
    """All measurements, each for some seconds."""
    lines = []
    for name, servers in (("SQLite", 1), ("PostgreSQL", 1), ("PostgreSQL", 3)):
        if name == "PostgreSQL" and programs() is None:
            console.print("there is no PostgreSQL")
            continue
        with _servers(base / f"{name}{servers}", name, servers) as nodes:
            for clients in CLIENTS:
                for buckets in ("one", "each its own") if clients > 1 else ("one",):
                    for what in ("commits of 1", f"commits of {BATCH}", "look-ups"):
                        rate = _rate(nodes, clients, buckets == "one", what, seconds)
                        lines.append(Line(name, servers, clients, buckets, what, round(rate, 1)))
                        console.print(LINE.format(**asdict(lines[-1])), soft_wrap=True)
    return lines


def grow(base: Path, seconds: float, sizes: Sequence[int], console: Console) -> list[Line]:
    """The same with 4 clients on one bucket that has more and more files."""
    lines = []
    for name in ("SQLite", "PostgreSQL"):
        if name == "PostgreSQL" and programs() is None:
            continue
        with (
            _servers(base / f"grow{name}", name, 1) as nodes,
            multiprocessing.get_context("spawn").Pool(CLIENTS[1]) as pool,
        ):
            bucket, there = _bucket(nodes[0]), 0
            job = Job(nodes[0].url, nodes[0].token, bucket.name, bucket.root, "", seconds)
            for size in sizes:
                directories, there = (size - there) // DIRECTORY // CLIENTS[1], size
                began = time.monotonic()
                files = sum(pool.map(_fill, [replace(job, fill=directories)] * CLIENTS[1], chunksize=1))
                rates = {f"creates, {DIRECTORY} to a commit": files / (time.monotonic() - began)}
                for what in ("commits of 1", f"commits of {BATCH}", "look-ups"):
                    rates[what] = sum(pool.map(_work, [replace(job, what=what)] * CLIENTS[1], chunksize=1))
                for what, rate in rates.items():
                    lines.append(Line(name, 1, CLIENTS[1], "one", what, round(rate, 1), size))
                    console.print(GROWN.format(**asdict(lines[-1])), soft_wrap=True)
    return lines


def to_json(about: Mapping[str, Any], lines: list[Line]) -> str:
    """Everything, for a file."""
    return json.dumps({**about, "metadata": [asdict(line) for line in lines]}, indent=1) + "\n"


@contextmanager
def _servers(base: Path, database: str, count: int) -> Iterator[list[Node]]:
    base.mkdir()
    with ExitStack() as stack:
        options = []
        if database == "PostgreSQL":
            server = stack.enter_context(
                postgres(fsync="on", full_page_writes="on", autovacuum="on", shared_buffers="256MB")
            )
            options = ["--metadata", server.create()]
        nodes = []
        for number in range(count):
            nodes.append(Node(base / f"node{number}", options=options).start())
            stack.callback(nodes[-1].destroy)
        yield nodes


def _rate(nodes: list[Node], clients: int, one: bool, what: str, seconds: float) -> float:
    shared = _bucket(nodes[0])
    jobs = []
    for number in range(clients):
        node, bucket = nodes[number % len(nodes)], shared if one else _bucket(nodes[0])
        jobs.append(Job(node.url, node.token, bucket.name, bucket.root, what, seconds))
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        return sum(pool.map(_work, jobs, chunksize=1))


def _bucket(node: Node) -> Bucket:
    name = f"bench-{new_id().hex()}"
    connection, headers = _connection(node.url, node.token)
    connection.request("PUT", f"/v1/buckets/{name}", pack(NewBucket(new_id())), headers)
    return unpack(connection.getresponse().read(), Bucket)


def _fill(job: Job) -> int:
    """Make directories full of files; how many files."""
    connection, headers = _connection(job.url, job.token)
    who = new_id()
    for _ in range(job.fill):
        directory = new_id()
        ops = [Create(job.root, directory.hex().encode(), File(directory, 0o040755), 1)]
        ops += [Create(directory, b"%d" % number, File(new_id(), 0o100644), 1) for number in range(DIRECTORY)]
        connection.request("POST", f"/v1/buckets/{job.bucket}/commits", pack(Commit(who, new_id(), ops)), headers)
        _answer(connection)
    return job.fill * DIRECTORY


def _work(job: Job) -> float:
    """Requests answered in a second, one after the other."""
    connection, headers = _connection(job.url, job.token)
    connection.connect()
    who, done, mine = new_id(), 0, new_id().hex().encode()
    began = time.monotonic()
    while (spent := time.monotonic() - began) < job.seconds:
        if job.what == "look-ups":
            connection.request("GET", f"/v1/buckets/{job.bucket}/files/{job.root.hex()}", headers=headers)
        else:
            count = int(job.what.rpartition(" ")[2])
            names = (b"%s-%d-%d" % (mine, done, number) for number in range(count))
            ops = [Create(job.root, name, File(new_id(), 0o100644), 1) for name in names]
            connection.request("POST", f"/v1/buckets/{job.bucket}/commits", pack(Commit(who, new_id(), ops)), headers)
        _answer(connection)
        done += 1
    return done / spent


def _answer(connection: http.client.HTTPConnection) -> None:
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {body!r}")


def _connection(url: str, token: str) -> tuple[http.client.HTTPConnection, dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": MSGPACK, "Accept": MSGPACK}
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60), headers
