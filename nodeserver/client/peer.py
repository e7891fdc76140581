"""A node as the keeper of pieces, whatever the way to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from nodeserver.client.connection import Buffer
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import PieceId
from nodeserver.protocol.wire import ChunkId


class Peer(ABC):
    """Keeps pieces of chunks of any bucket.

    Methods raise :class:`~nodeserver.client.errors.ClientError` and nothing else; ``Refused`` with ``Code.FULL`` when
    there is no room. ``deadline`` is in seconds, None for the peer's own. All can be repeated without harm.
    """

    @abstractmethod
    async def put(
        self, bucket: bytes, pieces: Sequence[tuple[PieceId, Buffer]], *, deadline: float | None = None
    ) -> None:
        """Store pieces, durably; those that are there are left. However many: takes several requests if need be."""

    @abstractmethod
    async def get(self, bucket: bytes, piece: PieceId, *, deadline: float | None = None) -> Buffer | None:
        """A piece in its stored form, not verified; None when it is not there."""

    @abstractmethod
    async def read(
        self, bucket: bytes, pieces: Sequence[PieceId], *, deadline: float | None = None
    ) -> list[tuple[PieceId, Buffer]]:
        """Those of some pieces that are there and whole, in their stored form, in order; verified by the node alone."""

    @abstractmethod
    async def find(
        self, bucket: bytes, chunks: Sequence[ChunkId], *, deadline: float | None = None
    ) -> dict[ChunkId, list[Held]]:
        """The pieces it has of some chunks; chunks that it has nothing of are left out."""

    @abstractmethod
    async def listing(self, bucket: bytes, first: int, beyond: int, *, deadline: float | None = None) -> list[Held]:
        """All pieces whose ids begin with a byte from ``first`` on and below ``beyond``, ascending."""

    @abstractmethod
    async def delete(self, bucket: bytes, pieces: Collection[PieceId], *, deadline: float | None = None) -> None:
        """Delete pieces; those that are not there are no error."""

    @abstractmethod
    async def buckets(self, *, deadline: float | None = None) -> list[bytes]:
        """The ids of the buckets it has pieces of."""

    @abstractmethod
    async def drop(self, bucket: bytes, *, deadline: float | None = None) -> None:
        """Delete all pieces of a bucket."""
