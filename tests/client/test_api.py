"""What each call sends and makes of the answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from nodeserver.client import BadAnswer, Client, DeadlineExceeded, InvalidUrl, Refused, connect
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import (
    JSON,
    MAX_BATCH_BYTES,
    MAX_BATCH_CHUNKS,
    MSGPACK,
    Bucket,
    Buckets,
    BucketSettings,
    Changes,
    ChunkBatch,
    ChunkIds,
    Commit,
    Committed,
    FileAnswer,
    Listing,
    NewBucket,
    Result,
    Server,
    Usage,
    pack,
    unpack,
)
from nodeserver.protocol.wire import File as FileRecord

from .backends import both
from .servers import Answer, ApiServer, problem

ID = bytes(range(16))
CHUNK = bytes(range(32))
STORED = "application/octet-stream"
USAGE = Usage(1, 2, None, 100, 50)
SERVER = Server(ID, "1", 1, 5, 100, 50)
BUCKET = Bucket(ID, "b", ID, CHUNK, 1, 2, USAGE)
FILE = FileAnswer(3, FileRecord(ID, 0o100644))
LISTING = Listing(3, FileRecord(ID, 0o040755), [])
CHANGES = Changes(3, [], USAGE)
COMMIT = Commit(ID, ID, [])
COMMITTED = Committed(4, 5, [Result()])
IDS = ChunkIds([CHUNK])
DIRECTORY = f"/v1/buckets/b/files/{ID.hex()}"


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


CALLS: list[tuple[str, tuple[Any, ...], Any, str, bytes, Any]] = [
    ("server", (), SERVER, "GET /v1/server", b"", SERVER),
    ("buckets", (), Buckets([BUCKET]), "GET /v1/buckets", b"", [BUCKET]),
    ("bucket", ("b",), BUCKET, "GET /v1/buckets/b", b"", BUCKET),
    ("create_bucket", ("b", ID, 7), BUCKET, "PUT /v1/buckets/b", pack(NewBucket(ID, 7)), BUCKET),
    ("set_bucket", ("b", BucketSettings(8)), BUCKET, "PATCH /v1/buckets/b", pack(BucketSettings(8)), BUCKET),
    ("delete_bucket", ("b",), None, "DELETE /v1/buckets/b", b"", None),
    ("commit", ("b", COMMIT), COMMITTED, "POST /v1/buckets/b/commits", pack(COMMIT), COMMITTED),
    ("commit_packed", ("b", pack(COMMIT)), COMMITTED, "POST /v1/buckets/b/commits", pack(COMMIT), COMMITTED),
    ("file", ("b", ID), FILE, f"GET {DIRECTORY}", b"", FILE),
    ("lookup", ("b", ID, b"\xff/?~"), FILE, f"GET {DIRECTORY}/lookup?name=_y8_fg", b"", FILE),
    ("entries", ("b", ID), LISTING, f"GET {DIRECTORY}/entries?after=&limit=5000", b"", LISTING),
    ("entries", ("b", ID, b"a", 7), LISTING, f"GET {DIRECTORY}/entries?after=YQ&limit=7", b"", LISTING),
    ("changes", ("b", 3, 0.5), CHANGES, "GET /v1/buckets/b/changes?since=3&wait=0.5&known=0&known_ns=0", b"", CHANGES),
    ("missing", ("b", [CHUNK]), IDS, "POST /v1/buckets/b/chunks/missing", pack(IDS), [CHUNK]),
    ("put_chunk", ("b", CHUNK, b"data"), None, f"PUT /v1/buckets/b/chunks/{CHUNK.hex()}", b"data", None),
    ("put_chunks", ("b", [(CHUNK, b"x")]), None, "POST /v1/buckets/b/chunks", pack(ChunkBatch([(CHUNK, b"x")])), None),
    ("bucket", ("a/b?c",), BUCKET, "GET /v1/buckets/a%2Fb%3Fc", b"", BUCKET),
]  # fmt: skip


@both
@pytest.mark.parametrize(("name", "arguments", "answer", "line", "body", "result"), CALLS, ids=[c[0] for c in CALLS])
async def test_call(
    name: str, arguments: tuple[Any, ...], answer: Any, line: str, body: bytes, result: Any, api: ApiServer
) -> None:
    api.answers = [Answer(answer, 200 if answer else 204)]
    async with connect(api.url, "token") as client:
        assert await getattr(client, name)(*arguments) == result
    (asked,) = api.asked
    assert f"{asked.method} {asked.path}" == line
    assert asked.body == body
    assert asked.headers["Authorization"] == "Bearer token"
    assert asked.headers["Accept"] == MSGPACK
    kinds = {None: None, "put_chunk": STORED}
    assert asked.headers.get("Content-Type") == (kinds.get(name, MSGPACK) if body else None)


@both
async def test_get_chunk(api: ApiServer) -> None:
    api.answers = [Answer(b"stored", kind=STORED)]
    async with connect(api.url + "/", "token") as client:
        assert await client.get_chunk("b", CHUNK) == b"stored"
    assert (api.asked[0].method, api.asked[0].path) == ("GET", f"/v1/buckets/b/chunks/{CHUNK.hex()}")
    assert api.asked[0].headers["Accept"] == STORED


@both
async def test_url_with_a_path(api: ApiServer) -> None:
    api.answers = [Answer(SERVER)]
    async with connect(api.url + "/behind/a/proxy/", "token") as client:
        await client.server()
    assert api.asked[0].path == "/behind/a/proxy/v1/server"


def chunk_ids(count: int) -> list[bytes]:
    return [bytes(28) + number.to_bytes(4, "big") for number in range(count)]


@both
async def test_read_chunks_asks_until_it_has_all(api: ApiServer) -> None:
    ids = chunk_ids(3)
    api.answers = [Answer(ChunkBatch([(chunk, chunk) for chunk in ids[:2]])), Answer(ChunkBatch([(ids[2], b"z")]))]
    async with connect(api.url, "token") as client:
        chunks = await client.read_chunks("b", ids)
    assert [(chunk, bytes(stored)) for chunk, stored in chunks] == [(ids[0], ids[0]), (ids[1], ids[1]), (ids[2], b"z")]
    assert [unpack(asked.body, ChunkIds).ids for asked in api.asked] == [ids, ids[2:]]


@both
@pytest.mark.parametrize("answer", [[], [(bytes(32), b"x")], [(CHUNK, b"x"), (CHUNK, b"x")]])
async def test_read_chunks_gets_others(answer: list[tuple[bytes, bytes]], api: ApiServer) -> None:
    api.answers = [Answer(ChunkBatch(answer))]
    async with connect(api.url, "token") as client:
        with pytest.raises(BadAnswer):
            await client.read_chunks("b", [CHUNK])


@both
async def test_large_batches_are_split(api: ApiServer) -> None:
    ids = chunk_ids(MAX_BATCH_CHUNKS + 1)
    async with connect(api.url, "token") as client:
        api.answers = [Answer(ChunkIds([]))]
        assert await client.missing("b", ids) == []
        assert [len(unpack(asked.body, ChunkIds).ids) for asked in api.asked] == [MAX_BATCH_CHUNKS, 1]
        api.asked.clear()
        api.answers = [Answer(None, 204)]
        await client.put_chunks("b", ((chunk, b"") for chunk in ids))
        assert [len(unpack(asked.body, ChunkBatch).chunks) for asked in api.asked] == [MAX_BATCH_CHUNKS, 1]
        api.asked.clear()
        half = memoryview(bytes(MAX_BATCH_BYTES // 2))
        await client.put_chunks("b", [(chunk, half) for chunk in ids[:3]])
        assert [len(unpack(asked.body, ChunkBatch).chunks) for asked in api.asked] == [2, 1]


@both
async def test_nothing_to_do_asks_nothing(api: ApiServer) -> None:
    async with connect(api.url, "token") as client:
        assert await client.missing("b", []) == []
        assert await client.read_chunks("b", []) == []
        await client.put_chunks("b", [])
    assert api.asked == []


@both
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer(kind: type, api: ApiServer) -> None:
    data = os.urandom(700_000)
    api.answers = [Answer(None, 204)]
    async with connect(api.url, "token") as client:
        await client.put_chunk("b", CHUNK, kind(data))
        await client.put_chunks("b", [(CHUNK, kind(data))])
    assert api.asked[0].body == data
    assert unpack(api.asked[1].body, ChunkBatch).chunks == [(CHUNK, data)]


@both
async def test_refusal(api: ApiServer) -> None:
    api.answers = [problem(Code.NO_BUCKET, "b")]
    async with connect(api.url, "token") as client:
        with pytest.raises(Refused, match="There is no such bucket: b") as refused:
            await client.bucket("b")
        assert refused.value.code is Code.NO_BUCKET
        with pytest.raises(Refused):
            await client.delete_bucket("b")
    assert len(api.asked) == 2


@both
async def test_bucket_deleted_by_the_try_whose_answer_was_lost(api: ApiServer) -> None:
    api.answers = [problem(Code.INTERNAL), problem(Code.NO_BUCKET)]
    async with connect(api.url, "token") as client:
        await client.delete_bucket("b")
    assert len(api.asked) == 2


async def fails(client: Client) -> None:
    with pytest.raises(BadAnswer):
        await client.server(deadline=0.3)


@both
@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>", kind="text/html"),
        Answer(b"{}", kind=JSON),
        Answer(b"\xc1", kind=MSGPACK),
        Answer(b"\x80", kind=MSGPACK),
        Answer(None, 204),
        Answer(None, 302),
        Answer(pack(SERVER)[:-1], kind=MSGPACK),
        Answer(pack(SERVER) + b"x", kind=MSGPACK),
    ],
)
async def test_answers_of_something_else(answer: Answer, api: ApiServer) -> None:
    api.answers = [answer]
    async with connect(api.url, "token") as client:
        await fails(client)
    assert len(api.asked) > 1


class Endless(Sequence[bytes]):
    """More ids than requests with a deadline each would ever get through."""

    def __len__(self) -> int:
        return 1 << 60

    def __getitem__(self, index: Any) -> Any:
        return chunk_ids(10)


@both
async def test_deadline_of_several_requests_is_one(api: ApiServer) -> None:
    api.answers = [Answer(ChunkIds([]))]
    async with connect(api.url, "token") as client:
        with pytest.raises(DeadlineExceeded):
            await client.missing("b", Endless(), deadline=0.3)
    assert api.asked


@pytest.mark.parametrize(
    "url", ["", "host", "host:80", "ftp://host", "http://", "http://h/?q=1", "http://h/#f", "http://[::1", "http://h:x"]
)
def test_invalid_url(url: str) -> None:
    with pytest.raises(InvalidUrl):
        connect(url, "token")


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX: y", " a", "ü", "a\0", ""])
def test_invalid_token(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        connect("http://h", token)


def test_tokens_are_not_shown() -> None:
    client = connect("http://h", "secret-token")
    assert "secret" not in repr(client) + repr(client.__dict__) + str(client.url)


def test_wire_types_are_those_of_the_protocol() -> None:
    """Zero-copy decoding of a batch reads what ``ChunkBatch`` writes."""
    from nodeserver.client.api import _Chunks

    decoded = msgspec.msgpack.decode(pack(ChunkBatch([(CHUNK, b"x")])), type=_Chunks)
    assert isinstance(decoded.chunks[0][1], memoryview)
