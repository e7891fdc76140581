"""Manifests: slices packed, unpacked, hashed and refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserver.content.codec import MAX_CHUNK
from nodeserver.content.manifest import (
    MAX_SLICES,
    BadManifest,
    Unpacker,
    check_indirect,
    check_slices,
    content_hash,
    pack_slices,
    unpack_slices,
)
from nodeserver.protocol.wire import Slice

CHUNK = bytes(range(32))

pieces = st.builds(
    lambda chunk, offset, length: Slice(chunk, offset, min(length, MAX_CHUNK - offset)),
    st.binary(min_size=32, max_size=32),
    st.integers(0, MAX_CHUNK - 1),
    st.integers(1, MAX_CHUNK),
)
holes = st.builds(lambda length: Slice(b"", 0, length), st.integers(1, 1 << 40))
manifests = st.lists(st.one_of(pieces, holes), max_size=50)


@given(manifests)
def test_round_trip(slices: list[Slice]) -> None:
    assert unpack_slices(pack_slices(slices)) == slices
    assert check_slices(slices) == sum(piece.length for piece in slices)


@given(manifests, manifests)
def test_the_hash_tells_manifests_and_buckets_apart(one: list[Slice], other: list[Slice]) -> None:
    assert (content_hash(CHUNK, one) == content_hash(CHUNK, other)) == (one == other)
    assert content_hash(CHUNK, one) != content_hash(bytes(32), one)


@pytest.mark.parametrize(
    "piece",
    [
        Slice(CHUNK, 0, 0),
        Slice(CHUNK, 0, -1),
        Slice(CHUNK, -1, 1),
        Slice(CHUNK, MAX_CHUNK, 1),
        Slice(CHUNK, 0, MAX_CHUNK + 1),
        Slice(CHUNK[1:], 0, 1),
        Slice(b"", 1, 1),
        Slice(b"", 0, 1 << 63),
    ],
)
def test_an_impossible_slice_is_refused(piece: Slice) -> None:
    with pytest.raises(BadManifest):
        unpack_slices(pack_slices([Slice(CHUNK, 0, 1), piece]))


@given(manifests, st.lists(st.integers(1, 80), max_size=20))
def test_a_list_comes_back_part_by_part(slices: list[Slice], lengths: list[int]) -> None:
    packed = memoryview(pack_slices(slices))
    unpacker, found = Unpacker(), list[Slice]()
    for length in [*lengths, len(packed)]:
        found += unpacker.feed(packed[:length])
        packed = packed[length:]
    unpacker.end()
    assert found == slices
    assert unpacker.length == check_slices(slices)


@given(st.one_of(st.binary(max_size=100), manifests.map(pack_slices).flatmap(lambda data: st.just(data[:-1]))))
def test_a_list_that_is_none_is_refused_part_by_part_too(data: bytes) -> None:
    unpacker = Unpacker()
    try:
        found = list(unpacker.feed(data))
        unpacker.end()
    except BadManifest:
        return
    assert found == unpack_slices(data)


def test_the_length_of_a_list_is_limited() -> None:
    with pytest.raises(BadManifest):
        list(Unpacker().feed(b"\xdd" + (MAX_SLICES + 1).to_bytes(4, "big")))
    with pytest.raises(BadManifest):
        check_indirect([Slice(CHUNK, 0, MAX_CHUNK)] * 13)
    with pytest.raises(BadManifest):
        check_indirect([Slice(b"", 0, 10)])


@given(st.binary(max_size=100))
def test_garbage_is_refused_or_is_a_manifest(data: bytes) -> None:
    try:
        slices = unpack_slices(data)
    except BadManifest:
        return
    check_slices(slices)
