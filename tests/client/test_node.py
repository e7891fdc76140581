"""The client and a real node server, with the proxy between them where something is to break."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import anyio
import pytest

from nodeserver.client import CircuitOpen, Client, Refused, Unreachable, connect
from nodeserver.content.codec import CorruptChunk, chunk_id, encode, open_chunk
from nodeserver.content.manifest import content_hash
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    PROTOCOL,
    Bucket,
    BucketSettings,
    Commit,
    Create,
    File,
    Manifest,
    Result,
    Slice,
    Write,
)
from tests.faultproxy import FaultProxy
from tests.harness import Node

from .backends import both

DIRECTORY, REGULAR = 0o040755, 0o100644
SIZES = [0, 1, 4096, 65_536, 700_000, 4 << 20]


@pytest.fixture
def proxy(module_node: Node) -> Iterator[FaultProxy]:
    with FaultProxy(module_node.url) as proxy:
        yield proxy


def name() -> str:
    return "test-" + secrets.token_hex(8)


def a_commit(bucket: Bucket, *ops: Create | Write) -> Commit:
    return Commit(new_id(), new_id(), list(ops) or [Create(bucket.root, b"f", File(new_id(), REGULAR), 1)], "here")


@both
async def test_server(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        server = await client.server()
        assert (server.protocol, len(server.id)) == (PROTOCOL, 16)
        assert 0 < server.free_bytes <= server.capacity_bytes
        assert client.state.connected is True


@both
async def test_life_of_a_bucket(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        bucket = await client.create_bucket(name(), quota=1000)
        assert (await client.create_bucket(bucket.name, bucket.id)).root == bucket.root
        with pytest.raises(Refused) as refused:
            await client.create_bucket(bucket.name)
        assert refused.value.code is Code.BUCKET_EXISTS
        assert bucket.name in [each.name for each in await client.buckets()]
        assert (await client.bucket(bucket.name)).usage.quota_bytes == 1000
        assert (await client.set_bucket(bucket.name, BucketSettings(None))).usage.quota_bytes is None
        await client.delete_bucket(bucket.name)
        with pytest.raises(Refused) as refused:
            await client.bucket(bucket.name)
        assert refused.value.code is Code.NO_BUCKET


@both
async def test_metadata(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        directory, file = File(new_id(), DIRECTORY), File(new_id(), REGULAR)
        odd = b"\xff\n?&=/"[:-1]
        commit = a_commit(bucket, Create(bucket.root, b"d", directory, 1), Create(directory.id, odd, file, 2))
        committed = await client.commit(bucket.name, commit)
        assert committed.results == [Result(), Result()]
        found = await client.lookup(bucket.name, directory.id, odd)
        assert found.file is not None
        assert found.file.id == file.id
        assert (await client.lookup(bucket.name, directory.id, b"none")).file is None
        listing = await client.entries(bucket.name, directory.id)
        assert [(entry.name, entry.file.id) for entry in listing.entries] == [(odd, file.id)]
        assert (await client.entries(bucket.name, directory.id, odd)).entries == []
        assert (await client.file(bucket.name, directory.id)).file == listing.directory
        changes = await client.changes(bucket.name, committed.seq - 1)
        assert [change.client for change in changes.commits] == [commit.client]


@both
async def test_change_feed_waits(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client, anyio.create_task_group() as tasks:
        bucket = await client.create_bucket(name())
        assert (await client.changes(bucket.name, bucket.seq, 0.1)).commits == []
        tasks.start_soon(client.commit, bucket.name, a_commit(bucket))
        assert len((await client.changes(bucket.name, bucket.seq, 15.0)).commits) == 1


@both
async def test_chunks(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        key = bucket.chunk_key
        contents = {chunk_id(key, data): data for data in map(os.urandom, SIZES)}
        absent = os.urandom(32)
        assert await client.missing(bucket.name, [*contents, absent]) == [*contents, absent]
        for chunk, data in contents.items():
            await client.put_chunk(bucket.name, chunk, memoryview(encode(data)))
        assert await client.missing(bucket.name, [*contents, absent]) == [absent]
        for chunk, data in contents.items():
            assert open_chunk(key, chunk, await client.get_chunk(bucket.name, chunk)) == data
        read = await client.read_chunks(bucket.name, list(contents))
        assert {chunk: bytes(open_chunk(key, chunk, stored)) for chunk, stored in read} == contents
        with pytest.raises(Refused) as refused:
            await client.get_chunk(bucket.name, absent)
        assert refused.value.code is Code.NO_CHUNK


@both
async def test_batches_larger_than_a_request(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        contents = [os.urandom(4 << 20) for _ in range(6)] + [os.urandom(100) for _ in range(1100)]
        chunks = [(chunk_id(bucket.chunk_key, data), encode(data)) for data in contents]
        await client.put_chunks(bucket.name, chunks)
        read = await client.read_chunks(bucket.name, [chunk for chunk, _ in chunks])
        assert [(chunk, bytes(stored)) for chunk, stored in read] == [
            (chunk, bytes(stored)) for chunk, stored in chunks
        ]


@both
async def test_damage_on_the_way_up_is_refused(module_node: Node) -> None:
    async with connect(module_node.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        stored = bytearray(encode(os.urandom(1000)))
        stored[500] ^= 1
        with pytest.raises(Refused) as refused:
            await client.put_chunk(bucket.name, os.urandom(32), stored)
        assert refused.value.code is Code.CHECKSUM


@both
@pytest.mark.parametrize("token", ["wrong", "eyJhbGciOiJub25lIn0.e30."])
async def test_wrong_token(token: str, module_node: Node) -> None:
    async with connect(module_node.url, token) as client:
        for call in (client.server, client.buckets, lambda: client.bucket("any")):
            with pytest.raises(Refused) as refused:
                await call()
            assert refused.value.code is Code.UNAUTHORIZED


@both
async def test_commit_whose_answer_is_lost_is_applied_once(module_node: Node, proxy: FaultProxy) -> None:
    async with connect(proxy.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        proxy.set("drop", match="POST .*/commits", times=2)
        committed = await client.commit(bucket.name, a_commit(bucket))
        assert proxy.count("POST", "/commits") == 3
        assert committed.results == [Result()]
        changes = await client.changes(bucket.name, bucket.seq)
        assert [change.seq for change in changes.commits] == [committed.seq]
        assert [entry.name for entry in (await client.entries(bucket.name, bucket.root)).entries] == [b"f"]


@both
async def test_bucket_calls_whose_answers_are_lost(module_node: Node, proxy: FaultProxy) -> None:
    async with connect(proxy.url, module_node.token) as client:
        proxy.set("drop", times=1)
        bucket = await client.create_bucket(name())
        proxy.set("drop", times=1)
        await client.delete_bucket(bucket.name)
        assert proxy.count(mode="drop") == 2
        with pytest.raises(Refused):
            await client.bucket(bucket.name)


@both
async def test_content_written_through_faults(module_node: Node, proxy: FaultProxy) -> None:
    """A file's chunks and commit go up although every kind of request fails twice."""
    async with connect(proxy.url, module_node.token) as client:
        bucket = await client.create_bucket(name())
        data = os.urandom(1 << 20)
        chunk = chunk_id(bucket.chunk_key, data)
        file, slices = File(new_id(), REGULAR), [Slice(chunk, 0, len(data))]
        write = Write(file.id, new_id(), len(data), content_hash(bucket.chunk_key, slices), Manifest(slices), 1, 1)
        proxy.set("drop", times=2)
        await client.put_chunk(bucket.name, chunk, encode(data))
        proxy.set("cut", times=2)
        await client.commit(bucket.name, a_commit(bucket, Create(bucket.root, b"f", file, 1), write))
        proxy.set("error", times=2)
        answer = await client.file(bucket.name, file.id)
        assert answer.file is not None
        assert answer.file.manifest == Manifest(slices)
        proxy.set("cut", times=2)
        assert open_chunk(bucket.chunk_key, chunk, await client.get_chunk(bucket.name, chunk)) == data
        proxy.set("flip", times=1)
        damaged = await client.get_chunk(bucket.name, chunk)
        with pytest.raises(CorruptChunk):
            open_chunk(bucket.chunk_key, chunk, damaged)


@both
async def test_server_that_is_killed_and_comes_back(make_node: Callable[[], Node]) -> None:
    node = make_node()
    begun = anyio.Event()
    async with connect(node.url, node.token) as client:
        bucket = await client.create_bucket(name())
        commits = [a_commit(bucket, Create(bucket.root, b"%d" % i, File(new_id(), REGULAR), 1)) for i in range(40)]

        async def write() -> None:
            for number, commit in enumerate(commits):
                await persistent(client, bucket, commit)
                if number == 5:
                    begun.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await begun.wait()
            await anyio.to_thread.run_sync(node.restart)
        assert len((await client.changes(bucket.name, bucket.seq)).commits) == len(commits)
        assert len((await client.entries(bucket.name, bucket.root)).entries) == len(commits)


async def persistent(client: Client, bucket: Bucket, commit: Commit) -> None:
    """As the committer of a mount: again and again, the same batch."""
    while True:
        try:
            await client.commit(bucket.name, commit)
        except CircuitOpen as error:
            await anyio.sleep(error.retry_in)
        except Unreachable:
            continue
        else:
            return
