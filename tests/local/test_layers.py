"""Extents and layers against a plain array of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mountfs.local.extents import Extent, ExtentMap
from mountfs.local.layers import Layers
from mountfs.sync.chunking import Cut, Keep, steps
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


@given(st.lists(st.integers(MIN_CHUNK, 8 * MIB), max_size=8), dirty, st.booleans())
def test_steps_cover_a_file_and_keep_what_did_not_change(
    base: list[int], writes: list[tuple[int, int]], still_open: bool
) -> None:
    extents = ExtentMap()
    size = sum(base)
    for offset, length in writes:
        extents.put(Extent(offset, length, 1, offset, gen=1))
        size = max(size, offset + length)
    layers = Layers([Slice(bytes([index + 1]) * 32, 0, length) for index, length in enumerate(base)], extents, size)
    position = 0
    for step in steps(layers, still_open=still_open):
        if isinstance(step, Keep):
            assert not any(part.slab for part in layers.plan(position, position + step.slice.length))
            position += step.slice.length
        else:
            assert isinstance(step, Cut)
            assert step.start == position
            assert all(step.start < stop < step.limit for stop in step.stops)
            position = step.limit
    assert position == size
