"""Extents and layers against a plain array of bytes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from random import Random
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mountfs.local.extents import Extent, ExtentMap
from mountfs.local.layers import Layers
from mountfs.local.staging import Content
from mountfs.sync.chunking import PLANNED_HERE, Cut, Keep, Plan, make_plan
from mountfs.sync.uploads import early_cut, early_start
from nodeserver.content.chunker import MIN_CHUNK
from nodeserver.protocol.wire import Slice

SIZE = 200

ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 60), st.integers(1, 3), st.booleans())


def sources(layers: Layers) -> list[tuple[int, bytes, int]]:
    """(slab, chunk, position) of every byte."""
    return [
        (part.slab, part.chunk, part.position + index if part.slab or part.chunk else 0)
        for part in layers.plan(0, layers.size)
        for index in range(part.length)
    ]


@given(st.lists(ranges, max_size=30), st.lists(st.integers(0, SIZE), max_size=3))
def test_what_was_put_last_is_on_top(puts: list[tuple[int, int, int, bool]], cuts: list[int]) -> None:
    extents = ExtentMap()
    expected: dict[int, tuple[int, bytes, int]] = {}
    mirror: dict[int, Extent] = {}
    for number, (offset, length, slab, aligned) in enumerate(puts):
        extent = Extent(offset, length, slab, offset if aligned else number * 1000, gen=1)
        gone, fresh = extents.put(extent)
        for old in gone:
            del mirror[old.offset]
        for new in fresh:
            assert new.offset not in mirror
            mirror[new.offset] = new
        for index in range(length):
            expected[offset + index] = (slab, b"", extent.position + index)
    for size in cuts:
        gone, fresh = extents.cut(size)
        for old in gone:
            del mirror[old.offset]
        for new in fresh:
            mirror[new.offset] = new
        expected = {at: value for at, value in expected.items() if at < size}
    assert [mirror[offset] for offset in sorted(mirror)] == list(extents)
    end = max(expected, default=-1) + 1
    layers = Layers([], extents, end)
    assert sources(layers) == [expected.get(at, (0, b"", 0)) for at in range(end)]


@given(st.lists(st.integers(1, 40), max_size=6), st.lists(ranges, max_size=8), st.integers(0, SIZE))
def test_a_plan_covers_its_range_without_gaps(base: list[int], puts: list[tuple[int, int, int, bool]], at: int) -> None:
    extents = ExtentMap()
    for offset, length, slab, _ in puts:
        extents.put(Extent(offset, length, slab, offset, gen=1))
    slices = [Slice(bytes([index]), 0, length) for index, length in enumerate(base)]
    layers = Layers(slices, extents, SIZE)
    plan = layers.plan(at, SIZE)
    assert sum(part.length for part in plan) == SIZE - at
    position = at
    for part in plan:
        assert part.offset == position
        position = part.end


MIB = 1 << 20

dirty = st.lists(st.tuples(st.integers(0, 40 * MIB), st.integers(1, 3 * MIB)), max_size=5)


@given(st.lists(st.integers(MIN_CHUNK, 8 * MIB), max_size=8), dirty, st.booleans(), st.randoms())
def test_steps_cover_a_file_and_keep_what_did_not_change(
    base: list[int], writes: list[tuple[int, int]], still_open: bool, random: Random
) -> None:
    extents = ExtentMap()
    size = sum(base)
    for offset, length in writes:
        extents.put(Extent(offset, length, 1, offset, gen=1))
        size = max(size, offset + length)
    layers = Layers([Slice(bytes([index + 1]) * 32, 0, length) for index, length in enumerate(base)], extents, size)
    position = 0
    plan = Plan(layers, still_open=still_open)
    for step in plan:
        if isinstance(step, Keep):
            assert not any(part.slab for part in layers.plan(position, position + step.slice.length))
            position += step.slice.length
        else:
            assert isinstance(step, Cut)
            assert step.start == position < step.limit
            position = random.choice([*(stop for stop in step.stops if step.start < stop < step.limit), step.limit])
            assert plan.met(position)
    assert position == size


def pieces_and_holes(count: int) -> Layers:
    """A byte in every MiB."""
    extents = ExtentMap(Extent(index * MIB, 1, 1, index, gen=1) for index in range(count))
    return Layers([], extents, count * MIB)


def changed_chunks(count: int) -> Layers:
    """Every other chunk has a changed page."""
    base = [Slice(index.to_bytes(32, "big"), 0, MIB) for index in range(1, count + 1)]
    extents = ExtentMap(Extent(index * MIB, 4096, 1, index * 4096, gen=1) for index in range(0, count, 2))
    return Layers(base, extents, count * MIB)


def walk(layers: Layers, *, still_open: bool) -> None:
    """All steps, where each cut meets the first old boundary it can."""
    position = 0
    plan = Plan(layers, still_open=still_open)
    for step in plan:
        if isinstance(step, Keep):
            position += step.slice.length
            continue
        position = step.start + MIB
        while position < step.limit and position not in step.stops:
            position += MIB
        position = min(position, step.limit)
        assert plan.met(position)
    assert position == layers.size


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("still_open", [True, False])
@pytest.mark.parametrize("content", [pieces_and_holes, changed_chunks])
def test_planning_takes_time_in_proportion_to_the_pieces(content: Callable[[int], Layers], still_open: bool) -> None:
    few, many = (content(count) for count in (1000, 4000))
    ratio = lines_run(lambda: walk(many, still_open=still_open)) / lines_run(lambda: walk(few, still_open=still_open))
    assert ratio < 5


def test_writes_of_a_sparse_file_do_not_look_at_all_of_it_again() -> None:
    """While a file is written, what is too small to be sent early is not planned again at every write."""
    few, many = (planned_while_written(count) for count in (500, 2000))
    assert many < 5 * few


def planned_while_written(count: int) -> int:
    """Pieces that early uploads look at when a byte is written to every MiB, one after the other."""
    content = Content(1, 1, Layers([], ExtentMap(), 0), b"", b"", 1)
    looked = 0
    for index in range(count):
        content.layers.overlay.put(Extent(index * MIB, 1, 1, index, gen=1))
        content.layers.size = index * MIB + 1
        looked += len(content.layers.plan(early_start(content), content.layers.size))
        assert early_cut(content) is None
    return looked


class Waiting(Layers):
    """Layers whose plan is not made before the loop said that it goes on."""

    loop_goes_on: threading.Event

    def copy(self) -> Layers:
        return self

    def plan(self, start: int, end: int) -> list[Extent]:
        assert self.loop_goes_on.wait(30), "the loop waits for the plan"
        return super().plan(start, end)


async def test_the_loop_goes_on_while_a_large_plan_is_made() -> None:
    content = pieces_and_holes(PLANNED_HERE + 1)
    layers = Waiting(content.base, content.overlay, content.size)
    layers.loop_goes_on = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(make_plan, layers, still_open=False))
        await trio.testing.wait_all_tasks_blocked()
        layers.loop_goes_on.set()
