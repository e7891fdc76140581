"""Who needs which chunks at this moment: none is deleted while it is put or committed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from nodeserver.protocol.wire import ChunkId


class Claims:
    """For one asyncio loop."""

    def __init__(self) -> None:
        self._used: Counter[tuple[bytes, ChunkId]] = Counter()
        self._dying: dict[tuple[bytes, ChunkId], asyncio.Event] = {}

    @asynccontextmanager
    async def use(self, bucket: bytes, ids: Collection[ChunkId]) -> AsyncIterator[None]:
        """None of ``ids`` is deleted inside the block; it begins when those being deleted are gone."""
        keys = [(bucket, chunk) for chunk in ids]
        while self._dying and (end := next((self._dying[key] for key in keys if key in self._dying), None)):
            await end.wait()
        self._used.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._used[key] -= 1
                if not self._used[key]:
                    del self._used[key]

    @contextmanager
    def doom(self, bucket: bytes, ids: Collection[ChunkId]) -> Iterator[list[ChunkId]]:
        """Those of ``ids`` that nobody uses; who wants to waits for the end of the block."""
        once = dict.fromkeys(ids)
        doomed = [chunk for chunk in once if (bucket, chunk) not in self._used and (bucket, chunk) not in self._dying]
        end = asyncio.Event()
        self._dying.update(((bucket, chunk), end) for chunk in doomed)
        try:
            yield doomed
        finally:
            for chunk in doomed:
                del self._dying[bucket, chunk]
            end.set()

    def dying(self, bucket: bytes, chunk: ChunkId) -> bool:
        """Whether a chunk is being deleted."""
        return (bucket, chunk) in self._dying
