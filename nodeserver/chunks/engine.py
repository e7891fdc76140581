"""What every chunk store can do, whatever keeps its chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from nodeserver.protocol.wire import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from nodeserver.protocol.wire import ChunkId


class Space(NamedTuple):
    """Bytes of what the store is on, and those of them that are free to it."""

    capacity_bytes: int
    free_bytes: int


class StoreUnavailable(OSError):
    """What keeps the chunks cannot be reached, or refuses; the same call may succeed later."""


class ChunkStore(ABC):
    """Chunks of many buckets. For one process, one asyncio loop.

    What ``put`` returned for is durable. Methods raise ``OSError`` when what keeps the chunks fails:
    ``StoreUnavailable`` while it is away, with ``errno`` ``ENOSPC`` when it is full.
    """

    @abstractmethod
    async def put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        """Store chunks in their stored form; they are durable on return. Those there already are left.

        Raises ``CorruptChunk`` before anything is stored, ``ValueError`` for an id that cannot be
        one, ``OSError``: each chunk then is stored whole or not at all.
        """

    @abstractmethod
    async def missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of ``ids`` that are not stored durably, or that a read found damaged, in their order."""

    @abstractmethod
    async def sizes(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, int]:
        """The bytes of the stored form of those of ``ids`` that are stored. Does not look at their content."""

    @abstractmethod
    async def get(self, bucket: bytes, chunk: ChunkId) -> bytes:
        """The stored form of a chunk. Raises ``NoChunk``.

        Damage may go unnoticed, or raise ``CorruptChunk``: who decodes it checks.
        """

    @abstractmethod
    async def read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int = MAX_BATCH_BYTES
    ) -> list[tuple[ChunkId, bytes]]:
        """The stored forms of as many of ``ids``, from the first, as fit in ``limit`` bytes; at least one.

        Raises ``NoChunk``, and ``CorruptChunk`` when what is stored is damaged: the chunk then is
        missing, until it is put again.
        """

    @abstractmethod
    def using(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractAsyncContextManager[None]:
        """Keep chunks from being deleted inside the block; those that are being deleted are gone when it begins."""

    @abstractmethod
    def doom(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractContextManager[list[ChunkId]]:
        """Those of ``ids`` that nobody uses, to be deleted in the block; until its end they count as missing, and
        a put of them waits."""

    @abstractmethod
    async def delete(self, bucket: bytes, ids: Sequence[ChunkId]) -> None:
        """Delete chunks, inside a block of ``doom``. A crash may bring some back."""

    @abstractmethod
    def forget(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        """Others may have deleted ``ids``: look anew whether they are stored, when that is asked next."""

    @abstractmethod
    async def count(self, bucket: bytes) -> int:
        """How many chunks there are, about."""

    @abstractmethod
    async def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> set[ChunkId]:
        """The chunks whose ids begin with a byte from ``first`` on and below ``beyond``, and that came before a
        moment: the time in nanoseconds since the epoch."""

    @abstractmethod
    async def compact(self, bucket: bytes, step: Callable[[], Awaitable[None]]) -> int:
        """Copy what is needed out of packs that are mostly dead, and delete them; how many bytes came free.

        ``step`` is awaited between steps of some MiB.
        """

    @abstractmethod
    async def drop_bucket(self, bucket: bytes) -> None:
        """Delete all chunks of a bucket. Must not run together with a put into it."""

    @abstractmethod
    def usage(self) -> Space:
        """The room there is."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
