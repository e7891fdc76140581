"""Whether what a state directory says of its content is true. Nothing here is on any path but a check's.

`mountfs doctor --deep` and the tests ask; so what docs/concurrency.md reasons about slab ranges is looked at, too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import trio

from mountfs.local.cache import Cache
from mountfs.local.database import Database
from mountfs.local.inodes import Inodes
from mountfs.local.slabs import Slabs, read_at
from mountfs.local.space import ROWS, merged
from nodeserver.content.codec import chunk_id
from nodeserver.content.manifest import unpack_slices

PAGE = 256
"""Rows read at a time."""
NAMED = 100
"""Paths and faults that are named."""


@dataclasses.dataclass
class Report:
    """What a check found."""

    chunks: int = 0
    """Cached chunks compared with their ids."""
    bytes: int = 0
    dropped: int = 0
    """Of them, those that were not what they say."""
    damaged: list[str] = dataclasses.field(default_factory=list)
    """Ids of chunks that were not what they say: just now, and before. They are not in the cache any more."""
    files: list[str] = dataclasses.field(default_factory=list)
    """Paths of files whose content refers to them."""
    lost: list[str] = dataclasses.field(default_factory=list)
    """Paths of files of which bytes are gone that the nodes never had."""
    faults: list[str] = dataclasses.field(default_factory=list)
    """What must never be: errors of this program, in words."""


class Checker:
    """Of a state directory that nobody else has open."""

    def __init__(
        self, db: Database, slabs: Slabs, cache: Cache, inodes: Inodes, more: Callable[[], Iterable[str]] = list
    ) -> None:
        """``more``: further faults."""
        self._db = db
        self._slabs = slabs
        self._cache = cache
        self._inodes = inodes
        self._more = more

    async def check(self) -> Report:
        """Look at everything. The event loop goes on between the slabs, and while chunks are read."""
        report = Report(faults=list(self._more()))
        for slab in sorted(self._slabs.ids() | self._referred()):
            report.faults += self._slab(slab)
            await trio.lowlevel.checkpoint()
        await self._chunks(report)
        damaged = {row[0] for row in self._db.execute("SELECT id FROM damaged")}
        report.damaged = sorted(chunk.hex() for chunk in damaged)
        if damaged:
            report.files = await self._referring(damaged)
        lost = self._db.execute("SELECT DISTINCT ino FROM staged WHERE slab < 0 LIMIT ?", (NAMED,)).fetchall()
        report.lost = [path for (ino,) in lost if (path := self._inodes.path(ino))]
        report.faults = report.faults[:NAMED]
        return report

    def _referred(self) -> set[int]:
        return {row[0] for row in self._db.execute(f"SELECT DISTINCT slab FROM ({ROWS})")}  # noqa: S608

    def _slab(self, slab: int) -> Iterator[str]:
        """What is wrong with the ranges of a slab. In one go: they change."""
        rows = self._db.execute(f"SELECT position, length FROM ({ROWS}) WHERE slab = ? ORDER BY position", (slab,))  # noqa: S608
        end, found = 0, []
        for position, length in rows:
            if position < end:
                yield f"slab {slab}: two live ranges share bytes {position} to {min(end, position + length)}"
            end = max(end, position + length)
            found.append((position, position + length))
        space = self._cache.space
        waiting = [(start, start + length) for number, start, length in space.waiting() if number == slab]
        used = merged([*found, *space.held([slab])[slab], *waiting])
        size = sum(stop - start for start, stop in used)
        if size != self._slabs.live[slab]:
            yield f"slab {slab}: {size} bytes are in use, counted are {self._slabs.live[slab]}"
        if slab not in self._slabs:
            if used:
                yield f"slab {slab} is gone, and referred to"
            return
        staged = self._db.execute("SELECT position, length FROM staged WHERE slab = ?", (slab,))
        yield from self._holes(slab, staged)

    def _holes(self, slab: int, ranges: Iterable[tuple[int, int]]) -> Iterator[str]:
        fd = self._slabs.file(slab)
        end = os.fstat(fd).st_size
        for position, length in ranges:
            if position + length > end:
                yield f"slab {slab} ends at {end}, before the live bytes {position} to {position + length}"
            elif (hole := os.lseek(fd, position, os.SEEK_HOLE)) < position + length:
                yield f"slab {slab}: a hole at {hole} in the live bytes {position} to {position + length}"

    async def _chunks(self, report: Report) -> None:
        keys = [row[0] for row in self._db.execute("SELECT chunk_key FROM bucket")]
        after = b""
        while rows := self._db.execute(
            "SELECT id, slab, position, length FROM chunk WHERE id > ? ORDER BY id LIMIT ?", (after, PAGE)
        ).fetchall():
            for chunk, slab, position, length in rows:
                if self._cache.peek(chunk) != (slab, position, length):
                    continue
                fd = self._slabs.open(slab)
                try:
                    same = await trio.to_thread.run_sync(_is, fd, position, length, chunk, keys)
                finally:
                    os.close(fd)
                report.chunks += 1
                report.bytes += length
                # Meanwhile it may have been evicted, and its bytes given back.
                if not same and self._cache.peek(chunk) == (slab, position, length):
                    self._cache.drop(chunk)
                    report.dropped += 1
            after = rows[-1][0]

    async def _referring(self, damaged: set[bytes]) -> list[str]:
        """Paths of files whose content has one of these chunks."""
        paths: list[str] = []
        after = 0
        while len(paths) < NAMED and (
            rows := self._db.execute(
                "SELECT ino, content FROM inode WHERE ino > ? AND content IS NOT NULL ORDER BY ino LIMIT ?",
                (after, PAGE),
            ).fetchall()
        ):
            for ino, content in rows:
                if any(piece.chunk in damaged for piece in unpack_slices(content)) and (path := self._inodes.path(ino)):
                    paths.append(path)
            after = rows[-1][0]
            await trio.lowlevel.checkpoint()
        return paths[:NAMED]


def _is(fd: int, position: int, length: int, chunk: bytes, keys: list[bytes]) -> bool:
    try:
        plaintext = read_at(fd, position, length)
    except OSError:
        return False
    return any(chunk_id(key, plaintext) == chunk for key in keys)
