"""Takes out what the policies do not keep, some at a time, and tells what would go."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial

from nodeserver.chunks import ChunkStore
from nodeserver.metadata import remains, retention, share
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.garbage import contents_of, groups
from nodeserver.metadata.retention import Thinned
from nodeserver.metadata.store import Metadata
from nodeserver.metadata.thinning import spent
from nodeserver.protocol.wire import FileId, Purge, Purged, RetentionReport, VersionId
from nodeserver.workers.references import References, ranges, walk
from nodeserver.workers.registry import Outcome, Run

FILES = 20
"""Files whose versions are deleted in one transaction."""


class Retention:
    """Retention and purges of all buckets; ``freed`` is called when chunks may have become garbage."""

    def __init__(self, metadata: Metadata, chunks: ChunkStore, freed: Callable[[], None]) -> None:
        self._metadata = metadata
        self._chunks = chunks
        self._freed = freed

    async def work(self, run: Run) -> Outcome:
        """Apply the policies of all buckets. Raises ``SQLAlchemyError``, ``OSError``."""
        versions = rows = 0
        for bucket in await self._metadata.buckets():
            versions += len(await self._thin(bucket, b"", run))
            rows += await self._tidy(bucket, run)
        return Outcome(f"took out {versions} versions and {rows} rows of what was")

    async def preview(self, bucket: BucketRow, under: FileId = b"") -> RetentionReport:
        """What a run would take out now, below a directory or everywhere."""
        run, now = Run(), time.time_ns()
        ids: set[VersionId] = set()
        files: set[FileId] = set()
        beyond = 0
        while True:
            async for found in self._look(bucket, under, now, beyond, run):
                ids.update(found.versions)
                files |= found.files
            if beyond or not (beyond := await self._beyond(bucket, run, ids)):
                break
        contents = await self._metadata.read(contents_of, bucket.bucket, ids)
        room = await References(self._metadata, self._chunks, bucket).room(contents, run)
        return RetentionReport(len(ids), len(files), room)

    async def run(self, bucket: BucketRow, under: FileId = b"") -> RetentionReport:
        """Apply the policies now, below a directory or everywhere, and tell what went."""
        would = await self.preview(bucket, under)
        gone = await self._thin(bucket, under, Run())
        return RetentionReport(len(gone), would.files, would.bytes)

    async def purge(self, bucket: BucketRow, op: Purge, author: str) -> Purged:
        """Destroy history. Raises what ``metadata.purges.purge`` does."""
        done = await self._metadata.purge_history(bucket.name, op, author=author)
        self._freed()
        room = await References(self._metadata, self._chunks, bucket).room(done.contents, Run())
        return Purged(done.seq, len(done.contents), room)

    async def _thin(self, bucket: BucketRow, under: FileId, run: Run) -> list[VersionId]:
        gone: list[VersionId] = []
        beyond = 0
        while True:
            async for found in self._look(bucket, under, time.time_ns(), beyond, run):
                run.total += len(found.versions)
                for files in groups(sorted(found.files), FILES):
                    gone += await self._take_out(bucket, files, under, beyond, run)
            if beyond or not (beyond := await self._beyond(bucket, run)):
                break
        if gone:
            self._freed()
        return gone

    async def _take_out(
        self, bucket: BucketRow, files: list[FileId], under: FileId, beyond: int, run: Run
    ) -> list[VersionId]:
        gone: list[VersionId] = []
        while True:
            now = time.time_ns()
            some = await self._metadata.write(
                retention.take_out, bucket.bucket, files, now, beyond_ns=beyond, under=under
            )
            gone += some
            await run.step(len(some))
            if len(some) < retention.AT_ONCE:
                return gone

    async def _look(self, bucket: BucketRow, under: FileId, now: int, beyond: int, run: Run) -> AsyncIterator[Thinned]:
        """What goes, a page at a time."""
        after, done = b"", set[FileId]()
        while True:
            found = await self._metadata.read(
                retention.look, bucket.bucket, after, now, beyond_ns=beyond, under=under, done=done
            )
            yield found
            await run.step()
            done |= found.seen
            if not (after := found.last):
                return

    async def _beyond(self, bucket: BucketRow, run: Run, without: Collection[VersionId] = ()) -> int:
        """The time of the newest version that the share of the quota has no room for, 0 when it has for all."""
        budget = await self._metadata.read(share.budget, bucket.bucket)
        if budget is None:
            return 0
        old = [one for one in await self._metadata.read(share.old_versions, bucket.bucket) if one.id not in without]
        ids = [one.id for one in old]
        left_out = {*ids, *without}
        sizes = [0] * len(old)
        for first, beyond in ranges(sum(one.slices for one in old)):
            needs = share.Needs(first, beyond)
            start = 0
            for some in groups(ids):
                for place, manifest in await self._metadata.read(needs.load, bucket.bucket, some, start):
                    await walk(self._chunks, bucket, manifest, partial(needs.note, place))
                start += len(some)
                await run.step()
            suspects = set(needs.newest)
            await References(self._metadata, self._chunks, bucket).spare_needed(suspects, run, without=left_out)
            for chunk in suspects:
                place, length = needs.newest[chunk]
                sizes[place] += length
        return spent(zip((one.time_ns for one in old), sizes, strict=True), budget)

    async def _tidy(self, bucket: BucketRow, run: Run) -> int:
        """Thin the rows that tell what was."""
        gone, after = 0, b""
        while True:
            after, files = await self._metadata.read(remains.changed_files, bucket.bucket, after, time.time_ns())
            if files:
                gone += await self._metadata.write(remains.thin_past, bucket.bucket, files, time.time_ns())
            await run.step()
            if not after:
                break
        for forget in (remains.end_entries, remains.forget_files):
            while True:
                after, count = await self._metadata.write(forget, bucket.bucket, after, time.time_ns())
                gone += count
                await run.step()
                if not after:
                    break
        return gone
