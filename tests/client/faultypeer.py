"""A node that keeps pieces in memory and fails as it is told."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import anyio

from nodeserver.chunks.reading import check
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import Unreachable, refused
from nodeserver.client.peer import Peer
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import PieceId, chunk_of
from nodeserver.protocol.wire import ChunkId

Mode = Literal["good", "away", "silent", "full", "lying"]


class FaultyPeer(Peer):
    """``away`` refuses connections, ``silent`` never answers, ``full`` takes nothing, ``lying`` gives damaged bytes."""

    def __init__(self) -> None:
        self.mode: Mode = "good"
        self.pieces: dict[tuple[bytes, PieceId], bytes] = {}
        self.asked = 0

    async def put(
        self, bucket: bytes, pieces: Sequence[tuple[PieceId, Buffer]], *, deadline: float | None = None
    ) -> None:
        await self._answer()
        if self.mode == "full":
            raise refused(Code.FULL, "no room")
        check([(piece, bytes(stored)) for piece, stored in pieces])
        self.pieces.update({(bucket, piece): bytes(stored) for piece, stored in pieces})

    async def get(self, bucket: bytes, piece: PieceId, *, deadline: float | None = None) -> Buffer | None:
        await self._answer()
        stored = self.pieces.get((bucket, piece))
        if stored is None or self.mode != "lying":
            return stored
        return stored[:-1] + bytes([stored[-1] ^ 1])

    async def read(
        self, bucket: bytes, pieces: Sequence[PieceId], *, deadline: float | None = None
    ) -> list[tuple[PieceId, Buffer]]:
        found = [(piece, await self.get(bucket, piece)) for piece in pieces]
        return [(piece, stored) for piece, stored in found if stored is not None]

    async def find(
        self, bucket: bytes, chunks: Sequence[ChunkId], *, deadline: float | None = None
    ) -> dict[ChunkId, list[Held]]:
        await self._answer()
        found: dict[ChunkId, list[Held]] = {}
        for held in await self.listing(bucket, 0, 256):
            if chunk_of(held.piece) in chunks:
                found.setdefault(chunk_of(held.piece), []).append(held)
        return found

    async def listing(self, bucket: bytes, first: int, beyond: int, *, deadline: float | None = None) -> list[Held]:
        await self._answer()
        return [
            Held(piece, len(stored), 1)
            for (where, piece), stored in sorted(self.pieces.items())
            if where == bucket and first <= piece[0] < beyond
        ]

    async def delete(self, bucket: bytes, pieces: Collection[PieceId], *, deadline: float | None = None) -> None:
        await self._answer()
        for piece in pieces:
            self.pieces.pop((bucket, piece), None)

    async def buckets(self, *, deadline: float | None = None) -> list[bytes]:
        await self._answer()
        return sorted({bucket for bucket, _ in self.pieces})

    async def drop(self, bucket: bytes, *, deadline: float | None = None) -> None:
        await self._answer()
        self.pieces = {key: stored for key, stored in self.pieces.items() if key[0] != bucket}

    async def _answer(self) -> None:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        if self.mode == "silent":
            await anyio.sleep_forever()
        if self.mode == "away":
            raise Unreachable("connection refused")
