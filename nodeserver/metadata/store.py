"""The metadata of a node server: the asynchronous face of this package."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from nodeserver.metadata import buckets, commits, events, past, purges, reads, versions
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.database import Database
from nodeserver.metadata.errors import NoBucket, Unavailable
from nodeserver.metadata.migrations import STEPS, Step, migrate
from nodeserver.metadata.news import News
from nodeserver.metadata.purges import Destroyed
from nodeserver.protocol.wire import (
    Change,
    ChunkId,
    Commit,
    Committed,
    Events,
    FileAnswer,
    FileId,
    Listing,
    Moment,
    NewBucket,
    Occupants,
    PastNames,
    Purge,
    TreeListing,
    VersionAnswer,
    VersionId,
    Versions,
)

BELIEF = 1.0
"""Seconds that a bucket's identity is believed for where other servers may delete it."""
PATIENCE = 30.0
"""Seconds that who wants to write to a bucket waits for the others."""

P = ParamSpec("P")
T = TypeVar("T")


class Metadata:
    """Buckets by name, and what is in them. Methods raise the errors of ``metadata.errors``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[BucketRow, float]] = {}
        """What of a bucket never changes, so that a request for a chunk costs no query; until when it is believed."""
        self._belief = BELIEF if database.shared else math.inf
        self._deletions = 0  # what was read before one must not be remembered after it
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._chunk_keys: dict[bytes, bytes] = {}
        self._news = News(self._newest if database.shared else None)

    @classmethod
    async def open(cls, url: str, steps: Sequence[Step] = STEPS) -> Metadata:
        """Connect and bring the tables up to date. Raises ``UnusableUrl``, ``NewerFormat``."""
        database = Database(url)
        try:
            await database.repeat(migrate, steps)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    async def close(self) -> None:
        """Close the connections to the database."""
        await self._database.close()

    def release(self) -> None:
        """Answer every waiting long poll now, and let none wait from now on."""
        self._news.close()

    def nudge(self) -> None:
        """Answer every waiting long poll now: settings or the cluster map have changed."""
        self._news.nudge()

    @property
    def shared(self) -> bool:
        """Whether other servers may be at work on the same database."""
        return self._database.shared

    # Buckets

    async def identify(self, name: str) -> BucketRow:
        """A bucket whose ``bucket``, ``id``, ``root`` and ``chunk_key`` are right; the rest may be old.

        Where other servers delete buckets too, they are what they were a second ago.
        """
        known, until = self._known.get(name, (None, 0.0))
        return known if known and time.monotonic() < until else await self.bucket(name)

    async def bucket(self, name: str) -> BucketRow:
        """A bucket as it is now."""
        deletions, until = self._deletions, time.monotonic() + self._belief
        try:
            found = await self._database.read(buckets.find, name)
        except NoBucket:
            self._known.pop(name, None)
            raise
        if deletions == self._deletions:
            self._known[name] = found, until
        return found

    async def chunk_key(self, id_: bytes) -> bytes:
        """The chunk key of the bucket with an id; empty when there is none."""
        if not (key := self._chunk_keys.get(id_, b"")) and (key := await self._database.read(buckets.chunk_key, id_)):
            self._chunk_keys[id_] = key  # it never changes
        return key

    async def buckets(self) -> list[BucketRow]:
        """All buckets, by name."""
        return await self._database.read(buckets.every)

    async def create_bucket(self, name: str, new: NewBucket) -> BucketRow:
        """A new bucket, or the one that the same request made before."""
        return await self._database.repeat(buckets.create, name, new, time.time_ns())

    async def set_quota(self, name: str, quota: int | None) -> BucketRow:
        """Limit a bucket to ``quota`` bytes, None for no limit."""
        return await self._database.repeat(buckets.set_quota, name, quota)

    async def set_redundancy(self, name: str, redundancy: str) -> BucketRow:
        """Have a bucket's chunks kept in another way from now on."""
        row = await self._database.repeat(buckets.set_redundancy, name, redundancy)
        self.nudge()
        return row

    async def delete_bucket(self, name: str, *, history: bool = False) -> None:
        """Delete an empty bucket; with ``history`` also one that keeps versions of deleted files."""
        removed = await self._database.write(buckets.remove, name, history=history)
        self._deletions += 1
        self._known.clear()
        self._news.tell(removed.bucket)

    async def removed_buckets(self) -> list[tuple[int, bytes]]:
        """Number and id of deleted buckets that still take room."""
        return await self._database.read(buckets.removed)

    async def purge(self, bucket: int) -> bool:
        """Delete some of what a deleted bucket left; False when nothing is."""
        return await self.write(buckets.purge, bucket)

    # For the other modules of this package, whose functions take a connection and the number of a bucket.

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a read transaction."""
        return await self._database.read(function, *args, **kwargs)

    async def write(
        self, function: Callable[Concatenate[Connection, int, P], T], bucket: int, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``function(connection, bucket, …)``, durable when this returns; of one bucket one at a time."""

        def alone(connection: Connection) -> T:
            if self._database.shared:
                commits.claim(connection, bucket)
            return function(connection, bucket, *args, **kwargs)

        async with self._turn(bucket):
            return await self._database.write_claimed(alone)

    async def write_across(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``function(connection, …)``, which writes to no bucket in particular; durable when this returns."""
        return await self._database.write(function, *args, **kwargs)

    # Content

    async def commit(
        self,
        name: str,
        batch: Commit,
        *,
        author: str,
        chunks: Collection[ChunkId] = (),
        anew: Mapping[ChunkId, int] | None = None,
        id_: bytes = b"",
    ) -> Committed:
        """Apply a batch that ``checks.check_commit`` accepted; durable when this returns.

        ``chunks`` are those that its content is in; they are stored for the bucket with ``id_``. ``anew``: those that
        were found since an attempt raised ``Doomed``, with its times.
        """
        known = await self.identify(name)
        bucket = known.bucket
        if id_ and known.id != id_:
            raise Unavailable(f"the bucket {name!r} was deleted and made anew")
        async with self._turn(bucket):
            now = time.time_ns()
            try:
                answer = await self._database.repeat_claimed(
                    lambda connection: commits.commit(
                        connection, bucket, batch, author=author, now_ns=now, chunks=chunks, anew=anew
                    )
                )
            except NoBucket as error:
                await self.bucket(name)
                # Its chunks were looked for in the one that is gone.
                raise Unavailable(f"the bucket {name!r} was deleted and made anew") from error
        self._news.tell(bucket)
        return answer

    async def purge_history(self, name: str, op: Purge, *, author: str) -> Destroyed:
        """Destroy versions for good."""
        bucket = (await self.bucket(name)).bucket
        done = await self.write(purges.purge, bucket, op, author=author, now_ns=time.time_ns())
        self._news.tell(bucket)
        return done

    async def answered(self, name: str, batch: Commit) -> Committed | None:
        """The answer a batch got before, None when it was not applied."""
        return await self._in(name, commits.answered, batch)

    async def file(self, name: str, id_: FileId, at: int | None = None) -> FileAnswer:
        """A file with its whole manifest, now or as of commit ``at``."""
        if at is not None:
            return await self._in(name, past.file, id_, at)
        return await self._in(name, reads.file, id_)

    async def lookup(self, name: str, directory: FileId, entry: bytes, at: int | None = None) -> FileAnswer:
        """What a name is in a directory, or was as of commit ``at``."""
        if at is not None:
            return await self._in(name, past.lookup, directory, entry, at)
        return await self._in(name, reads.lookup, directory, entry)

    async def entries(self, name: str, directory: FileId, after: bytes, limit: int, at: int | None = None) -> Listing:
        """A page of a directory, now or as of commit ``at``: up to ``limit`` names greater than ``after``."""
        if at is not None:
            return await self._in(name, past.entries, directory, after, limit, at)
        return await self._in(name, reads.entries, directory, after, limit)

    async def changes(
        self, name: str, since: int, limit: int, wait: float, known: int = 0, known_ns: int = 0
    ) -> tuple[int, int, list[Change]]:
        """The newest commit reached, its time, and the commits after ``since``.

        Waits up to ``wait`` seconds for the first. ``known``, ``known_ns``: as ``reads.check_known``.
        """
        until = time.monotonic() + wait
        woken = False
        while True:
            bucket = (await self.identify(name)).bucket
            news = self._news.of(bucket)
            seq, time_ns, found = await self._in(name, reads.changes, since, limit, known, known_ns)
            if found or woken or self._news.closed or time.monotonic() >= until:
                return seq, time_ns, found
            await self._news.wait(news, bucket, seq, until)
            woken = news.is_set()

    # History

    async def moment(self, name: str, time_ns: int) -> Moment:
        """The newest commit not after a time in nanoseconds since the epoch."""
        return await self._in(name, past.moment, time_ns)

    async def tree(self, name: str, directory: FileId, after: bytes, limit: int, at: int | None) -> TreeListing:
        """A page of all that is below a directory, now or as of commit ``at``: the paths that follow ``after``."""
        return await self._in(name, past.tree, directory, after, limit, at)

    async def names(self, name: str, directory: FileId, after: bytes, limit: int) -> PastNames:
        """A page of the names that have or had content in a directory."""
        return await self._in(name, versions.names, directory, after, limit)

    async def versions(self, name: str, directory: FileId, entry: bytes, after: VersionId, limit: int) -> Versions:
        """A page of the history of a name, oldest first."""
        return await self._in(name, versions.versions, directory, entry, after, limit)

    async def version(self, name: str, id_: VersionId) -> VersionAnswer:
        """A version with its whole manifest."""
        return await self._in(name, versions.version, id_)

    async def log(self, name: str, id_: FileId, before: int, limit: int) -> Events:
        """A page of what happened to a file, or below a directory, newest first; from the newest with ``before`` 0."""
        return await self._in(name, events.log, id_, before, limit)

    async def occupants(self, name: str, directory: FileId, entry: bytes, after: int, limit: int) -> Occupants:
        """A page of who has or had a name, oldest first."""
        return await self._in(name, versions.occupants, directory, entry, after, limit)

    @contextlib.asynccontextmanager
    async def _turn(self, bucket: int) -> AsyncIterator[None]:
        """Who writes to a bucket does so one at a time, and is outrun only by other servers."""
        turn = self._turns[bucket]
        try:
            async with asyncio.timeout(PATIENCE):
                await turn.acquire()
        except TimeoutError as error:
            raise Unavailable("too many wait to write to the bucket") from error
        try:
            yield
        finally:
            turn.release()

    async def _in(
        self, name: str, function: Callable[Concatenate[Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``function(connection, bucket, …)``, which only reads."""
        bucket = (await self.identify(name)).bucket
        try:
            return await self._database.read(function, bucket, *args, **kwargs)
        except NoBucket:  # unless another server deleted it and there is a new one of that name
            return await self._database.read(function, (await self.bucket(name)).bucket, *args, **kwargs)

    async def _newest(self) -> Mapping[int, int]:
        return await self._database.read(reads.newest_seqs)
