"""The chunk cache and the room it leaves: which chunks lie in which slab, and what goes first.

The cap covers staged and cached bytes alike. Only cached chunks are evicted; staged bytes stay until
the nodes have them.
"""

from __future__ import annotations

import errno
import logging
import time

from mountfs.local.database import Database
from mountfs.local.slabs import Slabs
from mountfs.local.space import Range, Space
from nodeserver.content.codec import chunk_id

log = logging.getLogger(__name__)

DISK_CHECK_BYTES = 16 << 20
"""The disk's free space is asked for again after this many bytes."""
TOUCHED = 4096
"""Chunks read since their stamps were last written."""
EVICT_ROWS = 256
"""Chunks looked at in one step of eviction."""


class Cache:
    """Chunks by id, and the budget of all slabs."""

    def __init__(self, db: Database, slabs: Slabs, cap: int) -> None:
        """``cap`` in bytes."""
        self._db = db
        self._slabs = slabs
        self.space = Space(db, slabs)
        self.cap = cap
        self._touched: set[bytes] = set()
        self._disk_left = 0

    def locate(self, chunk: bytes, *, verify: bool = False) -> Range | None:
        """(slab, position, length) of a cached chunk. One that nobody has looked at since the machine or
        this program changed is compared with its id first; with ``verify`` any is."""
        row = self._db.execute("SELECT slab, position, length, checked FROM chunk WHERE id = ?", (chunk,)).fetchone()
        if row is None:
            return None
        place: Range = row[:3]
        if verify or not row[3]:
            if not self._matches(chunk, place):
                self.drop(chunk)
                return None
            if not row[3]:
                self._db.execute("UPDATE chunk SET checked = 1 WHERE id = ?", (chunk,))
        self._touched.add(chunk)
        if len(self._touched) >= TOUCHED:
            self._save_stamps()
        return place

    def peek(self, chunk: bytes) -> Range | None:
        """As :meth:`locate`, for those who do not want its bytes."""
        row = self._db.execute("SELECT slab, position, length FROM chunk WHERE id = ?", (chunk,)).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def _matches(self, chunk: bytes, place: Range) -> bool:
        try:
            plaintext = self._slabs.read(*place)
        except OSError as error:
            log.warning("cached chunk %s: %s", chunk.hex(), error)
            return False
        return any(chunk_id(key, plaintext) == chunk for (key,) in self._db.execute("SELECT chunk_key FROM bucket"))

    def add(self, chunk: bytes, slab: int, position: int, length: int) -> bool:
        """A range of a slab is a chunk's plaintext, whole. False when the chunk is cached already,
        or some of the range as another: no two rows overlap."""
        before = self._db.execute(
            "SELECT position + length FROM chunk WHERE slab = ? AND position < ? ORDER BY position DESC LIMIT 1",
            (slab, position + length),
        ).fetchone()
        if before is not None and before[0] > position:
            return False
        self._db.execute(
            "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, 1)", (chunk, slab, position, length, time.time_ns())
        )
        return self._db.connection.changes() > 0

    def drop(self, chunk: bytes) -> None:
        """Forget a cached chunk, because what lies there is not it. It is noted for ``mountfs doctor``."""
        row = self.peek(chunk)
        if row is not None:
            log.warning("chunk %s was damaged in the cache: dropped", chunk.hex())
            with self._db.transaction():
                self._db.execute("DELETE FROM chunk WHERE id = ?", (chunk,))
                self._db.execute("INSERT OR REPLACE INTO damaged VALUES (?, ?)", (chunk, time.time_ns()))
            self.space.free([row])

    def distrust(self) -> None:
        """Compare every chunk with its id before it is used, inside the caller's transaction."""
        self._db.execute("UPDATE chunk SET checked = 0")

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes may be stored now; evicts for them if need be."""
        self._disk_left -= size
        if self._disk_left < 0:
            available, _ = self._slabs.disk()
            self._disk_left = min(available - size, DISK_CHECK_BYTES)
            if self._disk_left < 0:
                self._evict(-self._disk_left)
                self._disk_left = min(self._slabs.disk()[0] - size, DISK_CHECK_BYTES)
                if self._disk_left < 0:
                    return False
        if self._slabs.used + size > self.cap:
            self.space.collect()
        excess = self._slabs.used + size - self.cap
        return excess <= 0 or self._evict(max(excess, self.cap // 64)) >= excess

    def require_room(self, size: int) -> None:
        """As :meth:`has_room`; raises OSError(ENOSPC) when there is none."""
        if not self.has_room(size):
            raise OSError(errno.ENOSPC, "the cache is full of what the nodes do not have yet")

    def _evict(self, size: int) -> int:
        """Give back about ``size`` bytes of cached chunks, oldest first; returns how many went."""
        self._save_stamps()
        before = self._slabs.used
        self.space.collect()
        while before - self._slabs.used < size:
            rows = self._db.execute(
                "SELECT id, slab, position, length FROM chunk ORDER BY stamp LIMIT ?", (EVICT_ROWS,)
            ).fetchall()
            if not rows:
                break
            freed = 0
            taken = []
            for row in rows:
                taken.append(row)
                freed += row[3]
                if before - self._slabs.used + freed >= size:
                    break
            with self._db.transaction():
                self._db.executemany("DELETE FROM chunk WHERE id = ?", [(row[0],) for row in taken])
            self.space.free([(slab, position, length) for _, slab, position, length in taken])
            self.space.collect()
        return before - self._slabs.used

    def _save_stamps(self) -> None:
        now = time.time_ns()
        with self._db.transaction():
            self._db.executemany("UPDATE chunk SET stamp = ? WHERE id = ?", [(now, key) for key in self._touched])
        self._touched.clear()

    def size(self) -> tuple[int, int]:
        """(bytes used by slabs, cap)."""
        return self._slabs.used, self.cap
