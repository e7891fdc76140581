"""Small chunks on their way into packs: those that wait go together, with one fsync."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nodeserver.protocol.wire import ChunkId

GROUP_BYTES = 32 * 1024 * 1024
"""Stored bytes after which an append takes no further puts along."""


@dataclass
class _Queue:
    """Small chunks of one bucket that wait for the next append."""

    puts: list[tuple[dict[ChunkId, bytes], asyncio.Future[None]]] = field(default_factory=list)

    def take(self) -> tuple[dict[ChunkId, bytes], list[asyncio.Future[None]]]:
        """As many puts as one append takes, oldest first."""
        chunks: dict[ChunkId, bytes] = {}
        done: list[asyncio.Future[None]] = []
        size = 0
        while self.puts and size < GROUP_BYTES:
            items, future = self.puts.pop(0)
            chunks.update(items)
            size += sum(map(len, items.values()))
            done.append(future)
        return chunks, done


class Appender:
    """Calls ``write(bucket, chunks)`` for one group at a time."""

    def __init__(self, write: Callable[[bytes, dict[ChunkId, bytes]], Awaitable[None]]) -> None:
        self._write = write
        self._queues: dict[bytes, _Queue] = {}
        self._flusher: asyncio.Task[None] | None = None

    async def append(self, bucket: bytes, chunks: dict[ChunkId, bytes]) -> None:
        """Queue small chunks for the next append, which takes along all that came while one ran."""
        done = asyncio.get_running_loop().create_future()
        self._queues.setdefault(bucket, _Queue()).puts.append((chunks, done))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        await done

    async def finish(self) -> None:
        """Wait for what was begun."""
        if self._flusher:
            await self._flusher

    async def _flush(self) -> None:
        while self._queues:
            bucket, queue = next(iter(self._queues.items()))
            chunks, done = queue.take()
            del self._queues[bucket]
            if queue.puts:
                self._queues[bucket] = queue
            error: BaseException | None = None
            try:
                await self._write(bucket, chunks)
            except Exception as caught:
                error = caught
            for future in done:
                if future.cancelled():
                    continue
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(None)
        self._flusher = None
