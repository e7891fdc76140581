"""Garbage collection against commits and uploads that come at the worst moments. The application, its collector and
the clients share one loop, so that each moment can be picked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from nodeserver.access.tokens import Keys
from nodeserver.chunks import ChunkStore, DiskStore, NoChunk
from nodeserver.content.codec import chunk_id, encode
from nodeserver.content.manifest import content_hash, pack_slices
from nodeserver.http.app import build
from nodeserver.http.services import Services
from nodeserver.metadata import garbage
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.errors import Doomed
from nodeserver.metadata.store import Metadata
from nodeserver.placement.map import ClusterMap
from nodeserver.protocol.cluster import Member
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    MSGPACK,
    ChunkBatch,
    Commit,
    Create,
    File,
    Manifest,
    NewBucket,
    Slice,
    Write,
    pack,
)
from nodeserver.workers import collector, references
from nodeserver.workers.collector import Collector
from nodeserver.workers.membership import Membership
from nodeserver.workers.registry import Run
from nodeserver.workers.schedule import Times, upkeep
from tests.nodeserver.api import REGULAR, problem

FIRST = bytes(15) + b"\1"
"""An id that comes before those of all versions: who reads them in order has passed it."""


async def _nobody() -> Member:
    raise AssertionError("nobody asks this server what it is")


class Moments(Run):
    """A run that does something at its steps."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._act = act

    async def step(self, done: int = 0) -> None:
        await self._act()


class Site:
    """A server without sockets, whose collector runs when it is told to, with no grace at all."""

    @classmethod
    async def open(cls, root: Path) -> Site:
        site = cls()
        site.metadata = await Metadata.open(f"sqlite:///{root / 'metadata.sqlite'}")
        site.chunks = await DiskStore.open(root / "chunks")
        keys = Keys(Keys.generate(), "node")
        care = upkeep(site.metadata, site.chunks, bytes(16), Times())
        site.collector = Collector(site.metadata, site.chunks, 0)
        await site.collector.recover()
        app = build(
            Services(
                node=bytes(16),
                metadata=site.metadata,
                chunks=site.chunks,
                keys=keys,
                retention=care.retention,
                workers=care.workers,
                membership=Membership(_nobody, ClusterMap()),
                pieces=None,
                space=site.chunks.usage,
                healer=None,
            )
        )
        token = keys.mint("ada", "admin")
        headers = {"authorization": f"Bearer {token}", "content-type": MSGPACK, "accept": MSGPACK}
        transport = httpx.ASGITransport(app)
        site.http = httpx.AsyncClient(transport=transport, base_url="http://node/v1/buckets/docs", headers=headers)
        if not await site.metadata.buckets():
            await site.metadata.create_bucket("docs", NewBucket(new_id()))
        site.bucket = await site.metadata.bucket("docs")
        return site

    metadata: Metadata
    chunks: ChunkStore
    bucket: BucketRow
    collector: Collector
    http: httpx.AsyncClient

    async def close(self) -> None:
        await self.http.aclose()
        await self.chunks.close()
        await self.metadata.close()

    async def upload(self, data: bytes) -> bytes:
        chunk = chunk_id(self.bucket.chunk_key, data)
        answer = await self.http.post("/chunks", content=pack(ChunkBatch([(chunk, encode(data))])))
        assert answer.status_code == 204, answer.text
        return chunk

    async def commit(self, data: bytes, version: bytes = b"") -> httpx.Response:
        """Commit a new file of one chunk, which is not uploaded."""
        return await self.commit_manifest(
            Manifest([Slice(chunk_id(self.bucket.chunk_key, data), 0, len(data))]), len(data), version
        )

    async def commit_manifest(self, manifest: Manifest, size: int, version: bytes = b"") -> httpx.Response:
        file, hash_ = new_id(), content_hash(self.bucket.chunk_key, manifest.slices)
        create = Create(self.bucket.root, file.hex().encode(), File(file, REGULAR), 1)
        write = Write(file, version or new_id(), size, hash_, manifest, 1, 1)
        return await self.http.post("/commits", content=pack(Commit(new_id(), new_id(), [create, write])))

    async def has(self, *chunks: bytes) -> bool:
        return await self.chunks.missing(self.bucket.id, chunks) == []

    async def condemn(self, *datas: bytes) -> list[bytes]:
        """Upload chunks and let them be found to be garbage."""
        found = [await self.upload(data) for data in datas]
        await self.collector.work(Run())
        assert await self.has(*found)
        return found


def run(root: Path, use: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        site = await Site.open(root)
        try:
            async with asyncio.timeout(60):
                await use(site)
        finally:
            await site.close()

    asyncio.run(main())


SMALL, LARGE = os.urandom(1000), os.urandom(100_000)
BOTH = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["packed", "file"])


@BOTH
def test_a_commit_after_the_versions_were_read_takes_its_chunk_back(tmp_path: Path, data: bytes) -> None:
    async def use(site: Site) -> None:
        await site.upload(b"other")
        assert (await site.commit(b"other")).status_code == 200
        [chunk] = await site.condemn(data)
        statuses: list[int] = []

        async def act() -> None:
            if not statuses:
                statuses.append((await site.commit(data, FIRST)).status_code)

        await site.collector.work(Moments(act))
        assert statuses == [200]
        assert await site.has(chunk)
        for _ in range(3):
            await site.collector.work(Run())
        assert await site.has(chunk)

    run(tmp_path, use)


@BOTH
def test_a_commit_that_has_looked_for_its_chunk_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    async def use(site: Site) -> None:
        [chunk, other] = await site.condemn(data, b"other")
        reached, gate, commit = asyncio.Event(), asyncio.Event(), Metadata.commit

        async def held_up(self: Metadata, *args: object, **kwargs: object) -> object:
            reached.set()
            await gate.wait()
            return await commit(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Metadata, "commit", held_up)
        task = asyncio.create_task(site.commit(data))
        await reached.wait()
        await site.collector.work(Run())
        gate.set()
        assert (await task).status_code == 200
        assert await site.has(chunk)
        assert not await site.has(other)

    run(tmp_path, use)


@BOTH
def test_who_needs_a_chunk_while_it_is_deleted_waits_and_stores_it_anew(tmp_path: Path, data: bytes) -> None:
    async def use(site: Site) -> None:
        [chunk] = await site.condemn(data)
        with site.chunks.doom(site.bucket.id, [chunk]) as doomed:
            assert doomed == [chunk]
            assert not await site.has(chunk), "what is being deleted counts as missing"
            commit = asyncio.create_task(site.commit(data))
            put = asyncio.create_task(site.upload(data))
            other = await site.upload(b"other")
            await site.chunks.delete(site.bucket.id, [chunk])
            assert not commit.done()
            assert not put.done()
            await site.metadata.write(garbage.acquit, site.bucket.bucket, [chunk])
        await put
        assert await site.has(chunk, other)
        answer = await commit
        if answer.status_code != 200:  # it looked before the put was through
            problem(answer, Code.MISSING_CHUNKS)
            assert (await site.commit(data)).status_code == 200
        for _ in range(3):
            await site.collector.work(Run())
        assert await site.has(chunk)

    run(tmp_path, use)


@BOTH
def test_a_commit_that_comes_too_late_is_refused_and_goes_through_with_the_chunk(tmp_path: Path, data: bytes) -> None:
    async def use(site: Site) -> None:
        [chunk] = await site.condemn(data)
        await site.collector.work(Run())
        assert not await site.has(chunk)
        refused = problem(await site.commit(data), Code.MISSING_CHUNKS)
        assert refused.ids == [chunk.hex()]
        await site.upload(data)
        assert (await site.commit(data)).status_code == 200

    run(tmp_path, use)


@BOTH
def test_a_commit_whose_chunk_is_doomed_is_refused(tmp_path: Path, data: bytes) -> None:
    """As by another server of the same database."""

    async def use(site: Site) -> None:
        [chunk] = await site.condemn(data)
        assert await site.metadata.write(garbage.doom, site.bucket.bucket, [chunk], 1 << 62, 1) == [chunk]
        assert problem(await site.commit(data), Code.MISSING_CHUNKS).ids == [chunk.hex()]

    run(tmp_path, use)


@BOTH
def test_servers_that_share_a_database_leave_each_other_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Another server may have looked for the chunk just before it was deleted: it has to look again."""
    monkeypatch.setattr(Metadata, "shared", True)

    async def use(site: Site) -> None:
        [chunk] = await site.condemn(data)
        await site.collector.work(Run())
        assert not await site.has(chunk)
        with pytest.raises(Doomed) as late:  # as the other server's commit
            await site.metadata.write(garbage.take_back, site.bucket.bucket, [chunk])
        problem(await site.commit(data), Code.MISSING_CHUNKS)
        await site.upload(data)
        assert (await site.commit(data)).status_code == 200
        for _ in range(3):
            await site.collector.work(Run())
        assert await site.has(chunk)
        # It is deleted again, by hand: what was found before does not count.
        await site.metadata.write(garbage.condemn, site.bucket.bucket, [chunk], 1)
        await site.metadata.write(garbage.doom, site.bucket.bucket, [chunk], 1 << 62, 1)
        await site.metadata.write(garbage.settle, site.bucket.bucket, [chunk])
        with pytest.raises(Doomed):
            await site.metadata.write(garbage.take_back, site.bucket.bucket, [chunk], late.value.gone)

    run(tmp_path, use)


def test_what_was_deleted_is_forgotten_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of what is deleted go, where servers share a database, when nobody can believe any more that it is
    there."""
    monkeypatch.setattr(Metadata, "shared", True)

    async def use(site: Site) -> None:
        [chunk] = await site.condemn(SMALL)
        await site.collector.work(Run())
        monkeypatch.setattr(collector, "SETTLE", 0)
        await site.collector.work(Run())
        await site.metadata.write(garbage.take_back, site.bucket.bucket, [chunk])

    run(tmp_path, use)


@BOTH
def test_a_server_that_died_while_it_deleted_goes_on_with_what_is_there(tmp_path: Path, data: bytes) -> None:
    async def die(site: Site) -> None:
        chunks = await site.condemn(data, b"gone", b"never again")
        doomed = await site.metadata.write(garbage.doom, site.bucket.bucket, chunks, 1 << 62, 1)
        with site.chunks.doom(site.bucket.id, chunks):
            await site.chunks.delete(site.bucket.id, [chunks[1]])
        assert len(doomed) == 3

    async def again(site: Site) -> None:
        assert (await site.commit(data)).status_code == 200
        problem(await site.commit(b"gone"), Code.MISSING_CHUNKS)
        for _ in range(3):
            await site.collector.work(Run())
        assert await site.has(chunk_id(site.bucket.chunk_key, data))
        assert not await site.has(chunk_id(site.bucket.chunk_key, b"never again"))
        assert await site.metadata.read(garbage.oldest) is None

    run(tmp_path, die)
    run(tmp_path, again)


def test_chunks_behind_a_manifest_that_is_stored_in_chunks_are_needed(tmp_path: Path) -> None:
    async def use(site: Site) -> None:
        pieces = [os.urandom(500) for _ in range(20)]
        slices = [Slice(chunk_id(site.bucket.chunk_key, piece), 0, 500) for piece in pieces]
        listed = pack_slices(slices)
        manifest = Manifest([Slice(await site.upload(listed), 0, len(listed))], indirect=True)
        refused = problem(await site.commit_manifest(manifest, 10_000), Code.MISSING_CHUNKS)
        assert sorted(refused.ids) == sorted(piece.chunk.hex() for piece in slices)
        inner = await site.condemn(*pieces)
        assert (await site.commit_manifest(manifest, 10_000)).status_code == 200
        for _ in range(3):
            await site.collector.work(Run())
        assert await site.has(*inner, manifest.slices[0].chunk)
        wrong = Manifest([Slice(await site.upload(b"not a list"), 0, 10)], indirect=True)
        problem(await site.commit_manifest(wrong, 10), Code.MALFORMED)

    run(tmp_path, use)


def test_nothing_goes_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    async def use(site: Site) -> None:
        piece = await site.upload(b"piece")
        listed = pack_slices([Slice(piece, 0, 5)])
        list_ = await site.upload(listed)
        assert (await site.commit_manifest(Manifest([Slice(list_, 0, len(listed))], True), 5)).status_code == 200
        with site.chunks.doom(site.bucket.id, [list_]):
            await site.chunks.delete(site.bucket.id, [list_])
        for _ in range(3):
            with pytest.raises(NoChunk):
                await site.collector.work(Run())
        assert await site.has(piece)
        await site.upload(listed)
        await site.collector.work(Run())

    run(tmp_path, use)


def test_many_chunks_are_looked_at_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "AT_ONCE", 20)
    monkeypatch.setattr(garbage, "PAGE", 7)

    async def use(site: Site) -> None:
        pieces = [os.urandom(300 + 70_000 * (number % 5 == 0)) for number in range(200)]
        chunks = [await site.upload(piece) for piece in pieces]
        for piece in pieces[::2]:
            assert (await site.commit(piece)).status_code == 200
        for _ in range(2):
            await site.collector.work(Run())
        assert await site.chunks.missing(site.bucket.id, chunks) == chunks[1::2]

    run(tmp_path, use)
