"""Chunks in an S3-compatible store: what only this engine has to answer for."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import obstore
import pytest

from nodeserver.chunks import ChunkStore, NoChunk, StoreUnavailable
from nodeserver.chunks.s3 import Address, S3Store, UnusableAddress, catalogue, packing, store
from nodeserver.chunks.s3.credentials import NoCredentials
from nodeserver.content import codec
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import ChunkBatch, ChunkIds, unpack
from tests.client.servers import RawServer
from tests.conftest import MakeNode
from tests.harness import Node, command, eventually
from tests.nodeserver.api import Api, problem
from tests.nodeserver.keeping import SOON, worker
from tests.nodeserver.seaweed import ACCESS_KEY, READER, SECRET_KEY, Seaweed
from tests.nodeserver.test_chunk_engines import BUCKET, FOREVER, MIXED, S3, delete, ids, item, no_step

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("s3://b", Address("b")),
        ("s3://b/", Address("b")),
        ("s3://b/a/c/", Address("b", "a/c")),
        ("s3://b/p?endpoint=https://h:9000", Address("b", "p", "https://h:9000")),
        ("s3://b?region=eu-west-1&endpoint=http%3A%2F%2F[::1]:1", Address("b", "", "http://[::1]:1", "eu-west-1")),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "s3://BUCKET"),
        ("b", "s3://BUCKET"),
        ("https://b", "s3://BUCKET"),
        ("s3:///p", "s3://BUCKET"),
        ("s3://b:80/", "s3://BUCKET"),
        ("s3://b?endpoint=h:9000", "http://HOST"),
        ("s3://b?endpoint=", "http://HOST"),
        ("s3://b?zone=1", "'zone'"),
        ("s3://b?endpoint", "URL"),
        (f"s3://user:{SECRET}@b", "environment"),
        (f"s3://b?endpoint=http://user:{SECRET}@h", "environment"),
        (f"s3://b?secret_access_key={SECRET}", "environment"),
        (f"s3://b?AWSAccessKeyId=A&X-Token={SECRET}", "environment"),
    ],
)
def test_addresses_that_are_none(url: str, word: str) -> None:
    with pytest.raises(UnusableAddress) as caught:
        Address.parse(url)
    assert word in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_url_with_credentials_is_refused_on_the_command_line(tmp_path: Path) -> None:
    result = command("nodeserver", "serve", "--data", tmp_path / "n", "--chunks", f"s3://user:{SECRET}@b")
    assert result.returncode == 2
    assert "never from the URL" in result.stderr
    assert SECRET not in result.stderr


def test_plain_http_to_another_machine_must_be_asked_for(tmp_path: Path) -> None:
    result = command("nodeserver", "serve", "--data", tmp_path / "n", "--chunks", "s3://b?endpoint=http://example.org")
    assert result.returncode == 2
    assert "--insecure" in result.stderr


@pytest.fixture
def engine(seaweed: Seaweed, keys: None, tmp_path: Path) -> S3:
    return S3(seaweed, tmp_path)


def opens(engine: S3) -> bool:
    """Whether the store lets us in."""

    async def main() -> None:
        await (await engine.open()).close()

    try:
        asyncio.run(main())
    except StoreUnavailable as error:
        return "refuses access" not in str(error)
    return True


def test_keys_come_from_the_files_of_aws(engine: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = wrong\n"
        f"[good]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    assert not opens(engine)
    monkeypatch.setenv("AWS_PROFILE", "good")
    assert opens(engine)
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(NoCredentials, match="'other'"):
        opens(engine)
    (tmp_path / ".aws/config").write_text(
        f"[profile other]\nregion = us-east-1\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    assert opens(engine)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("AWS_PROFILE", "good")
    with pytest.raises(NoCredentials):
        opens(engine)


def test_who_may_only_read_is_told_at_the_start(engine: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    assert not opens(engine)


def test_a_store_that_another_release_wrote_is_left_alone(engine: S3) -> None:
    assert opens(engine)
    obstore.put(engine.bucket, store.MARKER, b'{"format": 2}\n')
    with pytest.raises(store.BadStore, match="does not know"):
        opens(engine)


# Several servers on one store.


class Servers:
    """Stores with an index each, on the same objects."""

    def __init__(self, engine: S3, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self._stack = AsyncExitStack()
        self._count = 0

    async def another(self) -> S3Store:
        self._count += 1
        opened = await S3Store.open(self._engine.address, self._directory / f"server{self._count}.sqlite")
        self._stack.push_async_callback(opened.close)
        return opened

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()


@pytest.fixture
def servers(engine: S3, tmp_path: Path) -> Servers:
    return Servers(engine, tmp_path)


def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again what others did unless there is no other way."""
    monkeypatch.setattr(store, "FRESH", 1e9)
    monkeypatch.setattr(store, "FULL", 1e9)


@pytest.mark.parametrize("looks", [True, False], ids=["looked", "stale"])
def test_what_one_server_stores_another_reads(servers: Servers, monkeypatch: pytest.MonkeyPatch, looks: bool) -> None:
    if looks:
        monkeypatch.setattr(store, "FRESH", 0)
    else:
        stale(monkeypatch)

    async def main() -> None:
        async with servers:
            one, two = await servers.another(), await servers.another()
            assert await two.missing(BUCKET, ids(MIXED)) == ids(MIXED)
            await one.put(BUCKET, MIXED)
            if looks:
                assert await two.missing(BUCKET, ids(MIXED)) == []
            assert await two.read(BUCKET, ids(MIXED)) == MIXED
            late = [item(seed) for seed in range(100, 110)]
            await two.put(BUCKET, late)
            assert await one.get(BUCKET, late[3][0]) == late[3][1]
            assert await one.read(BUCKET, ids(MIXED + late)) == MIXED + late

    asyncio.run(main())


def test_a_pack_with_more_chunks_than_a_first_look_shows(servers: Servers) -> None:
    items = [item(seed, 10) for seed in range(catalogue.GUESS // 36 + 10)]

    async def main() -> None:
        async with servers:
            await (await servers.another()).put(BUCKET, items)
            assert await (await servers.another()).read(BUCKET, ids(items)) == items

    asyncio.run(main())


def test_what_one_server_deletes_another_does_not_take_for_stored(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FRESH", 0)
    small, large, kept = item(1), item(2, 100_000), item(3)

    async def main() -> None:
        async with servers:
            one, two = await servers.another(), await servers.another()
            await one.put(BUCKET, [small, large, kept])
            assert await two.missing(BUCKET, ids([small, large, kept])) == []
            await delete(one, [small, large])
            assert await two.missing(BUCKET, ids([small, large, kept])) == ids([small, large])
            with pytest.raises(NoChunk):
                await two.read(BUCKET, [small[0]])
            # One that begins from nothing learns of the deletion too.
            three = await servers.another()
            assert await three.missing(BUCKET, ids([small, large, kept])) == ids([small, large])
            await two.put(BUCKET, [small, large])
            for server in one, two, three:
                assert await server.missing(BUCKET, ids([small, large, kept])) == []
                assert await server.read(BUCKET, ids([small, large, kept])) == [small, large, kept]

    asyncio.run(main())


def test_chunks_are_found_where_another_server_moved_them(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    stale(monkeypatch)
    items = [item(seed) for seed in range(20)]

    async def main() -> None:
        async with servers:
            one, two = await servers.another(), await servers.another()
            await one.put(BUCKET, items)
            assert await two.read(BUCKET, ids(items)) == items
            await delete(one, items[4:])
            assert await one.compact(BUCKET, no_step) > 0
            assert await two.read(BUCKET, ids(items[:4])) == items[:4]
            assert await two.missing(BUCKET, ids(items)) == ids(items[4:])

    asyncio.run(main())


@pytest.mark.parametrize("first", [0, 1])
def test_servers_that_compact_each_others_packs_lose_nothing(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Both stored the same chunks: of the two copies they hold the same one for superfluous."""
    stale(monkeypatch)
    both, more = [item(seed) for seed in range(10)], [item(100 + seed) for seed in range(10)]

    async def main() -> None:
        async with servers:
            pair = await servers.another(), await servers.another()
            for server in pair:
                assert await server.missing(BUCKET, ids(both)) == ids(both)
            await pair[0].put(BUCKET, both)
            await pair[1].put(BUCKET, both + more)
            for server in pair:
                await server.count(BUCKET)  # each sees what the other wrote
            for server in pair[first], pair[1 - first]:
                await server.compact(BUCKET, no_step)
            for server in *pair, await servers.another():
                assert await server.read(BUCKET, ids(both + more)) == both + more

    asyncio.run(main())


def test_a_clock_that_is_ahead_makes_no_chunk_disappear(
    servers: Servers, engine: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item(seed) for seed in range(20)]

    async def main() -> None:
        async with servers:
            one = await servers.another()
            with monkeypatch.context() as patch:
                patch.setattr("nodeserver.chunks.s3.format.new_id", lambda: b"\x7f" * 16)
                await one.put(BUCKET, items)
            await delete(one, items[4:])
            await one.compact(BUCKET, no_step)
            for server in one, await servers.another():
                assert await server.read(BUCKET, ids(items[:4])) == items[:4]

    asyncio.run(main())


# Upkeep.


def test_tiny_packs_are_put_together(engine: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SLACK", 0)
    items = [item(seed) for seed in range(packing.FEW + 4)]

    async def use(store: ChunkStore) -> None:
        for one in items:
            await store.put(BUCKET, [one])
        await store.compact(BUCKET, no_step)
        assert len(engine.objects()) == 1
        assert await store.read(BUCKET, ids(items)) == items
        await delete(store, items[:2])
        assert [".gone" in one["path"] for one in obstore.list(engine.bucket, BUCKET.hex()).collect()].count(True) == 1
        await delete(store, items[2:])
        await store.compact(BUCKET, no_step)
        # What told of the deletion goes with what it is about.
        assert obstore.list(engine.bucket, BUCKET.hex()).collect() == []

    engine.run(use)


def test_a_pack_with_a_damaged_chunk_is_kept(engine: S3, caplog: pytest.LogCaptureFixture) -> None:
    items = [item(seed) for seed in range(10)]

    async def use(store: ChunkStore) -> None:
        await store.put(BUCKET, items)
        await delete(store, items[2:])
        await asyncio.to_thread(engine.damage, items[0][1])
        assert await store.compact(BUCKET, no_step) == 0
        assert "is kept" in caplog.text
        assert await store.get(BUCKET, items[1][0]) == items[1][1]
        with pytest.raises(CorruptChunk):
            await store.get(BUCKET, items[0][0])
        await store.put(BUCKET, items[:1])
        assert await store.compact(BUCKET, no_step) > 0
        assert await store.read(BUCKET, ids(items[:2])) == items[:2]

    engine.run(use)


def test_a_pack_whose_head_is_damaged_is_left_alone(engine: S3, caplog: pytest.LogCaptureFixture) -> None:
    items = [item(seed) for seed in range(4)]
    engine.run(lambda store: store.put(BUCKET, items))
    [name] = engine.objects()
    whole = engine.load(name)

    for damaged in whole[:20] + b"x" + whole[21:], whole[:10], b"something else":
        engine.store(name, damaged)
        engine.lose_index()

        async def look(store: ChunkStore) -> None:
            assert await store.missing(BUCKET, ids(items)) == ids(items)
            await store.compact(BUCKET, no_step)

        caplog.clear()
        engine.run(look)
        assert "left alone" in caplog.text
        assert engine.load(name) == damaged


def test_the_room_is_what_the_operator_says(engine: S3) -> None:
    async def main() -> None:
        opened = await S3Store.open(engine.address, engine.index, 1 << 30)
        try:
            assert opened.usage() == (1 << 30, 1 << 30)
            await opened.put(BUCKET, MIXED)
            await opened.count(BUCKET)
            used = sum(len(engine.load(name)) for name in engine.objects())
            assert opened.usage() == (1 << 30, (1 << 30) - used)
        finally:
            await opened.close()

    asyncio.run(main())


def test_more_objects_than_fit_in_one_answer(engine: S3) -> None:
    """Listings come in pages, deletions go in pages."""
    items = [item(seed, 65_600) for seed in range(5)]

    async def use(opened: ChunkStore) -> None:
        await opened.put(BUCKET, items)
        names = [f"{BUCKET.hex()}/chunks/{n % 256:02x}/{n:064x}" for n in range(1100)]
        await asyncio.gather(*(obstore.put_async(engine.bucket, name, b"x") for name in names))
        assert len(await opened.older(BUCKET, 0, 256, FOREVER)) == 1105
        await opened.drop_bucket(BUCKET)
        assert engine.objects() == []

    engine.run(use)


# A store that fails.


@pytest.mark.parametrize(
    ("status", "code", "number", "text"),
    [
        (403, "AccessDenied", None, "refuses access"),
        (404, "NoSuchBucket", None, "no such bucket"),
        (400, "QuotaExceeded", errno.ENOSPC, "is full"),
        (507, "XMinioStorageFull", errno.ENOSPC, "is full"),
        (503, "SlowDown", None, "cannot be reached"),
    ],
)
def test_the_errors_of_a_store(
    keys: None, tmp_path: Path, status: int, code: str, number: int | None, text: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    head = f"HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall((head + body).encode())

    with RawServer(answer) as server, pytest.raises(OSError, match=text) as caught:
        asyncio.run(S3Store.open(Address("b", "", server.url), tmp_path / "index.sqlite"))
    assert caught.value.errno == number
    assert isinstance(caught.value, StoreUnavailable) == (number is None)


def test_a_store_that_is_away_is_told_at_the_start(keys: None, tmp_path: Path) -> None:
    result = command("nodeserver", "serve", "--data", tmp_path / "n", "--chunks", "s3://b?endpoint=http://127.0.0.1:1")
    assert result.returncode == 1
    assert "the chunk store cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


def test_that_there_are_no_credentials_is_told(keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(NoCredentials, match="AccessKeyId"):
        asyncio.run(S3Store.open(Address("b", "", "http://127.0.0.1:2"), tmp_path / "index.sqlite"))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnavailable, match="no credentials"):
        asyncio.run(S3Store.open(Address("b", "", "http://127.0.0.1:2"), tmp_path / "index.sqlite"))


# Through HTTP.


def own(api: Api, seed: int, size: int = 4096) -> tuple[bytes, bytes]:
    """A chunk of the bucket, as it is stored."""
    data = random.Random(seed).randbytes(size)
    return codec.chunk_id(api.bucket.chunk_key, data), codec.encode(data)


def test_chunks_over_http(seaweed: Seaweed, keys: None, make_node: MakeNode) -> None:
    node = make_node(options=["--chunks", seaweed.address("http"), "--capacity", "5G"])
    api = Api(node)
    try:
        assert node.usage(api.name)["capacity_bytes"] == 5 << 30
        chunk, stored = own(api, 1, 200_000)
        assert api.request("HEAD", f"/chunks/{chunk.hex()}").status_code == 404
        problem(api.request("GET", f"/chunks/{chunk.hex()}"), Code.NO_CHUNK)
        assert api.request("POST", "/chunks", ChunkBatch([(chunk, stored), own(api, 2)])).status_code == 204
        assert api.request("HEAD", f"/chunks/{chunk.hex()}").headers["content-length"] == str(len(stored))
        assert api.request("GET", f"/chunks/{chunk.hex()}").content == stored
        file = api.new_file(b"name", b"content")
        assert api.content(file) == b"content"
        options = ["serve", "--data", str(node.data), "--listen", "127.0.0.1:0"]
        node.stop()
        refused = command("nodeserver", *options)
        assert refused.returncode == 2
        assert "--chunks must name it" in refused.stderr
    finally:
        api.http.close()


def test_a_directory_with_chunks_is_not_used_with_a_store(keys: None, node: Node) -> None:
    node.stop()
    refused = command("nodeserver", "serve", "--data", node.data, "--chunks", "s3://b?endpoint=http://127.0.0.1:1")
    assert refused.returncode == 2
    assert "has chunks in it" in refused.stderr


def test_garbage_goes_out_of_the_store(seaweed: Seaweed, keys: None, make_node: MakeNode) -> None:
    prefix = f"garbage/{uuid4().hex}"
    node = make_node(options=["--chunks", seaweed.address(prefix), *SOON])
    api, objects = Api(node), seaweed.bucket(prefix)

    def stored() -> list[bytes]:
        answer = api.request("POST", "/chunks/missing", ChunkIds(ids(orphans)))
        return [chunk for chunk in ids(orphans) if chunk not in unpack(answer.content, ChunkIds).ids]

    try:
        file = api.new_file(b"kept", b"content")
        orphans = [own(api, 1), own(api, 2), own(api, 3, 100_000)]
        assert api.request("POST", "/chunks", ChunkBatch(orphans)).status_code == 204
        assert stored() == ids(orphans)
        eventually(lambda: not worker(api, "gc").error and not stored(), what="the orphans are gone")
        assert api.content(file) == b"content"
        assert not [one for one in obstore.list(objects).collect() if "/chunks/" in one["path"]]
        assert api.request("POST", "/chunks", ChunkBatch(orphans)).status_code == 204
        assert stored() == ids(orphans)
    finally:
        api.http.close()
