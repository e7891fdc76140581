"""Ordered, non-overlapping extents: what lies over a file's committed content."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """``length`` bytes of a file from ``offset`` on: in a slab, in a chunk, or (neither) zeros.

    ``gen`` is the generation of the writing, see :mod:`mountfs.local.staging`.
    """

    offset: int
    length: int
    slab: int
    position: int
    gen: int
    chunk: bytes = b""

    @property
    def end(self) -> int:
        return self.offset + self.length

    def part(self, start: int, end: int) -> Extent:
        """The piece between two file offsets inside it."""
        position = self.position + start - self.offset if self.slab or self.chunk else 0
        return self._replace(offset=start, length=end - start, position=position)

    def joins(self, other: Extent) -> bool:
        """Whether ``other`` continues this one in the file and wherever the bytes are."""
        return (
            self.end == other.offset
            and self.slab == other.slab
            and self.gen == other.gen
            and self.chunk == other.chunk
            and (self.position + self.length == other.position or not (self.slab or self.chunk))
        )


class ExtentMap:
    """Extents in order of offset."""

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._extents = list(extents)
        self._starts = [extent.offset for extent in self._extents]

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    def copy(self) -> ExtentMap:
        """A snapshot."""
        return ExtentMap(self._extents)

    def _range(self, start: int, end: int) -> tuple[int, int]:
        """Indices of the extents that overlap [start, end)."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._extents[first].end <= start:
            first += 1
        last = first
        while last < len(self._extents) and self._starts[last] < end:
            last += 1
        return first, last

    def overlapping(self, start: int, end: int) -> list[Extent]:
        """The extents that overlap [start, end), whole."""
        first, last = self._range(start, end)
        return self._extents[first:last]

    def put(self, extent: Extent) -> tuple[list[Extent], list[Extent]]:
        """Lay an extent over what is there.

        Returns the extents that went and those that came in their place: the new one, joined with a
        neighbour that it continues, and what is left of those it covered in part.
        """
        first, last = self._range(extent.offset, extent.end)
        gone = self._extents[first:last]
        fresh: list[Extent] = []
        if gone and gone[0].offset < extent.offset:
            fresh.append(gone[0].part(gone[0].offset, extent.offset))
        elif first and self._extents[first - 1].joins(extent):
            first -= 1
            before = self._extents[first]
            gone = [before, *gone]
            extent = before._replace(length=before.length + extent.length)
        if fresh and fresh[0].joins(extent):
            extent = fresh[0]._replace(length=fresh[0].length + extent.length)
            fresh.clear()
        fresh.append(extent)
        if gone and gone[-1].end > extent.end:
            rest = gone[-1].part(extent.end, gone[-1].end)
            if extent.joins(rest):
                fresh[-1] = extent._replace(length=extent.length + rest.length)
            else:
                fresh.append(rest)
        self._splice(first, last, fresh)
        return gone, fresh

    def cut(self, size: int) -> tuple[list[Extent], list[Extent]]:
        """Drop everything from ``size`` on; returns what went and what came, as :meth:`put` does."""
        first, last = self._range(size, 1 << 63)
        gone = self._extents[first:last]
        fresh = [gone[0].part(gone[0].offset, size)] if gone and gone[0].offset < size else []
        self._splice(first, last, fresh)
        return gone, fresh

    def _splice(self, first: int, last: int, fresh: list[Extent]) -> None:
        self._extents[first:last] = fresh
        self._starts[first:last] = [extent.offset for extent in fresh]
