"""Chunks over HTTP."""

from __future__ import annotations

import os

import pytest

from nodeserver.content.codec import HEADER, MAX_CHUNK, chunk_id, encode, open_chunk
from nodeserver.protocol.cluster import PieceBatch
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import ChunkBatch, ChunkIds, pack, unpack
from tests.nodeserver.api import Api, problem


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, MAX_CHUNK])
def test_put_head_get(api: Api, size: int) -> None:
    data = os.urandom(size)
    chunk, stored = chunk_id(api.bucket.chunk_key, data), encode(data)
    path = f"/buckets/{api.name}/chunks/{chunk.hex()}"
    problem(api.http.get(path), Code.NO_CHUNK)
    assert api.http.head(path).status_code == 404
    for _ in range(2):
        assert api.http.put(path, content=stored).status_code == 204
    head = api.http.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(stored)), b"")
    got = api.http.get(path)
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-length"] == str(len(stored))
    assert open_chunk(api.bucket.chunk_key, chunk, got.content) == data


def test_batches(api: Api) -> None:
    data = [os.urandom(size) for size in (10, 4096, 200_000)]
    chunks = [(chunk_id(api.bucket.chunk_key, piece), encode(piece)) for piece in data]
    ids = [chunk for chunk, _ in chunks]
    missing = api.request("POST", "/chunks/missing", ChunkIds(ids))
    assert unpack(missing.content, ChunkIds).ids == ids
    assert api.request("POST", "/chunks", ChunkBatch(chunks[1:])).status_code == 204
    missing = api.request("POST", "/chunks/missing", ChunkIds(ids))
    assert unpack(missing.content, ChunkIds).ids == ids[:1]
    found = problem(api.request("POST", "/chunks/read", ChunkIds(ids)), Code.NO_CHUNK)
    assert found.ids == [ids[0].hex()]
    read = api.request("POST", "/chunks/read", ChunkIds(ids[1:]))
    assert unpack(read.content, ChunkBatch).chunks == chunks[1:]
    assert unpack(api.request("POST", "/chunks/read", ChunkIds([])).content, ChunkBatch).chunks == []


def test_a_batch_read_stops_at_the_limit(api: Api) -> None:
    ids = [api.put_chunk(os.urandom(MAX_CHUNK)) for _ in range(3)]
    read = api.request("POST", "/chunks/read", ChunkIds(ids))
    assert [chunk for chunk, _ in unpack(read.content, ChunkBatch).chunks] == ids[:1]


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_damaged_upload_is_refused(api: Api, size: int) -> None:
    data = os.urandom(size)
    chunk, stored = chunk_id(api.bucket.chunk_key, data), bytearray(encode(data))
    stored[-1] ^= 1
    good = chunk_id(api.bucket.chunk_key, b"good")
    path = f"/buckets/{api.name}/chunks/{chunk.hex()}"
    assert problem(api.http.put(path, content=bytes(stored)), Code.CHECKSUM).ids == [chunk.hex()]
    both = ChunkBatch([(good, encode(b"good")), (chunk, bytes(stored))])
    assert problem(api.request("POST", "/chunks", both), Code.CHECKSUM).ids == [chunk.hex()]
    problem(api.http.put(path, content=b""), Code.CHECKSUM)
    missing = api.request("POST", "/chunks/missing", ChunkIds([chunk, good]))
    assert unpack(missing.content, ChunkIds).ids == [chunk, good]


@pytest.mark.parametrize("size", [100, 100_000])
def test_content_under_another_id_is_refused(api: Api, size: int) -> None:
    """By every way in, so that the true content can come."""
    true, false = os.urandom(size), encode(os.urandom(size))
    bomb = encode(bytes(MAX_CHUNK))
    chunk = chunk_id(api.bucket.chunk_key, true)
    piece = f"/pieces/{api.bucket.id.hex()}"
    for stored in (false, bomb):
        ways = (
            api.http.put(f"/buckets/{api.name}/chunks/{chunk.hex()}", content=stored),
            api.request("POST", "/chunks", ChunkBatch([(chunk, stored)])),
            api.http.put(f"{piece}/{chunk.hex()}", content=stored),
            api.http.post(piece, content=pack(PieceBatch([(chunk, stored)]))),
        )
        for answer in ways:
            assert problem(answer, Code.CHECKSUM).ids == [chunk.hex()]
    commit = api.batch(api.create(b"f%d" % size))
    commit.chunks = [(chunk, false)]
    assert problem(api.request("POST", "/commits", commit), Code.CHECKSUM).ids == [chunk.hex()]
    assert api.put_chunk(true) == chunk
    assert api.request("POST", "/chunks/read", ChunkIds([chunk])).status_code == 200


def test_a_chunk_that_rots_on_the_disk_is_told_and_can_be_put_again(api: Api) -> None:
    data = os.urandom(100_000)
    chunk = api.put_chunk(data)
    [path] = (api.node.data / "chunks").rglob(f"*{chunk.hex()[4:]}*")
    with path.open("r+b") as file:
        file.seek(HEADER + 500)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    assert problem(api.request("POST", "/chunks/read", ChunkIds([chunk])), Code.CORRUPT).ids == [chunk.hex()]
    assert unpack(api.request("POST", "/chunks/missing", ChunkIds([chunk])).content, ChunkIds).ids == [chunk]
    assert api.put_chunk(data) == chunk
    assert api.request("POST", "/chunks/read", ChunkIds([chunk])).status_code == 200
