"""Which ranges of slabs are in use: the one place that gives room and takes it back.

Three rules, which everything else rests on:

1. A range is given once. Appending goes on at the end of a slab, and a private slab notes what of it
   was given; what came free is never given again, so a range means the same bytes as long as anything
   refers to it. (Bytes of a generation that is not sealed are rewritten by their file:
   docs/concurrency.md says why that is safe.)
2. Who drops a reference passes what it referred to to :meth:`Space.free`. Nobody reasons about who
   else may need it.
3. What was passed is taken back when nothing refers to it, which is looked up and not remembered:
   rows of ``chunk`` and ``staged``, and what the holders (snapshots, downloads) name.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mountfs.local.database import Database
from mountfs.local.slabs import Slabs

log = logging.getLogger(__name__)

BLOCK = 4096
"""Bytes that a disk gives back at a time."""
COLLECT_RANGES = 1024
COLLECT_BYTES = 16 << 20
"""What waits to be taken back when it is looked at without being asked for."""
NUMBER_BITS = 32
"""Every start has 2³² slab numbers of its own."""
LOST = -1
"""In place of the slab of bytes that are gone."""

Range = tuple[int, int, int]
"""Slab, position and length of some bytes."""

ROWS = "SELECT slab, position, length FROM chunk UNION ALL SELECT slab, position, length FROM staged WHERE slab > 0"
"""Every range that the database refers to. No two overlap."""

_WITHIN = """SELECT position, length FROM {0} WHERE slab = ?1 AND position < ?3 AND position >= ifnull(
    (SELECT max(position) FROM {0} WHERE slab = ?1 AND position <= ?2{1}), ?2){1}"""
"""As no two overlap, what reaches into a range from before it is the last that begins there."""
_ROWS_WITHIN = f"{_WITHIN.format('chunk', '')} UNION ALL {_WITHIN.format('staged', ' AND slab > 0')}"


class Place(NamedTuple):
    """A range that is reserved for bytes to come."""

    slab: int
    position: int
    length: int
    fd: int
    """For :func:`mountfs.local.slabs.write_at` on any thread."""


class Space:
    """The ranges of all slabs."""

    def __init__(self, db: Database, slabs: Slabs) -> None:
        self._db = db
        self._slabs = slabs
        self._places: set[Place] = set()
        self._queue: list[Range] = []
        self._queued = 0
        self.holders: list[Callable[[], Iterable[Range]]] = [lambda: (place[:3] for place in self._places)]
        """Who else refers to ranges: each returns those of the moment."""
        self._take_numbers()
        self.begin()

    def _take_numbers(self) -> None:
        """New slabs get numbers that no row can mean, also one that the loss of power brings back.

        Every start takes a block of its own, which is written down before the first is used. What power
        loss takes of the database it takes from the end: with the block go all rows that use it.
        """
        rows: int = self._db.execute(f"SELECT ifnull(max(slab), 0) FROM ({ROWS})").get  # noqa: S608
        known = int(self._db.get_meta("slabs") or 0)
        block = 1 + max(known, rows >> NUMBER_BITS, self._slabs.last >> NUMBER_BITS)
        with self._db.transaction():
            self._db.set_meta("slabs", str(block).encode())
        self._slabs.last = block << NUMBER_BITS

    def begin(self) -> None:
        """Learn from the database what is in use and what is gone; give back what a daemon that died had left."""
        slabs = self._slabs
        slabs.live.clear()
        query = f"SELECT slab, sum(length), count(*), max(position + length) FROM ({ROWS}) GROUP BY slab"  # noqa: S608
        for slab, size, count, end in self._db.execute(query).fetchall():
            there = slabs.size(slab) if slab in slabs else 0
            if there < end:
                self._lose(slab, there)
                size = self._db.execute(f"SELECT ifnull(sum(length), 0) FROM ({ROWS}) WHERE slab = ?", (slab,)).get  # noqa: S608
            if size:
                slabs.live[slab] = size
                if slabs.on_disk(slab) > size + 2 * BLOCK * count:
                    self._tidy(slab)
        slabs.used = sum(slabs.live.values())
        for slab in slabs.ids():
            if not slabs.live[slab]:
                slabs.delete(slab)

    def _lose(self, slab: int, end: int) -> None:
        """A slab is gone from a position on: what is cached can be had again, the rest is lost."""
        log.warning("slab %d is gone from byte %d on", slab, end)
        with self._db.transaction():
            self._db.execute("DELETE FROM chunk WHERE slab = ? AND position + length > ?", (slab, end))
            self._db.execute("UPDATE staged SET slab = ? WHERE slab = ? AND position + length > ?", (LOST, slab, end))

    def _tidy(self, slab: int) -> None:
        end = self._slabs.size(slab)
        self._punch(slab, gaps(0, end, self._rows(slab, 0, end)))

    def _punch(self, slab: int, ranges: Iterable[tuple[int, int]]) -> None:
        """A disk that does not take a range back costs room and nothing else."""
        try:
            for start, end in ranges:
                self._slabs.punch(slab, start, end - start)
        except OSError as error:
            log.warning("slab %d keeps room it does not need: %s", slab, error)

    # Giving

    def reserve(self, length: int) -> Place:
        """Room for a thread to write to; :meth:`settle` it afterwards. Raises OSError."""
        slab, position = self._slabs.advance(length)
        place = Place(slab, position, length, self._slabs.open(slab))
        self._places.add(place)
        return place

    def settle(self, place: Place) -> None:
        """What was reserved is written; what no row refers to by now comes free."""
        os.close(place.fd)
        self._places.discard(place)
        self.free([place[:3]])

    # Taking back

    def free(self, ranges: Iterable[Range]) -> None:
        """A reference to these is gone. Not before the transaction that removes a row is through."""
        for found in ranges:
            if found[0] > 0 and found[2]:
                self._queue.append(found)
                self._queued += found[2]
        if len(self._queue) >= COLLECT_RANGES or self._queued >= COLLECT_BYTES:
            self.collect()

    def collect(self) -> None:
        """Take back what was passed to :meth:`free` and nothing refers to. Scans what is held: once for many."""
        if not self._queue or self._db.connection.in_transaction:
            return
        queue, self._queue, self._queued = self._queue, [], 0
        windows: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for slab, position, length in queue:
            if slab in self._slabs:
                windows[slab].append((position, position + length))
        held = self.held(windows)
        for slab, found in windows.items():
            for start, end in merged(found):
                low, high = start - start % BLOCK, end + -end % BLOCK
                live = merged([*self._rows(slab, low, high), *_overlapping(held[slab], low, high)])
                dead = sum(stop - begin for begin, stop in gaps(start, end, live))
                if dead:
                    self._slabs.live[slab] -= dead
                    self._slabs.used -= dead
                    # The rest of a block at either end may have come free before.
                    self._punch(slab, gaps(low, high, live))
            if not self._slabs.live[slab]:
                self._slabs.delete(slab)

    # Looking

    def held(self, slabs: Iterable[int]) -> dict[int, list[tuple[int, int]]]:
        """What the holders refer to in some slabs, as [start, end) in order."""
        found: dict[int, list[tuple[int, int]]] = {slab: [] for slab in slabs}
        for holder in self.holders:
            for slab, position, length in holder():
                if slab in found:
                    found[slab].append((position, position + length))
        return {slab: merged(ranges) for slab, ranges in found.items()}

    def waiting(self) -> list[Range]:
        """What was passed to :meth:`free` and not looked at yet."""
        return list(self._queue)

    def _rows(self, slab: int, start: int, end: int) -> list[tuple[int, int]]:
        rows = self._db.execute(_ROWS_WITHIN, (slab, start, end))
        return merged((position, position + length) for position, length in rows)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """[start, end) in order, those that touch joined."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def gaps(start: int, end: int, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of [start, end) is in none of ``ranges``, which are merged."""
    for begin, stop in ranges:
        if start < min(begin, end):
            yield start, min(begin, end)
        start = max(start, stop)
    if start < end:
        yield start, end


def _overlapping(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    first = max(0, bisect_right(ranges, (start, start)) - 1)
    last = bisect_right(ranges, (end, end))
    return ranges[first:last]
