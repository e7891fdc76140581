"""Saving, deleting, restoring, uploading late, purging, thinning and collecting, all at once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodeserver.content.codec import chunk_id, encode
from nodeserver.content.manifest import content_hash
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    ChunkBatch,
    ChunkIds,
    Committed,
    Manifest,
    Op,
    Policy,
    Purge,
    Slice,
    Unlink,
    Write,
    unpack,
)
from tests.conftest import MakeNode
from tests.harness import Node, disk_use
from tests.nodeserver.api import Api, problem
from tests.nodeserver.keeping import collect, manifests, needed, read_manifest, set_policy, shelf, stored, worker

SIZES = [300, 4000, 4000, 30_000, 70_000, 150_000]
SECONDS = 8.0
SAVERS = 6
GRACE = 0.15
BALLAST = 2000
"""Files that never change: marking takes a while, as it does with many, so that commits get in between."""


class Saver:
    """A client that works on files of its own, with contents that all clients share, and knows what is acknowledged."""

    def __init__(self, api: Api, number: int, contents: list[bytes]) -> None:
        self.api = api.another(f"saver{number}")
        self.rng = random.Random(number)
        self.contents = contents
        self.files: dict[bytes, tuple[bytes, bytes]] = {}
        """Name to id and head."""
        self.acknowledged: dict[bytes, list[bytes]] = {}
        """Version to the pieces of its content."""
        self.refused = 0

    def work(self, until: float) -> None:
        steps: list[Callable[[], None]] = [
            self.save,
            self.save,
            self.save_late,
            self.save_known,
            self.restore,
            self.delete,
        ]
        while time.monotonic() < until:
            self.rng.choice(steps)()

    def pieces(self) -> list[bytes]:
        return [self.rng.choice(self.contents) for _ in range(self.rng.randint(1, 3))]

    def upload(self, pieces: list[bytes], *, only_missing: bool = False) -> None:
        chunks = {chunk_id(self.api.bucket.chunk_key, piece): piece for piece in pieces}
        wanted = list(chunks)
        if only_missing:
            wanted = unpack(self.api.request("POST", "/chunks/missing", ChunkIds(wanted)).content, ChunkIds).ids
        batch = ChunkBatch([(chunk, encode(chunks[chunk])) for chunk in wanted])
        if wanted:
            assert self.api.request("POST", "/chunks", batch).status_code == 204

    def save(self) -> None:
        pieces = self.pieces()
        self.upload(pieces)
        self.write(pieces)

    def save_late(self) -> None:
        """Upload, and commit when the chunks may have been taken for garbage, or be about to be."""
        pieces = self.pieces()
        self.upload(pieces)
        self.think()
        self.write(pieces)

    def save_known(self) -> None:
        """Commit what the server said it had, a while ago."""
        pieces = self.pieces()
        self.upload(pieces, only_missing=True)
        self.think()
        self.write(pieces)

    def restore(self) -> None:
        """Commit an old content again without a look at what is stored."""
        if self.acknowledged:
            version = self.rng.choice(list(self.acknowledged))
            self.write(self.acknowledged[version])

    def delete(self) -> None:
        if self.files:
            name = self.rng.choice(list(self.files))
            id_, _ = self.files.pop(name)
            self.send(Unlink(self.api.root, name, id_, time.time_ns()))

    def think(self) -> None:
        time.sleep(self.rng.uniform(0, 3 * GRACE))

    def write(self, pieces: list[bytes]) -> None:
        """Commit a content to a file, old or new; what is missing is uploaded, as often as it takes."""
        api = self.api
        name = b"%s.%d" % (api.client_name.encode(), self.rng.randrange(3))
        ops: list[Op] = []
        if name in self.files:
            id_, base = self.files[name]
        else:
            create = api.create(name)
            ops.append(create)
            id_, base = create.file.id, b""
        slices = [Slice(chunk_id(api.bucket.chunk_key, piece), 0, len(piece)) for piece in pieces]
        size, hash_ = sum(map(len, pieces)), content_hash(api.bucket.chunk_key, slices)
        op = Write(id_, new_id(), size, hash_, Manifest(slices), time.time_ns(), time.time_ns(), base)
        answer = self.send(*ops, op, pieces=pieces)
        result = answer.results[-1]
        assert result.status in ("ok", "same"), result
        head = result.version if result.status == "same" else op.version
        self.files[name] = (id_, head)
        self.acknowledged[head] = pieces

    def send(self, *ops: Op, pieces: list[bytes] | None = None) -> Committed:
        batch = self.api.batch(*ops)
        while True:
            answer = self.api.request("POST", "/commits", batch)
            if answer.status_code == 200:
                return unpack(answer.content, Committed)
            problem(answer, Code.MISSING_CHUNKS)
            assert pieces is not None
            self.refused += 1
            self.upload(pieces, only_missing=self.rng.random() < 0.5)


def load(api: Api) -> None:
    """Make the files that never change."""
    content = os.urandom(100)
    chunk = api.put_chunk(content)
    slices = [Slice(chunk, 0, len(content))]
    hash_ = content_hash(api.bucket.chunk_key, slices)
    for start in range(0, BALLAST, 2000):
        ops: list[Op] = []
        for number in range(start, start + 2000):
            create = api.create(b"ballast%d" % number)
            ops += (create, Write(create.file.id, new_id(), len(content), hash_, Manifest(slices), 1, 1))
        assert {result.status for result in api.commit(*ops)} == {"ok"}


def look_after(api: Api, savers: list[Saver], until: float, done: threading.Event) -> int:
    """Thin, purge and collect without a pause; how many purges there were."""
    rng = random.Random(99)
    purges = 0
    while time.monotonic() < until or not done.is_set():
        for name in rng.sample(["gc", "gc", "retention"], 3):
            assert not (status := worker(api, name)).error, status
        files = [file for saver in savers for file in list(saver.files)]
        for file in rng.sample(files, min(2, len(files))):
            answer = api.request("POST", "/purge", Purge(api.root, file))
            assert answer.status_code == 200, answer.text
            purges += 1
    return purges


@pytest.mark.sqlite  # servers of one database wait for each other, longer than a test
def test_nothing_that_is_needed_goes_and_nothing_else_stays(
    make_node: MakeNode, make_api: Callable[[Node], Api], soak: int
) -> None:
    node = make_node(options=["--gc-grace", f"{GRACE}s", "--gc-interval", "1s", "--retention-interval", "1s"])
    api = make_api(node)
    set_policy(api, Policy(max_versions=2))
    load(api)
    contents = [os.urandom(SIZES[number % len(SIZES)]) for number in range(150)]
    savers = [Saver(api, number, contents) for number in range(SAVERS)]
    until, done = time.monotonic() + SECONDS * soak, threading.Event()
    with ThreadPoolExecutor(SAVERS + 1) as pool:
        care = pool.submit(look_after, api, savers, until, done)
        try:
            for work in [pool.submit(saver.work, until) for saver in savers]:
                work.result()
        finally:
            done.set()
        assert care.result() > 0
    set_policy(api, None)  # from here on no more versions go
    _check(api, savers)
    collect(api)
    _check(api, savers)
    assert stored(api) == needed(api)
    assert sum(saver.refused for saver in savers) > 0, "no commit came too late: the test does not test"
    size = sum(len(content) for content in contents if chunk_id(api.bucket.chunk_key, content) in needed(api))
    assert disk_use(shelf(api)) < 2.5 * size + 4_000_000
    assert "Traceback" not in node.log.read_text()


def _check(api: Api, savers: list[Saver]) -> None:
    """All versions read back whole, and are what was acknowledged."""
    acknowledged = {version: content for saver in savers for version, content in saver.acknowledged.items()}
    there = manifests(api)
    for version, manifest in there.items():
        if version not in acknowledged:
            continue  # ballast
        assert read_manifest(api, manifest) == b"".join(acknowledged[version])
    for saver in savers:
        for name, (id_, head) in saver.files.items():
            found = api.lookup(name)
            assert found is not None
            assert (found.id, found.version) == (id_, head)
            assert head in there
