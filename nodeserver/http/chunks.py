"""``/v1/buckets/{bucket}/chunks``: chunks in their stored form, one by one or many to a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.chunks import NoChunk
from nodeserver.content import codec
from nodeserver.content.codec import MAX_STORED, CorruptChunk, plain_length
from nodeserver.http.codec import ASKED, answer, hex_id, read, read_body
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, services
from nodeserver.metadata.buckets import BucketRow
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MAX_BATCH_BYTES, MAX_BATCH_CHUNKS, ChunkBatch, ChunkId, ChunkIds

OCTETS = "application/octet-stream"
CHUNK_ID = 32
HERE = 64 * 1024
"""Bytes of plaintext up to which proving takes less than a hop to a thread."""

T = TypeVar("T")


class ChunkEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        identity(request)
        here, chunk = services(request), hex_id(request, "chunk", CHUNK_ID)
        return Response(await _found(request, lambda bucket: here.chunks.get(bucket, chunk)), media_type=OCTETS)

    async def head(self, request: Request) -> Response:
        identity(request)
        here, chunk = services(request), hex_id(request, "chunk", CHUNK_ID)

        async def size(bucket: bytes) -> int:
            sizes = await here.chunks.sizes(bucket, [chunk])
            if chunk not in sizes:
                raise NoChunk([chunk])
            return sizes[chunk]

        return Response(headers={"content-length": str(await _found(request, size))}, media_type=OCTETS)

    async def put(self, request: Request) -> Response:
        identity(request, "admin")
        here, chunk = services(request), hex_id(request, "chunk", CHUNK_ID)
        bucket = await here.metadata.identify(request.path_params["bucket"])
        await put(request, bucket, [(chunk, await read_body(request, MAX_STORED))])
        return Response(status_code=204)


async def put_chunks(request: Request) -> Response:
    identity(request, "admin")
    bucket = await services(request).metadata.identify(request.path_params["bucket"])
    batch = await read(request, ChunkBatch)
    if len(batch.chunks) > MAX_BATCH_CHUNKS or sum(len(stored) for _, stored in batch.chunks) > MAX_BATCH_BYTES:
        raise Refused(Code.TOO_LARGE, f"a batch has at most {MAX_BATCH_CHUNKS} chunks of {MAX_BATCH_BYTES} bytes")
    check_ids([chunk for chunk, _ in batch.chunks])
    await put(request, bucket, batch.chunks)
    return Response(status_code=204)


async def read_chunks(request: Request) -> Response:
    identity(request)
    here, wanted = services(request), await _some(request)
    return answer(request, ChunkBatch(await _found(request, lambda bucket: here.chunks.read(bucket, wanted))))


async def missing(request: Request) -> Response:
    identity(request)
    here = services(request)
    bucket = await here.metadata.identify(request.path_params["bucket"])
    wanted = await _some(request)
    return answer(request, ChunkIds(await here.chunks.missing(bucket.id, wanted)))


async def put(request: Request, bucket: BucketRow, chunks: list[tuple[ChunkId, bytes]]) -> None:
    """Store chunks that came in a request. Raises ``Refused``, and stores none, when one is not what it should be."""
    with refusing():
        await prove(bucket.chunk_key, chunks)
        await services(request).chunks.put(bucket.id, chunks)


async def prove(chunk_key: bytes, chunks: list[tuple[ChunkId, bytes]]) -> None:
    """Check that chunks are those of their ids: who stores false content under an id must not keep the true one out.

    Raises ``CorruptChunk``.
    """
    try:
        small = sum(plain_length(stored) for _, stored in chunks) <= HERE
    except CorruptChunk:
        small = False
    if small:
        codec.prove(chunk_key, chunks)
    else:
        await asyncio.to_thread(codec.prove, chunk_key, chunks)


@contextmanager
def refusing() -> Iterator[None]:
    """Tell who sent it that a chunk or piece is not what it should be."""
    try:
        yield
    except CorruptChunk as error:
        raise Refused(Code.CHECKSUM, str(error), [error.chunk] if error.chunk else []) from error


async def _found(request: Request, look: Callable[[bytes], Awaitable[T]]) -> T:
    """What ``look`` finds in the bucket of a request, which it is told the id of. Raises ``NoChunk``.

    One that was deleted and made anew through another server may have another id than is remembered.
    """
    metadata, name = services(request).metadata, request.path_params["bucket"]
    bucket = await metadata.identify(name)
    try:
        return await look(bucket.id)
    except NoChunk:
        if (now := await metadata.bucket(name)).id == bucket.id:
            raise
        return await look(now.id)


async def _some(request: Request) -> list[ChunkId]:
    wanted = (await read(request, ChunkIds, ASKED)).ids
    if len(wanted) > MAX_BATCH_CHUNKS:
        raise Refused(Code.TOO_LARGE, f"more than {MAX_BATCH_CHUNKS} chunks")
    check_ids(wanted)
    return wanted


def check_ids(ids: list[ChunkId]) -> None:
    """Raises ``Refused`` when one cannot be the id of a chunk."""
    if any(len(chunk) != CHUNK_ID for chunk in ids):
        raise Refused(Code.MALFORMED, f"a chunk id has {CHUNK_ID} bytes")


ROUTES = [
    Route("/v1/buckets/{bucket}/chunks", put_chunks, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/missing", missing, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/read", read_chunks, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/{chunk}", ChunkEndpoint),
]
