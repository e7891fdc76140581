"""What history costs: looking back, and having much to look back on."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from benchmarks.systems import BIN, Failed, MountFS, command, running
from benchmarks.workloads import timed
from nodeserver.client import Client, connect
from nodeserver.content.codec import chunk_id, encode
from nodeserver.content.manifest import content_hash
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import Bucket, Commit, Create, File, Manifest, Op, Slice, Write

OPS = 4_000
"""Operations in a commit that prepares a measurement."""
POLLING = 2
"""Requests that a mount sends by itself during a measurement: it asks for news."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    versions: int = 1_000
    directories: int = 10_000
    entries: int = 10_000
    files: int = 10_000
    history: int = 100_000
    rates: int = 1_000
    """Files made, looked up and listed to see whether much history slows that down."""
    repeats: int = 3


QUICK = Sizes(versions=100, directories=200, entries=500, files=500, history=2_000, rates=200)


@dataclass
class Line:
    """A measurement and what it should be at most."""

    what: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.limit is None else self.value <= self.limit


def measure(base: Path, sizes: Sizes, console: Console) -> tuple[list[Line], bool]:
    """All measurements, and whether one is over its limit."""
    lines: list[Line] = []
    for line in _all(base, sizes):
        verdict = {None: "", True: "reached", False: "missed"}[line.reached]
        limit = "" if line.limit is None else f"<= {line.limit:g}"
        console.print(f"{line.what:62} {line.value:10.4g} {line.unit:9} {limit:7} {verdict}", soft_wrap=True)
        lines.append(line)
    return lines, any(line.reached is False for line in lines)


def _all(base: Path, sizes: Sizes) -> Iterator[Line]:
    for part in (_versions, _walk, _moment, _restore):
        with running(MountFS, base / "mountfs") as system:
            yield from part(_Bench(system), sizes)
    yield from _beside_history(base, sizes)


def to_json(about: Mapping[str, Any], lines: list[Line]) -> str:
    """Everything, for a file."""
    found = [{**vars(line), "reached": line.reached} for line in lines]
    return json.dumps({**about, "history": found}, indent=1) + "\n"


class _Bench:
    """A mount, and its server."""

    def __init__(self, system: MountFS) -> None:
        self.system = system
        self.path = system.path

    def requests(self, step: Callable[[], object]) -> int:
        """How many requests the mount sends because of ``step``."""
        before = self.system.requests()
        step()
        return self.system.requests() - before

    def fill(self, work: Callable[[Bucket], Iterator[Op]], stored: list[bytes]) -> None:
        """Commit operations through the API, for what would take long through the mount; store chunks before."""

        async def main() -> None:
            async with connect(self.system.url, self.system.token, metadata_deadline=60) as client:
                bucket = await client.bucket("bench")
                await client.put_chunks(
                    "bench", [(chunk_id(bucket.chunk_key, content), encode(content)) for content in stored]
                )
                await _commit(client, work(bucket))

        trio.run(main)


async def _commit(client: Client, ops: Iterator[Op]) -> None:
    who = new_id()
    some: list[Op] = []
    for op in ops:
        some.append(op)
        if len(some) == OPS:
            await client.commit("bench", Commit(who, new_id(), some))
            some = []
    if some:
        await client.commit("bench", Commit(who, new_id(), some))


def _written(bucket: Bucket, file: bytes, content: bytes, version: bytes, base: bytes = b"") -> Write:
    slices = [Slice(chunk_id(bucket.chunk_key, content), 0, len(content))]
    digest = content_hash(bucket.chunk_key, slices)
    return Write(file, version, len(content), digest, Manifest(slices), 1, 1, base)


def _rewrites(bucket: Bucket, names: int, versions: int, contents: list[bytes], parent: bytes) -> Iterator[Op]:
    """Files in a directory, each with many versions, two contents in turn."""
    for number in range(names):
        file, head = new_id(), b""
        yield Create(parent, b"doc%06d.txt" % number, File(file, 0o100644), 1)
        for turn in range(versions):
            version = new_id()
            yield _written(bucket, file, contents[turn % len(contents)], version, head)
            head = version


def _median(step: Callable[[], object], repeats: int) -> float:
    return statistics.median(timed(step) for _ in range(repeats))


def _versions(bench: _Bench, sizes: Sizes) -> Iterator[Line]:
    """A file of many versions is looked at."""
    contents = [os.urandom(4096), os.urandom(4096), os.urandom(4096)]
    bench.fill(lambda bucket: _rewrites(bucket, 1, sizes.versions, contents, bucket.root), contents)
    bench.system.cold()
    os.listdir(bench.path)
    place = bench.path / ".versions" / "doc000000.txt"
    asked = bench.requests(lambda: os.listdir(place))
    yield Line(f"list {sizes.versions} versions, cold", asked, "requests", 1 + POLLING)
    yield Line("the same, warm", _median(lambda: os.listdir(place), sizes.repeats) * 1000, "ms", 50)

    def attributes() -> int:
        with os.scandir(place) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)

    yield Line("the same with attributes, warm", _median(attributes, sizes.repeats) * 1000, "ms")
    names = sorted(name for name in os.listdir(place) if name not in ("current", "previous"))
    asked = bench.requests(lambda: [(place / name).read_bytes() for name in names[:30]])
    yield Line("read 30 versions of three contents", asked, "requests", len(contents) + POLLING)


def _walk(bench: _Bench, sizes: Sizes) -> Iterator[Line]:
    """A walk over live directories does not ask about history."""
    for number in range(sizes.directories // 100):
        top = bench.path / f"d{number:03}"
        top.mkdir()
        for inner in range(99):
            (top / f"e{inner:02}").mkdir()
    bench.system.durable()
    command("find", bench.path)
    asked = bench.requests(lambda: command("find", bench.path))
    yield Line(f"find over {sizes.directories} directories", asked, "requests", POLLING)


def _moment(bench: _Bench, sizes: Sizes) -> Iterator[Line]:
    """A large directory as it was, beside as it is; both cold."""
    content = os.urandom(4096)
    bench.fill(lambda bucket: _rewrites(bucket, sizes.entries, 1, [content], bucket.root), [content])
    then, live = [], []
    for _ in range(sizes.repeats):
        bench.system.cold()
        live.append(timed(lambda: os.listdir(bench.path)))
        bench.system.cold()
        then.append(timed(lambda: os.listdir(bench.path / ".versions" / "@now")))
    ratio = statistics.median(then) / statistics.median(live)
    yield Line(f"list {sizes.entries} entries as of a moment, to live, cold", ratio, "x", 2)


def _restore(bench: _Bench, sizes: Sizes) -> Iterator[Line]:
    """A deleted tree comes back."""
    content = os.urandom(4096)
    tree = new_id()

    def work(bucket: Bucket) -> Iterator[Op]:
        yield Create(bucket.root, b"tree", File(tree, 0o40755, nlink=2), 1)
        yield from _rewrites(bucket, sizes.files, 1, [content], tree)

    bench.fill(work, [content])
    command("rm", "-rf", bench.path / "tree")
    bench.system.durable()
    seconds = timed(lambda: command(BIN / "mountfs", "undo", bench.path / "tree", env=bench.system.env))
    if len(os.listdir(bench.path / "tree")) != sizes.files:
        raise Failed("the tree is not back")
    yield Line(f"restore a deleted tree of {sizes.files} files", seconds, "s")


def _beside_history(base: Path, sizes: Sizes) -> Iterator[Line]:
    """An empty bucket beside one with much history, in turn."""
    contents = [os.urandom(4096), os.urandom(4096)]
    found: dict[str, dict[str, list[float]]] = {}
    with running(MountFS, base / "empty") as empty, running(MountFS, base / "full") as full:
        each = 100
        old = new_id()

        def work(bucket: Bucket) -> Iterator[Op]:
            yield Create(bucket.root, b"old", File(old, 0o40755, nlink=2), 1)
            yield from _rewrites(bucket, sizes.history // each, each, contents, old)

        _Bench(full).fill(work, contents)
        for turn in range(sizes.repeats):
            for system in (empty, full):
                for what, seconds in _rates(system, system.path / f"turn{turn}", sizes.rates).items():
                    found.setdefault(what, {}).setdefault(str(system.path), []).append(seconds)
        for what, times in found.items():
            ratio = statistics.median(times[str(full.path)]) / statistics.median(times[str(empty.path)])
            yield Line(f"{what} {sizes.rates} files beside {sizes.history} versions, to without", ratio, "x", 1.1)


def _rates(system: MountFS, directory: Path, files: int) -> dict[str, float]:
    names = [directory / f"file{number:05}" for number in range(files)]
    directory.mkdir()

    def make() -> None:
        for name in names:
            name.write_bytes(b"content")
        system.durable()

    create = timed(make)
    system.cold()
    listing = timed(lambda: os.listdir(directory))
    system.cold()
    lookup = timed(lambda: [name.stat() for name in names])
    return {"create": create, "list": listing, "look up": lookup}
