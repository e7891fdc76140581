"""Frees what deleted buckets leave behind: their rows, some at a time, then their chunks."""

from __future__ import annotations

from nodeserver.chunks import ChunkStore, StoreUnavailable
from nodeserver.metadata.store import Metadata
from nodeserver.workers.registry import Outcome, Run

AGAIN = 60.0
"""Seconds until chunks are deleted from nodes that did not answer."""


class Purge:
    """Runs at the start, so that what a stop interrupted is finished, and whenever a bucket is deleted."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore) -> None:
        self._metadata = metadata
        self._chunks = chunks

    async def work(self, run: Run) -> Outcome:
        """Purge the buckets that are deleted now. Raises ``SQLAlchemyError``."""
        removed = await self._metadata.removed_buckets()
        run.total = len(removed)
        waiting: list[StoreUnavailable] = []
        for bucket, id_ in removed:
            try:
                await self._chunks.drop_bucket(id_)
            except StoreUnavailable as error:
                waiting.append(error)
                continue
            while await self._metadata.purge(bucket):  # a transaction each, so that commits get in between
                await run.step()
            run.done += 1
        if waiting:
            return Outcome(f"{run.done} buckets, {len(waiting)} wait: {waiting[0].strerror}", AGAIN)
        return Outcome(f"{run.done} buckets")
