"""Chunks that are known to be stored without looking: a commit mostly refers to what was put just before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeserver.protocol.wire import ChunkId

TRUST = 60.0
"""Seconds for which it is believed that a chunk is still there: another server may delete it."""
MOST = 16 * 1024


class Recent:
    """The last chunks that were put or looked for."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[bytes, ChunkId], tuple[float, int]] = {}

    def size(self, bucket: bytes, chunk: ChunkId, age: float = TRUST) -> int:
        """The bytes of a chunk's stored form, 0 when nothing is known that is at most ``age`` seconds old."""
        since, size = self._chunks.get((bucket, chunk), (float("-inf"), 0))
        return size if time.monotonic() - since <= age else 0

    def add(self, bucket: bytes, chunk: ChunkId, size: int) -> None:
        """A chunk is stored."""
        self._chunks.pop((bucket, chunk), None)  # the oldest knowledge is first
        self._chunks[bucket, chunk] = time.monotonic(), size
        if len(self._chunks) > MOST:
            del self._chunks[next(iter(self._chunks))]

    def remove(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        """It must be looked whether ``ids`` are stored."""
        for chunk in ids:
            self._chunks.pop((bucket, chunk), None)

    def clear(self) -> None:
        """Remember nothing."""
        self._chunks.clear()
