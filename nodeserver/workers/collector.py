"""Garbage collection: mark and sweep over chunks, with a grace period and a way back.

A chunk that came longer than the grace period ago and that no version refers to is **condemned**: a row in the
database. A commit that refers to it takes it back, in its own transaction. A later run that finds it still condemned,
for a grace period, and still not referred to, **dooms** it, which no commit can take back, deletes it, and deletes
the row. What makes that safe:

- The run reads versions after the row was made. A commit that it does not see was made since, found the row, and
  deleted it, so that dooming passes the chunk over.
- Chunks of a put or commit under way cannot be doomed (``ChunkStore.using``). One that begins while they are deleted
  waits, and then finds that they are missing.
- A crash leaves doomed chunks that are stored, or not: with ``garbage.reprieve`` they are condemned ones again.

When several servers share the database and the chunks, the others know nothing of puts and commits under way here. A
doomed row then stays for ``SETTLE`` after its chunk was deleted: a commit whose server had looked for the chunk before
finds the row, and the server looks again. What it finds then was stored since, or on a node that was away, and may be
committed, unless the chunk is still being deleted.
"""

from __future__ import annotations

import time
from itertools import islice

from nodeserver.chunks import ChunkStore
from nodeserver.metadata import garbage
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers.references import References, ranges
from nodeserver.workers.registry import Outcome, Run

SWEEP = 250
"""Chunks deleted at a time, while a commit of them waits."""
SETTLE = 900.0
"""Seconds for which a chunk that was deleted stays doomed when other servers may still believe it is there: longer
than a request takes, and than a store remembers what it saw."""
CONDEMN = 1000
"""Rows in one transaction."""


class Collector:
    """Collects the chunks of all buckets. ``grace`` is in seconds."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore, grace: float) -> None:
        self._metadata = metadata
        self._chunks = chunks
        self._grace = grace

    async def recover(self) -> None:
        """To be called before requests are answered. Raises ``SQLAlchemyError``."""
        if self._metadata.shared:
            await self._metadata.write_across(garbage.expire, time.time_ns() - int(SETTLE * 1e9))
        else:
            await self._metadata.write_across(garbage.reprieve)

    async def work(self, run: Run) -> Outcome:
        """Collect what there is. Raises ``OSError``, ``SQLAlchemyError``, and what reading manifests raises."""
        await self.recover()
        deleted = freed = 0
        for bucket in await self._metadata.buckets():
            count = await self._chunks.count(bucket.id)
            run.total += count
            for first, beyond in ranges(count):
                deleted += await self._collect(bucket, first, beyond, run)
            freed += await self._chunks.compact(bucket.id, run.step)
        again = None
        if (oldest := await self._metadata.read(garbage.oldest)) is not None:
            left = self._grace - (time.time_ns() - oldest) / 1e9
            again = max(left, self._grace / 10, 0.1)
        return Outcome(f"deleted {deleted} chunks, compacting freed {freed} bytes", again)

    async def _collect(self, bucket: BucketRow, first: int, beyond: int, run: Run) -> int:
        """Mark and sweep the chunks whose ids begin with a byte from ``first`` on and below ``beyond``."""
        number = bucket.bucket
        before = time.time_ns() - int(self._grace * 1e9)
        condemned, doomed = await self._metadata.read(garbage.condemned, number, first, beyond)
        stored = await self._chunks.older(bucket.id, first, beyond, before)
        unneeded = stored | condemned.keys()
        looked_at = len(unneeded)
        await References(self._metadata, self._chunks, bucket).spare_needed(unneeded, run)
        await self._metadata.write(garbage.acquit, number, condemned.keys() - unneeded)
        due = (chunk for chunk in unneeded if condemned.get(chunk, before) < before)
        deleted = 0
        while some := list(islice(due, SWEEP)):
            deleted += await self._sweep(bucket, some, before)
            await run.step()
        new = iter((stored & unneeded) - condemned.keys() - doomed)
        while some := list(islice(new, CONDEMN)):
            await self._metadata.write(garbage.condemn, number, some, time.time_ns())
            await run.step()
        run.done += looked_at
        return deleted

    async def _sweep(self, bucket: BucketRow, chunks: list[ChunkId], before: int) -> int:
        with self._chunks.doom(bucket.id, chunks) as unused:
            doomed = await self._metadata.write(garbage.doom, bucket.bucket, unused, before, time.time_ns())
            await self._chunks.delete(bucket.id, doomed)
            end = garbage.settle if self._metadata.shared else garbage.acquit
            await self._metadata.write(end, bucket.bucket, doomed)
        return len(doomed)
