"""Frees what deleted buckets leave behind: their rows, some at a time, then their chunks."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from nodeserver.chunks import ChunkStore
from nodeserver.metadata.store import Metadata

RETRY = 60.0
"""Seconds until the next try after a failure."""

log = logging.getLogger(__name__)


class Purge:
    """Runs at the start, so that what a stop interrupted is finished, and whenever a bucket is deleted."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore) -> None:
        self._metadata = metadata
        self._chunks = chunks
        self._wanted = asyncio.Event()
        self._wanted.set()

    def wake(self) -> None:
        """Look for deleted buckets."""
        self._wanted.set()

    async def run(self) -> None:
        """Purge until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.once()
            except (OSError, SQLAlchemyError):
                log.exception("a deleted bucket could not be purged, next try in %g s", RETRY)
                asyncio.get_running_loop().call_later(RETRY, self.wake)

    async def once(self) -> None:
        """Purge the buckets that are deleted now. Raises ``OSError``, ``SQLAlchemyError``."""
        for bucket, id_ in await self._metadata.removed_buckets():
            await self._chunks.drop_bucket(id_)
            while await self._metadata.purge(bucket):
                """A transaction each, so that commits get in between."""
