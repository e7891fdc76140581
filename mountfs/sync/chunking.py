"""What of a file's content has to be cut into chunks anew, and what can stay."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from operator import attrgetter

import trio

from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from nodeserver.content.chunker import AVG_CHUNK, MIN_CHUNK
from nodeserver.protocol.wire import Slice

FRAGMENTS = 256
"""Slices that small pieces may add before an open file is cut as a closed one."""

PLANNED_HERE = 1000
"""The plan of content in more pieces than this is made on a thread."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """A slice that stays as it is."""

    slice: Slice


@dataclasses.dataclass(frozen=True)
class Cut:
    """[start, limit) is to be cut into chunks, but for what follows the first cut in ``stops`` after ``start``.

    A cut at a stop means that from there on the old boundaries hold again: see :meth:`Plan.met`. All steps of
    a plan share the set of its stops.
    """

    start: int
    limit: int
    stops: frozenset[int] = frozenset()


class Plan:
    """How to send the content of a file from ``start`` on: an iterator of steps.

    A file that is still open sends just what changed, as small chunks between slices of old ones:
    a database that fsyncs a page must not send two megabytes. Everything else is cut by content,
    from the chunk before the first change to where the boundaries meet the old ones again.

    Making a plan and walking through it take time in proportion to the pieces the content is in, however
    often cutting meets old boundaries: each piece is looked at a fixed number of times.
    """

    def __init__(self, layers: Layers, *, still_open: bool, start: int = 0) -> None:
        parts = _coalesce(layers.plan(start, layers.size))
        self._parts = parts
        self._by_content = not (still_open and len(parts) <= FRAGMENTS + layers.size // AVG_CHUNK)
        self._end = layers.size
        self._stops = frozenset(part.offset for part in parts if self._stays(part)) if self._by_content else frozenset()
        self._next = 0
        self._hole = 0
        """The first hole that ends a cut, at ``_next`` or behind."""
        self._held: Keep | None = None
        """What stays, unless what follows it changed."""

    def __iter__(self) -> Iterator[Keep | Cut]:
        return self

    def __next__(self) -> Keep | Cut:
        while self._next < len(self._parts):
            part = self._parts[self._next]
            if self._stays(part):
                self._next += 1
                held, self._held = self._held, Keep(_slice(part))
                if held is not None:
                    return held
            elif self._held is None:
                return self._cut(part.offset)
            elif self._by_content and self._held.slice.chunk:
                before, self._held = self._held.slice, None
                return self._cut(part.offset - before.length)
            else:
                return self._release(self._held)
        if self._held is None:
            raise StopIteration
        return self._release(self._held)

    def _release(self, held: Keep) -> Keep:
        self._held = None
        return held

    def _cut(self, start: int) -> Cut:
        """From ``start`` to where the part at ``_next`` ends, or cut by content, to the next hole or the end."""
        if not self._by_content:
            self._next += 1
            return Cut(start, self._parts[self._next - 1].end)
        self._hole = max(self._hole, self._next)
        while self._hole < len(self._parts) and not _is_hole(self._parts[self._hole]):
            self._hole += 1
        self._next = self._hole
        limit = self._parts[self._hole].offset if self._hole < len(self._parts) else self._end
        return Cut(start, limit, self._stops)

    def met(self, end: int) -> bool:
        """The last cut ended at ``end``, its limit or a stop: go on from there. False when it is neither."""
        if end == (self._parts[self._next].offset if self._next < len(self._parts) else self._end):
            return True
        self._next = bisect_left(self._parts, end, key=attrgetter("offset"))
        return end in self._stops

    def _stays(self, part: Extent) -> bool:
        """Whether a part is a chunk that cutting would give again, or a hole worth keeping."""
        if not self._by_content:
            return not part.slab
        if part.chunk:
            return not part.position and (part.length >= MIN_CHUNK or part.end == self._end)
        return _is_hole(part)


async def make_plan(layers: Layers, *, still_open: bool, start: int = 0) -> Plan:
    """How to send content; the loop goes on meanwhile."""
    if layers.pieces <= PLANNED_HERE:
        return Plan(layers, still_open=still_open, start=start)
    return await trio.to_thread.run_sync(partial(Plan, layers.copy(), still_open=still_open, start=start))


def _is_hole(part: Extent) -> bool:
    return not part.slab and not part.chunk and part.length >= MIN_CHUNK


def _slice(part: Extent) -> Slice:
    return Slice(part.chunk, part.position, part.length)


def _coalesce(parts: list[Extent]) -> list[Extent]:
    """Join neighbours that lie together, and staged neighbours wherever they lie."""
    joined: list[Extent] = []
    for part in parts:
        if joined:
            last = joined[-1]
            if (last.slab and part.slab) or last._replace(gen=part.gen).joins(part):
                joined[-1] = last._replace(length=last.length + part.length)
                continue
        joined.append(part)
    return joined
