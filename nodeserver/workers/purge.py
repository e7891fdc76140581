"""Frees what deleted buckets leave behind: their rows, some at a time, then their chunks."""

from __future__ import annotations

from nodeserver.chunks import ChunkStore
from nodeserver.metadata.store import Metadata
from nodeserver.workers.registry import Outcome, Run


class Purge:
    """Runs at the start, so that what a stop interrupted is finished, and whenever a bucket is deleted."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore) -> None:
        self._metadata = metadata
        self._chunks = chunks

    async def work(self, run: Run) -> Outcome:
        """Purge the buckets that are deleted now. Raises ``OSError``, ``SQLAlchemyError``."""
        removed = await self._metadata.removed_buckets()
        run.total = len(removed)
        for bucket, id_ in removed:
            await self._chunks.drop_bucket(id_)
            while await self._metadata.purge(bucket):  # a transaction each, so that commits get in between
                await run.step()
            run.done += 1
        return Outcome(f"{len(removed)} buckets")
