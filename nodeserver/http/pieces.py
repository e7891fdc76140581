"""``/v1/pieces``: what this node keeps of chunks, by bucket and piece, with or without metadata."""

from __future__ import annotations

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.chunks import NoChunk
from nodeserver.chunks.store import DiskStore
from nodeserver.content.codec import MAX_STORED, CorruptChunk
from nodeserver.content.erasure import HEADER
from nodeserver.http.chunks import prove, refusing
from nodeserver.http.codec import ASKED, answer, hex_id, integer_parameter, read, read_body
from nodeserver.http.problems import Refused
from nodeserver.http.services import Services, identity, node_services
from nodeserver.protocol.cluster import MAX_FIND, ChunksAsked, PieceBatch, PieceBuckets, PieceIds, Pieces
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import CHUNK_ID, FRAGMENT_ID, PieceId, valid
from nodeserver.protocol.wire import MAX_BATCH_BYTES, MAX_BATCH_CHUNKS

OCTETS = "application/octet-stream"


class PieceEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        identity(request, "fetch")
        store, bucket, piece = _store(request), _bucket(request), _piece(request)
        return Response(await store.get(bucket, piece), media_type=OCTETS)

    async def put(self, request: Request) -> Response:
        identity(request, "keep")
        store, bucket, piece = _store(request), _bucket(request), _piece(request)
        await _put(request, store, bucket, [(piece, await read_body(request, MAX_STORED + HEADER))])
        return Response(status_code=204)


class PiecesEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        identity(request, "fetch")
        first = integer_parameter(request, "first", 0, 0, 255)
        beyond = integer_parameter(request, "beyond", 256, 1, 256)
        return answer(request, Pieces(await _store(request).listing(_bucket(request), first, beyond)))

    async def post(self, request: Request) -> Response:
        identity(request, "keep")
        store, bucket, batch = _store(request), _bucket(request), await read(request, PieceBatch)
        if len(batch.pieces) > MAX_BATCH_CHUNKS or sum(len(stored) for _, stored in batch.pieces) > MAX_BATCH_BYTES:
            raise Refused(Code.TOO_LARGE, f"a batch has at most {MAX_BATCH_CHUNKS} pieces of {MAX_BATCH_BYTES} bytes")
        _check([piece for piece, _ in batch.pieces])
        await _put(request, store, bucket, batch.pieces)
        return Response(status_code=204)

    async def delete(self, request: Request) -> Response:
        identity(request, "keep")
        await _store(request).drop_bucket(_bucket(request))
        return Response(status_code=204)


async def buckets(request: Request) -> Response:
    identity(request, "fetch")
    return answer(request, PieceBuckets(await _store(request).buckets()))


async def read_pieces(request: Request) -> Response:
    """As many as fit, from the first; what is not there or damaged is named."""
    identity(request, "fetch")
    store, bucket, wanted = _store(request), _bucket(request), await _some(request)
    absent: list[PieceId] = []
    while True:
        left = [piece for piece in wanted if piece not in absent]
        try:
            pieces = await store.read(bucket, left) if left else []
        except NoChunk as error:
            absent += error.ids
        except CorruptChunk as error:
            absent.append(error.chunk)
        else:
            looked = wanted.index(pieces[-1][0]) + 1 if len(pieces) < len(left) else len(wanted)
            return answer(request, PieceBatch(pieces, [piece for piece in absent if piece in wanted[:looked]]))


async def find(request: Request) -> Response:
    identity(request, "fetch")
    asked = await read(request, ChunksAsked, ASKED)
    if len(asked.chunks) > MAX_FIND:
        raise Refused(Code.TOO_LARGE, f"more than {MAX_FIND} chunks")
    _check(asked.chunks)
    return answer(request, Pieces(await _store(request).find(_bucket(request), asked.chunks)))


async def delete(request: Request) -> Response:
    identity(request, "keep")
    store, bucket, pieces = _store(request), _bucket(request), await _some(request)
    with store.doom(bucket, pieces) as unused:
        await store.delete(bucket, unused)
    return Response(status_code=204)


async def _put(request: Request, store: DiskStore, bucket: bytes, pieces: list[tuple[PieceId, bytes]]) -> None:
    here = node_services(request)
    with refusing():
        if isinstance(here, Services) and (key := await here.metadata.chunk_key(bucket)):
            await prove(key, [(piece, stored) for piece, stored in pieces if len(piece) == CHUNK_ID])
        await store.put(bucket, pieces)


def _store(request: Request) -> DiskStore:
    store = node_services(request).pieces
    if store is None:
        raise Refused(Code.NO_ROUTE, "this server keeps no pieces of chunks")
    return store


def _bucket(request: Request) -> bytes:
    return hex_id(request, "bucket", 16)


def _piece(request: Request) -> PieceId:
    size = FRAGMENT_ID if len(request.path_params["piece"]) == 2 * FRAGMENT_ID else CHUNK_ID
    piece = hex_id(request, "piece", size)
    _check([piece])
    return piece


async def _some(request: Request) -> list[PieceId]:
    ids = (await read(request, PieceIds, ASKED)).ids
    if len(ids) > MAX_BATCH_CHUNKS:
        raise Refused(Code.TOO_LARGE, f"more than {MAX_BATCH_CHUNKS} pieces")
    _check(ids)
    return ids


def _check(pieces: list[PieceId]) -> None:
    if not all(valid(piece) for piece in pieces):
        raise Refused(Code.MALFORMED, f"the id of a piece has {CHUNK_ID} bytes, or {FRAGMENT_ID} for a fragment")


ROUTES = [
    Route("/v1/pieces", buckets),
    Route("/v1/pieces/{bucket}", PiecesEndpoint),
    Route("/v1/pieces/{bucket}/read", read_pieces, methods=["POST"]),
    Route("/v1/pieces/{bucket}/find", find, methods=["POST"]),
    Route("/v1/pieces/{bucket}/delete", delete, methods=["POST"]),
    Route("/v1/pieces/{bucket}/{piece}", PieceEndpoint),
]
"""In this order: what comes first is looked at first."""
