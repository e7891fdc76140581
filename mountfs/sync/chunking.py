"""What of a file's content has to be cut into chunks anew, and what can stay. Pure functions."""

from __future__ import annotations

import dataclasses

from mountfs.local.extents import Extent
from mountfs.local.layers import Layers
from nodeserver.content.chunker import AVG_CHUNK, MIN_CHUNK
from nodeserver.protocol.wire import Slice

FRAGMENTS = 256
"""Slices that small pieces may add before an open file is cut as a closed one."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """A slice that stays as it is."""

    slice: Slice


@dataclasses.dataclass(frozen=True)
class Cut:
    """[start, limit) is to be cut into chunks, but for what follows the first cut in ``stops``.

    A cut at a stop means that from there on the old boundaries hold again.
    """

    start: int
    limit: int
    stops: frozenset[int] = frozenset()


def steps(layers: Layers, *, still_open: bool, start: int = 0) -> list[Keep | Cut]:
    """How to send the content of a file from ``start`` on.

    A file that is still open sends just what changed, as small chunks between slices of old ones:
    a database that fsyncs a page must not send two megabytes. Everything else is cut by content,
    from the chunk before the first change to where the boundaries meet the old ones again.
    """
    parts = _coalesce(layers.plan(start, layers.size))
    if still_open and len(parts) <= FRAGMENTS + layers.size // AVG_CHUNK:
        return [Keep(_slice(part)) if not part.slab else Cut(part.offset, part.end) for part in parts]
    return _by_content(parts)


def _by_content(parts: list[Extent]) -> list[Keep | Cut]:
    result: list[Keep | Cut] = []
    end = parts[-1].end if parts else 0
    stops = frozenset(part.offset for part in parts if _stays(part, end))
    index = 0
    while index < len(parts):
        part = parts[index]
        if _stays(part, end):
            result.append(Keep(_slice(part)))
            index += 1
            continue
        start = part.offset
        previous = result[-1] if result else None
        if isinstance(previous, Keep) and previous.slice.chunk:
            result.pop()
            start -= previous.slice.length
        while index < len(parts) and not _is_hole(parts[index]):
            index += 1
        limit = parts[index].offset if index < len(parts) else end
        result.append(Cut(start, limit, frozenset(stop for stop in stops if part.offset < stop < limit)))
    return result


def after_stop(layers: Layers, stop: int) -> list[Keep | Cut]:
    """The steps that are left when cutting met the old boundaries at ``stop``."""
    return steps(layers, still_open=False, start=stop)


def _is_hole(part: Extent) -> bool:
    return not part.slab and not part.chunk and part.length >= MIN_CHUNK


def _stays(part: Extent, end: int) -> bool:
    """Whether a part is a chunk that cutting would give again, or a hole worth keeping."""
    if part.chunk:
        return not part.position and (part.length >= MIN_CHUNK or part.end == end)
    return _is_hole(part)


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
