"""Chunks from a real server into the cache of a state directory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from mountfs.config import MountConfig
from mountfs.local.buckets import BucketState
from mountfs.local.database import Database
from mountfs.local.slabs import write_at
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from nodeserver.client import Client, connect
from nodeserver.content.codec import chunk_id, encode
from tests.harness import Node

SIZE = 4096


class Setup:
    """A bucket with some chunks, and a state directory that has none of them."""

    def __init__(self, client: Client, context: Context, bucket: BucketState, plain: dict[bytes, bytes]) -> None:
        self.client = client
        self.context = context
        self.bucket = bucket
        self.plain = plain

    def cached(self) -> dict[bytes, bytes]:
        """What the cache says these chunks are."""
        places = {chunk: self.context.cache.locate(chunk) for chunk in self.plain}
        return {chunk: self.context.slabs.read(*place) for chunk, place in places.items() if place}


@asynccontextmanager
async def setup(node: Node, state: Path) -> AsyncIterator[Setup]:
    config = MountConfig(url=node.url, bucket="b", mountpoint=state, token=node.token, state=state)
    with closing(Database(state)) as db:
        async with connect(node.url, node.token) as client:
            context = Context(config, db, client)
            info = await client.create_bucket(f"downloads-{os.urandom(4).hex()}")
            with db.transaction():
                bucket = context.buckets.add(info, 1)
            pieces = [os.urandom(SIZE) for _ in range(20)]
            plain = {chunk_id(bucket.chunk_key, piece): piece for piece in pieces}
            await client.put_chunks(bucket.name, [(chunk, encode(piece)) for chunk, piece in plain.items()])
            yield Setup(client, context, bucket, plain)
            context.slabs.close()


async def test_many_chunks_come_in_one_request(
    module_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with setup(module_node, tmp_path / "state") as it:
        monkeypatch.setattr(it.client, "get_chunk", None)
        async with trio.open_nursery() as nursery:
            downloads = Downloads(it.context, nursery)
            downloads.fetch_many(it.bucket.id, it.plain)
            assert not any(downloads.lacks(chunk) for chunk in it.plain)
            for chunk, piece in it.plain.items():
                assert await downloads.chunk(it.bucket, chunk) == piece
        assert it.cached() == it.plain
        assert it.context.slabs.used == len(it.plain) * SIZE


async def test_one_chunk_that_is_not_there_costs_the_others_nothing(module_node: Node, tmp_path: Path) -> None:
    async with setup(module_node, tmp_path / "state") as it, trio.open_nursery() as nursery:
        downloads = Downloads(it.context, nursery)
        downloads.fetch_many(it.bucket.id, [*it.plain, bytes(32)])
        for chunk, piece in it.plain.items():
            assert await downloads.chunk(it.bucket, chunk) == piece
        with pytest.raises(OSError, match=r"chunk"):
            await downloads.chunk(it.bucket, bytes(32))


async def test_who_gives_up_leaves_the_chunk_to_the_others(module_node: Node, tmp_path: Path) -> None:
    async with setup(module_node, tmp_path / "state") as it, trio.open_nursery() as nursery:
        downloads = Downloads(it.context, nursery)
        chunk, piece = next(iter(it.plain.items()))
        with trio.CancelScope() as scope:
            scope.cancel()
            await downloads.chunk(it.bucket, chunk)
        assert scope.cancelled_caught
        assert not downloads.lacks(chunk)
        assert await downloads.chunk(it.bucket, chunk) == piece


async def test_a_chunk_that_could_not_be_written_is_not_in_the_cache(
    module_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(fd: int, position: int, pieces: list[bytes]) -> None:
        write_at(fd, position, pieces[: len(pieces) // 2])
        raise OSError(28, "No space left on device")

    async with setup(module_node, tmp_path / "state") as it:
        monkeypatch.setattr("mountfs.sync.downloads.write_at", half)
        async with trio.open_nursery() as nursery:
            downloads = Downloads(it.context, nursery)
            downloads.fetch_many(it.bucket.id, it.plain)
            for chunk, piece in it.plain.items():
                assert await downloads.chunk(it.bucket, chunk) == piece
        assert it.cached() == {}
        it.context.cache.space.collect()
        assert it.context.slabs.used == 0


async def test_a_slab_that_is_written_to_is_not_swept_away(module_node: Node, tmp_path: Path) -> None:
    async with setup(module_node, tmp_path / "state") as it:
        slabs, space = it.context.slabs, it.context.cache.space
        place = space.reserve(SIZE)
        rest = slabs.advance(63 << 20)
        assert rest[0] == place.slab
        assert slabs.advance(2 << 20)[0] != place.slab
        space.free([(*rest, 63 << 20)])
        space.collect()
        assert place.slab in slabs
        space.settle(place)
        space.collect()
        assert place.slab not in slabs
