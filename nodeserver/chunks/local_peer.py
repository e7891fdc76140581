"""The pieces on this node's own disk, as any other node's."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nodeserver.chunks.reading import NoChunk
from nodeserver.client.errors import Unreachable, refused
from nodeserver.client.peer import Peer
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import chunk_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from nodeserver.chunks.store import DiskStore
    from nodeserver.client.connection import Buffer
    from nodeserver.protocol.cluster import Held
    from nodeserver.protocol.pieces import PieceId
    from nodeserver.protocol.wire import ChunkId


class LocalPeer(Peer):
    """A disk store. Deadlines are ignored: a disk answers, or the machine is lost."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store

    async def put(
        self, bucket: bytes, pieces: Sequence[tuple[PieceId, Buffer]], *, deadline: float | None = None
    ) -> None:
        with _mapped():
            await self._store.put(bucket, [(piece, bytes(stored)) for piece, stored in pieces])

    async def get(self, bucket: bytes, piece: PieceId, *, deadline: float | None = None) -> Buffer | None:
        found = await self.read(bucket, [piece])
        return found[0][1] if found else None

    async def read(
        self, bucket: bytes, pieces: Sequence[PieceId], *, deadline: float | None = None
    ) -> list[tuple[PieceId, Buffer]]:
        found: list[tuple[PieceId, Buffer]] = []
        left = list(pieces)
        with _mapped():
            while left:
                try:
                    some = await self._store.read(bucket, left)
                except NoChunk as error:
                    left = [piece for piece in left if piece not in error.ids]
                except CorruptChunk as error:
                    left.remove(error.chunk)
                else:
                    found += some
                    del left[: len(some)]
        return found

    async def find(
        self, bucket: bytes, chunks: Sequence[ChunkId], *, deadline: float | None = None
    ) -> dict[ChunkId, list[Held]]:
        found: dict[ChunkId, list[Held]] = {}
        with _mapped():
            for held in await self._store.find(bucket, chunks):
                found.setdefault(chunk_of(held.piece), []).append(held)
        return found

    async def listing(self, bucket: bytes, first: int, beyond: int, *, deadline: float | None = None) -> list[Held]:
        with _mapped():
            return await self._store.listing(bucket, first, beyond)

    async def delete(self, bucket: bytes, pieces: Collection[PieceId], *, deadline: float | None = None) -> None:
        with _mapped(), self._store.doom(bucket, pieces) as unused:
            await self._store.delete(bucket, unused)

    async def buckets(self, *, deadline: float | None = None) -> list[bytes]:
        with _mapped():
            return await self._store.buckets()

    async def drop(self, bucket: bytes, *, deadline: float | None = None) -> None:
        with _mapped():
            await self._store.drop_bucket(bucket)


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn the errors of a disk into those of a client."""
    try:
        yield
    except CorruptChunk as error:
        raise refused(Code.CHECKSUM, str(error), [error.chunk] if error.chunk else []) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise refused(Code.FULL, str(error)) from error
        raise Unreachable(f"the disk of this node: {error}") from error
