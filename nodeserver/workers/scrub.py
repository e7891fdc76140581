"""Looks at the checksum of every piece on this node's disk, again and again; sets aside what is damaged, and tells."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from nodeserver.access.secrets import replace
from nodeserver.chunks import NoChunk
from nodeserver.chunks.store import DiskStore
from nodeserver.content.codec import CorruptChunk
from nodeserver.protocol.pieces import PieceId, chunk_of
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers.registry import Outcome, Run

AT_ONCE = 4 << 20
"""Bytes read in one step."""
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


class Scrub:
    """Of one disk; a round every ``period`` seconds, that a restart continues."""

    RATE = 32 << 20
    """Bytes a second, unless it is throttled to another rate: a disk of 4 TB takes a day and a half."""

    def __init__(self, disk: DiskStore, path: Path, period: float) -> None:
        """``path`` is where its progress is kept."""
        self._disk = disk
        self._path = path
        self._period = period
        self._found: list[tuple[bytes, ChunkId]] = []
        self._progress = self._load()
        disk.verified = self._verified

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
            for bucket in await self._disk.buckets():
                damaged += await self._look(bucket, progress.position, run)
            progress.verified_ns[progress.position] = now
            progress.position += 1
            if progress.position == 256 or time.monotonic() - written > OFTEN:
                replace(self._path, msgspec.json.encode(progress))
                written = time.monotonic()
            await run.step()
        left = self._period - (time.time_ns() - progress.began_ns) / 1e9
        return Outcome(f"looked at {run.done} pieces, {damaged} were damaged", max(left, 1.0))

    def take_damaged(self) -> list[tuple[bytes, ChunkId]]:
        """Bucket and chunk of pieces that were found damaged since this was asked last."""
        met = [(bucket, chunk_of(piece)) for bucket, piece in self._disk.met]
        self._disk.met.clear()
        found, self._found = self._found + met, []
        return found

    async def _look(self, bucket: bytes, first: int, run: Run) -> int:
        damaged = 0
        group: list[PieceId] = []
        size = 0
        for held in await self._disk.listing(bucket, first, first + 1):
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
                done = await self._disk.read(bucket, left)
            except NoChunk as error:
                left = [piece for piece in left if piece not in error.ids]
            except CorruptChunk as error:
                left.remove(error.chunk)
                await self._disk.quarantine(bucket, error.chunk)
                self._found.append((bucket, chunk_of(error.chunk)))
                damaged += 1
            else:
                del left[: len(done)]
        return damaged

    def _verified(self, piece: PieceId) -> int:
        return self._progress.verified_ns[piece[0]]

    def _load(self) -> Progress:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Progress()
