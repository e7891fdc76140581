"""A node that keeps pieces, reached over HTTP."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from nodeserver.client.batches import batches
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import Refused
from nodeserver.client.node import STORED, Node
from nodeserver.client.peer import Peer
from nodeserver.protocol.cluster import ChunksAsked, Held, PieceBuckets, PieceIds, Pieces
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import PieceId, chunk_of, valid
from nodeserver.protocol.wire import MAX_BATCH_CHUNKS, ChunkId, pack


class _Answer(msgspec.Struct):
    """A ``PieceBatch`` whose pieces are views of the answer."""

    pieces: list[tuple[PieceId, memoryview]]
    absent: list[PieceId] = []


class HttpPeer(Peer):
    """The pieces of ``node``. Requests are made once: who asks has other nodes to go to, or comes again."""

    def __init__(self, node: Node, *, metadata_deadline: float, data_deadline: float) -> None:
        self._node = node
        self._metadata = metadata_deadline
        self._data = data_deadline

    def hope(self) -> None:
        """The node may be back: do not leave it alone any longer."""
        self._node.breaker.hope()

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self._node.requests

    async def put(
        self, bucket: bytes, pieces: Sequence[tuple[PieceId, Buffer]], *, deadline: float | None = None
    ) -> None:
        seconds = self._data if deadline is None else deadline
        if len(pieces) == 1:
            [(piece, stored)] = pieces
            await self._node.send(
                "PUT", _piece(bucket, piece), _ignore, body=stored, kind=STORED, deadline=seconds, once=True
            )
            return
        for batch in batches(pieces):
            body = msgspec.msgpack.encode({"pieces": batch})  # a PieceBatch, of any buffers
            await self._node.send("POST", _bucket(bucket), _ignore, body=body, deadline=seconds, once=True)

    async def get(self, bucket: bytes, piece: PieceId, *, deadline: float | None = None) -> Buffer | None:
        seconds = self._data if deadline is None else deadline
        try:
            return await self._node.send(
                "GET", _piece(bucket, piece), _itself, accept=STORED, deadline=seconds, once=True
            )
        except Refused as refusal:
            if refusal.code in (Code.NO_CHUNK, Code.CORRUPT):
                return None
            raise

    async def read(
        self, bucket: bytes, pieces: Sequence[PieceId], *, deadline: float | None = None
    ) -> list[tuple[PieceId, Buffer]]:
        path, seconds = f"{_bucket(bucket)}/read", self._data if deadline is None else deadline
        found: list[tuple[PieceId, Buffer]] = []
        asked = frozenset(pieces)
        looked = 0
        while looked < len(pieces):
            body = pack(PieceIds(list(pieces[looked : looked + MAX_BATCH_CHUNKS])))
            answer = await self._node.call("POST", path, _Answer, body=body, deadline=seconds, once=True)
            if not (some := len(answer.pieces) + len(answer.absent)):
                break
            looked += some
            found += [(piece, data) for piece, data in answer.pieces if piece in asked]
        return found

    async def find(
        self, bucket: bytes, chunks: Sequence[ChunkId], *, deadline: float | None = None
    ) -> dict[ChunkId, list[Held]]:
        body, seconds = pack(ChunksAsked(list(chunks))), self._seconds(deadline)
        path = f"{_bucket(bucket)}/find"
        answer = await self._node.call("POST", path, Pieces, body=body, deadline=seconds, once=True)
        found: dict[ChunkId, list[Held]] = {}
        asked = frozenset(chunks)
        for held in answer.pieces:
            if valid(held.piece) and held.size >= 0 and (chunk := chunk_of(held.piece)) in asked:
                found.setdefault(chunk, []).append(held)
        return found

    async def listing(self, bucket: bytes, first: int, beyond: int, *, deadline: float | None = None) -> list[Held]:
        path, seconds = f"{_bucket(bucket)}?first={first}&beyond={beyond}", self._data if deadline is None else deadline
        listing = (await self._node.call("GET", path, Pieces, deadline=seconds, once=True)).pieces
        return [held for held in listing if valid(held.piece) and held.size >= 0]

    async def delete(self, bucket: bytes, pieces: Collection[PieceId], *, deadline: float | None = None) -> None:
        ids = list(pieces)
        for start in range(0, len(ids), MAX_BATCH_CHUNKS):
            body = pack(PieceIds(ids[start : start + MAX_BATCH_CHUNKS]))
            path, seconds = f"{_bucket(bucket)}/delete", self._seconds(deadline)
            await self._node.send("POST", path, _ignore, body=body, deadline=seconds, once=True)

    async def buckets(self, *, deadline: float | None = None) -> list[bytes]:
        seconds = self._seconds(deadline)
        return (await self._node.call("GET", "pieces", PieceBuckets, deadline=seconds, once=True)).buckets

    async def drop(self, bucket: bytes, *, deadline: float | None = None) -> None:
        seconds = self._data if deadline is None else deadline
        await self._node.send("DELETE", _bucket(bucket), _ignore, deadline=seconds, once=True)

    def _seconds(self, deadline: float | None) -> float:
        return self._metadata if deadline is None else deadline


def _bucket(bucket: bytes) -> str:
    return f"pieces/{bucket.hex()}"


def _piece(bucket: bytes, piece: PieceId) -> str:
    return f"pieces/{bucket.hex()}/{piece.hex()}"


def _ignore(body: Buffer) -> None:
    """For answers that say nothing."""


def _itself(body: Buffer) -> Buffer:
    return body
