"""Looks at the checksum of everything that is stored, again and again.

On a node's own disk what is damaged is set aside, and the cluster told. In a store that servers share one of them looks
at a time; damaged chunks count as missing, so that they are stored anew when their content is written again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from nodeserver.access.secrets import replace
from nodeserver.chunks import NoChunk
from nodeserver.chunks.s3.store import S3Store
from nodeserver.content.codec import CorruptChunk
from nodeserver.metadata import garbage, surveys
from nodeserver.metadata.store import Metadata
from nodeserver.metadata.surveys import Survey
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import PieceId
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers.references import References
from nodeserver.workers.registry import Outcome, Run

AT_ONCE = 4 << 20
"""Bytes read in one step."""
AT_A_TIME = 1000
"""Chunks that a store is asked for between two steps."""
OFTEN = 10.0
"""Seconds between two notes of how far it is."""


class Progress(msgspec.Struct):
    """What ``scrub.json`` holds."""

    began_ns: int = 0
    """When the present or last round began."""
    position: int = 0
    """The first byte of the ids that are next; 256 when the round is through."""
    verified_ns: list[int] = msgspec.field(default_factory=lambda: [0] * 256)
    """By first byte: when those pieces were last looked at."""


class Shelf(Protocol):
    """What has pieces by bucket."""

    async def buckets(self) -> list[bytes]:
        """The buckets that something is stored of."""

    async def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """All pieces whose ids begin with a byte from ``first`` on and below ``beyond``."""

    async def inspect(self, bucket: bytes, pieces: Sequence[PieceId]) -> list[tuple[PieceId, bytes]]:
        """As ``ChunkStore.read``, without getting into the way of those who wait for what they read."""

    async def quarantine(self, bucket: bytes, piece: PieceId) -> None:
        """Take a damaged piece out."""


class Scrub:
    """Of one shelf; a round every ``period`` seconds, that a restart continues."""

    RATE = 32 << 20
    """Bytes a second, unless it is throttled to another rate: a disk of 4 TB takes a day and a half."""

    def __init__(self, shelf: Shelf, path: Path, period: float) -> None:
        """``path`` is where its progress is kept."""
        self._shelf = shelf
        self._path = path
        self._period = period
        self._progress = self._load()

    async def work(self, run: Run) -> Outcome:
        """Finish the round that was begun, or make another. Raises ``OSError``."""
        progress = self._progress
        left = self._period - (time.time_ns() - progress.began_ns) / 1e9
        if progress.position > 255 and left > 0 and not run.ordered:
            return Outcome("the last round is not long ago", left)
        if progress.position > 255 or not progress.began_ns:
            progress.began_ns, progress.position = time.time_ns(), 0
        damaged, written = 0, time.monotonic()
        while progress.position < 256:
            now = time.time_ns()
            for bucket in await self._shelf.buckets():
                damaged += await self._look(bucket, progress.position, run)
            progress.verified_ns[progress.position] = now
            progress.position += 1
            if progress.position == 256 or time.monotonic() - written > OFTEN:
                replace(self._path, msgspec.json.encode(progress))
                written = time.monotonic()
            await run.step()
        said = f"looked at {run.done} pieces, {damaged} were damaged{await self._finish(run)}"
        left = self._period - (time.time_ns() - progress.began_ns) / 1e9
        return Outcome(said, max(left, 1.0))

    def verified(self, piece: PieceId) -> int:
        """When the checksum of a piece that was there then was looked at, in nanoseconds since the epoch."""
        return self._progress.verified_ns[piece[0]]

    async def _finish(self, run: Run) -> str:
        """What else there is to look at when a round is through, and to say of it."""
        return ""

    async def _look(self, bucket: bytes, first: int, run: Run) -> int:
        damaged = 0
        group: list[PieceId] = []
        size = 0
        for held in await self._shelf.listing(bucket, first, first + 1):
            group.append(held.piece)
            size += held.size
            if size >= AT_ONCE:
                damaged += await self._verify(bucket, group)
                await run.spend(size)
                await run.step(len(group))
                group, size = [], 0
        damaged += await self._verify(bucket, group)
        await run.spend(size)
        run.done += len(group)
        return damaged

    async def _verify(self, bucket: bytes, pieces: list[PieceId]) -> int:
        left, damaged = list(pieces), 0
        while left:
            try:
                done = await self._shelf.inspect(bucket, left)
            except NoChunk as error:
                left = [piece for piece in left if piece not in error.ids]
            except CorruptChunk as error:
                left.remove(error.chunk)
                await self._shelf.quarantine(bucket, error.chunk)
                damaged += 1
            else:
                del left[: len(done)]
        return damaged

    def _load(self) -> Progress:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Progress()


class StoreScrub(Scrub):
    """Of a store that servers share."""

    def __init__(self, metadata: Metadata, store: S3Store, path: Path, period: float) -> None:
        super().__init__(store, path, period)
        self._metadata = metadata
        self._store = store

    async def _finish(self, run: Run) -> str:
        """Ask the store for every chunk that a version refers to."""
        lost: set[tuple[bytes, ChunkId]] = set()
        for bucket in await self._metadata.buckets():
            async for needed in References(self._metadata, self._store, bucket).known(run):
                for some in garbage.groups(needed, AT_A_TIME):
                    lost.update((bucket.id, chunk) for chunk in await self._store.missing(bucket.id, some))
                    await run.step()
        await self._metadata.write_across(surveys.note, Survey(time.time_ns(), run.done, lost=len(lost)))
        return f", {len(lost)} that are needed cannot be read"
