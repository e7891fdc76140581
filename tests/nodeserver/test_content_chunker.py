"""Content-defined cutting: the same boundaries however the content arrives."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserver.content.chunker import MIN_CHUNK, StreamCutter, cut
from nodeserver.content.codec import MAX_CHUNK

CONTENT = random.Random(7).randbytes(24 * 1024 * 1024)
BOUNDARIES = list(accumulate(cut(CONTENT), initial=0))


def chunks_of(content: bytes) -> list[bytes]:
    ends = list(accumulate(cut(content), initial=0))
    return [content[start:end] for start, end in pairwise(ends)]


def test_the_boundaries_stay_where_they_were() -> None:
    """Another version of the library that cut elsewhere would store everybody's files a second time."""
    assert cut(CONTENT) == [
        848218,
        2257769,
        1182347,
        1903461,
        1082757,
        1576399,
        1432183,
        1781675,
        2976138,
        1345853,
        1376012,
        738111,
        618109,
        1378693,
        1130188,
        619390,
        1278973,
        1639548,
    ]


@pytest.mark.parametrize("size", [0, 1, MIN_CHUNK - 1, MIN_CHUNK, MIN_CHUNK + 1])
def test_up_to_the_smallest_chunk_there_is_one(size: int) -> None:
    lengths = cut(CONTENT[:size])
    assert sum(lengths) == size
    assert len(lengths) <= (1 if size <= MIN_CHUNK else 2)


def test_lengths_keep_the_bounds() -> None:
    lengths = cut(CONTENT)
    assert sum(lengths) == len(CONTENT)
    assert all(MIN_CHUNK <= length <= MAX_CHUNK for length in lengths[:-1])
    assert cut(bytes(20 * 1024 * 1024)) == [MAX_CHUNK, MAX_CHUNK, 4 * 1024 * 1024]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_stream_is_cut_like_the_whole(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(CONTENT)), "start")
    end = data.draw(st.integers(start, len(CONTENT)), "end")
    content = memoryview(CONTENT)[start:end]
    size = data.draw(st.integers(50_000, 12_000_000), "piece")
    cutter = StreamCutter()
    chunks: list[bytes] = []
    for at in range(0, len(content), size):
        chunks += cutter.feed(content[at : at + size])
    chunks += cutter.finish()
    assert [len(chunk) for chunk in chunks] == cut(content)
    assert b"".join(chunks) == content
    assert cutter.finish() == []


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(CONTENT)))
def test_what_is_cut_before_the_end_stands(end: int) -> None:
    early = cut(memoryview(CONTENT)[:end], final=False)
    assert early == cut(CONTENT)[: len(early)]
    assert end - sum(early) < MAX_CHUNK


def test_an_insertion_changes_the_chunks_around_it() -> None:
    before = set(chunks_of(CONTENT))
    changed: dict[str, list[int]] = {"front": [], "anywhere": []}
    for seed in range(20):
        rng = random.Random(seed)
        for where, at in ("front", 0), ("anywhere", rng.randrange(len(CONTENT))):
            after = chunks_of(CONTENT[:at] + rng.randbytes(100) + CONTENT[at:])
            changed[where].append(len([chunk for chunk in after if chunk not in before]))
    assert max(changed["front"]) <= 2
    assert max(changed["anywhere"]) <= 3


def test_cutting_starts_anew_at_any_boundary() -> None:
    for boundary in BOUNDARIES[:-1]:
        rest = list(accumulate(cut(memoryview(CONTENT)[boundary:]), initial=boundary))
        assert rest == BOUNDARIES[BOUNDARIES.index(boundary) :]
