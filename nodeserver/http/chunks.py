"""``/v1/buckets/{bucket}/chunks``: chunks in their stored form, one by one or many to a request."""

from __future__ import annotations

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.chunks import NoChunk
from nodeserver.content.codec import MAX_STORED, CorruptChunk
from nodeserver.http.codec import answer, hex_id, read, read_body
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, services
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MAX_BATCH_BYTES, MAX_BATCH_CHUNKS, ChunkBatch, ChunkId, ChunkIds

OCTETS = "application/octet-stream"
CHUNK_ID = 32


class ChunkEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        bucket, chunk = await self._named(request)
        return Response(await services(request).chunks.get(bucket, chunk), media_type=OCTETS)

    async def head(self, request: Request) -> Response:
        bucket, chunk = await self._named(request)
        sizes = await services(request).chunks.sizes(bucket, [chunk])
        if chunk not in sizes:
            raise NoChunk([chunk])
        return Response(headers={"content-length": str(sizes[chunk])}, media_type=OCTETS)

    async def put(self, request: Request) -> Response:
        identity(request, "admin")
        here, chunk = services(request), hex_id(request, "chunk", CHUNK_ID)
        bucket = await here.metadata.identify(request.path_params["bucket"])
        await put(request, bucket.id, [(chunk, await read_body(request, MAX_STORED))])
        return Response(status_code=204)

    @staticmethod
    async def _named(request: Request) -> tuple[bytes, ChunkId]:
        identity(request)
        chunk = hex_id(request, "chunk", CHUNK_ID)
        return (await services(request).metadata.identify(request.path_params["bucket"])).id, chunk


async def put_chunks(request: Request) -> Response:
    identity(request, "admin")
    bucket = await services(request).metadata.identify(request.path_params["bucket"])
    batch = await read(request, ChunkBatch)
    if len(batch.chunks) > MAX_BATCH_CHUNKS or sum(len(stored) for _, stored in batch.chunks) > MAX_BATCH_BYTES:
        raise Refused(Code.TOO_LARGE, f"a batch has at most {MAX_BATCH_CHUNKS} chunks of {MAX_BATCH_BYTES} bytes")
    _check_ids([chunk for chunk, _ in batch.chunks])
    await put(request, bucket.id, batch.chunks)
    return Response(status_code=204)


async def read_chunks(request: Request) -> Response:
    identity(request)
    here = services(request)
    bucket = await here.metadata.identify(request.path_params["bucket"])
    wanted = _some(await read(request, ChunkIds))
    return answer(request, ChunkBatch(await here.chunks.read(bucket.id, wanted)))


async def missing(request: Request) -> Response:
    identity(request)
    here = services(request)
    bucket = await here.metadata.identify(request.path_params["bucket"])
    wanted = await read(request, ChunkIds)
    _check_ids(wanted.ids)
    return answer(request, ChunkIds(await here.chunks.missing(bucket.id, wanted.ids)))


async def put(request: Request, bucket: bytes, chunks: list[tuple[ChunkId, bytes]]) -> None:
    """Store chunks that came in a request. Raises ``Refused`` when one is damaged, and stores none then."""
    try:
        await services(request).chunks.put(bucket, chunks)
    except CorruptChunk as error:
        raise Refused(Code.CHECKSUM, str(error), [error.chunk] if error.chunk else []) from error


def _some(wanted: ChunkIds) -> list[ChunkId]:
    if len(wanted.ids) > MAX_BATCH_CHUNKS:
        raise Refused(Code.TOO_LARGE, f"more than {MAX_BATCH_CHUNKS} chunks")
    _check_ids(wanted.ids)
    return wanted.ids


def _check_ids(ids: list[ChunkId]) -> None:
    if any(len(chunk) != CHUNK_ID for chunk in ids):
        raise Refused(Code.MALFORMED, f"a chunk id has {CHUNK_ID} bytes")


ROUTES = [
    Route("/v1/buckets/{bucket}/chunks", put_chunks, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/missing", missing, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/read", read_chunks, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/{chunk}", ChunkEndpoint),
]
