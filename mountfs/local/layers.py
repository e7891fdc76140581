"""A file's content as layers: a committed version below, what was written since above."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from mountfs.local.extents import Extent, ExtentMap
from nodeserver.protocol.wire import Slice


class Layers:
    """Where each byte of a file is, up to ``size``."""

    def __init__(self, base: list[Slice], overlay: ExtentMap, size: int) -> None:
        self.overlay = overlay
        self.size = size
        self.rebase(base)

    def rebase(self, base: list[Slice]) -> None:
        """Put another version underneath."""
        self.base = base
        self._starts = list(accumulate((piece.length for piece in base), initial=0))

    @property
    def base_size(self) -> int:
        """Bytes in the version underneath."""
        return self._starts[-1]

    @property
    def pieces(self) -> int:
        """In how many pieces the content is, about."""
        return len(self.base) + len(self.overlay)

    def copy(self) -> Layers:
        """A snapshot."""
        return Layers(self.base, self.overlay.copy(), self.size)

    def plan(self, start: int, end: int) -> list[Extent]:
        """What makes up [start, end), in order and without gaps; ``end`` at most ``size``."""
        parts: list[Extent] = []
        for extent in self.overlay.overlapping(start, end) if len(self.overlay) else ():
            if extent.offset > start:
                parts += self._below(start, extent.offset)
                start = extent.offset
            stop = min(end, extent.end)
            parts.append(extent.part(start, stop))
            start = stop
        if start < end:
            parts += self._below(start, end)
        return parts

    def slices_from(self, position: int) -> Iterator[Slice]:
        """The slices of the version underneath from the one at ``position`` on."""
        index = bisect_right(self._starts, position) - 1
        while index < len(self.base):
            yield self.base[index]
            index += 1

    def slice_end(self, position: int) -> int:
        """Where the slice at ``position`` of the version underneath ends."""
        index = bisect_right(self._starts, position)
        return self._starts[index] if index < len(self._starts) else self.size

    def _below(self, start: int, end: int) -> Iterator[Extent]:
        index = bisect_right(self._starts, start) - 1
        while start < end and index < len(self.base):
            piece, first = self.base[index], self._starts[index]
            stop = min(end, first + piece.length)
            position = piece.offset + start - first if piece.chunk else 0
            yield Extent(start, stop - start, 0, position, 0, piece.chunk)
            start = stop
            index += 1
        if start < end:
            yield Extent(start, end - start, 0, 0, 0)
