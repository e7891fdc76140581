"""Erasure coding: any k fragments give the chunk back, and nothing damaged is ever used."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserver.content import codec, erasure
from nodeserver.content.codec import MAX_CHUNK, MAX_STORED
from nodeserver.content.erasure import HEADER, CorruptFragment, TooFewFragments

CODES = [(2, 1), (4, 2), (6, 3), (10, 4)]
codes = st.sampled_from(CODES)
any_code = st.tuples(st.integers(1, 10), st.integers(1, 5))
RANDOM = random.Random(3).randbytes(MAX_STORED)


def times(one: int, other: int) -> int:
    """The product in GF(2^8), polynomial 0x11d, by shifting and adding."""
    product = 0
    while other:
        if other & 1:
            product ^= one
        one <<= 1
        if one & 0x100:
            one ^= 0x11D
        other >>= 1
    return product


INVERSE = {one: other for one in range(1, 256) for other in range(1, 256) if times(one, other) == 1}


def reference(whole: bytes, k: int, m: int) -> list[bytes]:
    """The payloads as docs/formats.md defines them, computed by the definition."""
    size = -(-len(whole) // k)
    data = [whole[index * size : (index + 1) * size].ljust(size, b"\0") for index in range(k)]
    parity = []
    for row in range(k, k + m):
        tables = [bytes(times(INVERSE[row ^ column], byte) for byte in range(256)) for column in range(k)]
        sums = 0
        for part, table in zip(data, tables, strict=True):
            sums ^= int.from_bytes(part.translate(table))
        parity.append(sums.to_bytes(size))
    return data + parity


@settings(deadline=None)
@given(st.binary(max_size=500), any_code)
def test_fragments_are_what_the_format_says(whole: bytes, code: tuple[int, int]) -> None:
    """An implementation that shares nothing with the library computes the same, so it could be replaced."""
    k, m = code
    fragments = erasure.split(whole, k, m)
    assert [fragment[HEADER:] for fragment in fragments] == reference(whole, k, m)
    for index, fragment in enumerate(fragments):
        fields = b"MFFR" + bytes([1, k, m, index]) + len(whole).to_bytes(4) + blake3(whole).digest()
        assert fragment[:HEADER] == fields + blake3(fields + fragment[HEADER:]).digest()
        assert erasure.verify(fragment).index == index


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 1000, 10_007])
def test_every_choice_of_k_gives_the_whole(code: tuple[int, int], size: int) -> None:
    k, m = code
    whole = RANDOM[:size]
    fragments = erasure.split(whole, k, m)
    for choice in combinations(fragments, k):
        assert erasure.join(choice) == whole
    for choice in combinations(fragments, k - 1):
        with pytest.raises(TooFewFragments) as caught:
            erasure.join(choice)
        assert (caught.value.good, caught.value.needed) == (k - 1, k)


@settings(deadline=None, max_examples=60)
@given(st.data(), codes, st.one_of(st.integers(0, 70_000), st.integers(0, MAX_CHUNK)))
def test_any_k_in_any_order_give_the_whole(data: st.DataObject, code: tuple[int, int], size: int) -> None:
    k, m = code
    whole = RANDOM[len(RANDOM) - size :]
    fragments = erasure.split(whole, k, m)
    order = data.draw(st.permutations(range(k + m)), "order")
    kept = [fragments[index] for index in order[:k]]
    assert erasure.join(kept) == whole


@pytest.mark.parametrize("code", CODES, ids=str)
def test_the_largest_stored_chunk_and_one_byte_more(code: tuple[int, int]) -> None:
    k, m = code
    stored = codec.encode(RANDOM[:MAX_CHUNK])
    assert len(stored) == MAX_STORED
    fragments = erasure.split(stored, k, m)
    assert {len(fragment) for fragment in fragments} == {-(-MAX_STORED // k) + HEADER}
    assert codec.decode(erasure.join(fragments[m:])) == RANDOM[:MAX_CHUNK]
    with pytest.raises(ValueError, match="longer than"):
        erasure.split(stored + b"x", k, m)


@pytest.mark.parametrize("code", [(0, 1), (1, 0), (-1, 2), (60, 5)], ids=str)
def test_codes_that_there_are_not(code: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="fragments"):
        erasure.split(b"abc", *code)


def test_every_flipped_bit_is_found_and_the_fragment_not_used() -> None:
    whole = RANDOM[:120]
    fragments = erasure.split(whole, 4, 2)
    for number in (0, 5):
        for bit in range(len(fragments[number]) * 8):
            damaged = bytearray(fragments[number])
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptFragment):
                erasure.verify(damaged)
            others = [fragment for index, fragment in enumerate(fragments) if index != number]
            assert erasure.join([damaged, *others[:4]]) == whole
            with pytest.raises(TooFewFragments):
                erasure.join([damaged, *others[:3]])


@settings(deadline=None)
@given(st.data(), codes)
def test_any_m_damaged_fragments_are_made_good(data: st.DataObject, code: tuple[int, int]) -> None:
    k, m = code
    whole = RANDOM[: data.draw(st.integers(1, 5000), "size")]
    fragments: list[bytes] = erasure.split(whole, k, m)
    bad = data.draw(st.permutations(range(k + m)), "order")[:m]
    mixed = list(fragments)
    for index in bad:
        bit = data.draw(st.integers(0, len(fragments[index]) * 8 - 1), "bit")
        flipped = int.from_bytes(fragments[index]) ^ (1 << bit)
        cut = data.draw(st.integers(0, len(fragments[index]) - 1), "cut")
        mixed[index] = data.draw(st.sampled_from([flipped.to_bytes(len(fragments[index])), fragments[index][:cut]]))
    assert erasure.join(mixed) == whole


@given(st.binary(max_size=200))
def test_garbage_is_no_fragment(data: bytes) -> None:
    with pytest.raises(CorruptFragment):
        erasure.verify(data)
    with pytest.raises(TooFewFragments, match="no good fragment"):
        erasure.join([data])


def test_encodings_are_not_mixed() -> None:
    """Two forms of one chunk of one length: each alone is enough, together only the one with k of them."""
    one, other = RANDOM[:1000], RANDOM[1000:2000]
    ours, theirs = erasure.split(one, 4, 2), erasure.split(other, 4, 2)
    assert erasure.join(theirs[:3] + ours[2:]) == one
    assert erasure.join(theirs[2:] + ours[:3]) == other
    with pytest.raises(TooFewFragments):
        erasure.join(theirs[:3] + ours[3:])
    with pytest.raises(TooFewFragments):
        erasure.join(erasure.split(one, 4, 2)[:3] + erasure.split(one, 4, 3)[3:6])


def test_one_fragment_many_times_is_one() -> None:
    fragments = erasure.split(RANDOM[:1000], 4, 2)
    with pytest.raises(TooFewFragments, match="3 good fragments; 4 are needed"):
        erasure.join([*fragments[:3], *fragments[:3]])
    with pytest.raises(TooFewFragments):
        erasure.join([])


def forge(k: int, m: int, index: int, length: int, payload: bytes, version: int = 1) -> bytes:
    """A fragment whose checksum is right, whatever the rest says."""
    fields = b"MFFR" + bytes([version, k, m, index]) + length.to_bytes(4) + bytes(32)
    return fields + blake3(fields + payload).digest() + payload


@pytest.mark.parametrize(
    "fragment",
    [
        forge(2, 1, 0, 4, b"ab", version=2),
        forge(0, 1, 0, 0, b""),
        forge(2, 0, 0, 4, b"ab"),
        forge(2, 1, 3, 4, b"ab"),
        forge(60, 5, 0, 60, b"a"),
        forge(2, 1, 0, 4, b"abc"),
        forge(2, 1, 0, 0xFFFFFFFF, b"ab"),
    ],
    ids=["version", "no data", "no parity", "index", "too many", "payload", "length"],
)
def test_a_forged_fragment_is_refused(fragment: bytes) -> None:
    with pytest.raises(CorruptFragment):
        erasure.verify(fragment)


def test_fragments_that_are_right_of_a_whole_that_is_not() -> None:
    with pytest.raises(CorruptFragment, match="the whole's does not"):
        erasure.join([forge(2, 1, 0, 4, b"ab"), forge(2, 1, 1, 4, b"cd")])


def test_any_buffer_will_do() -> None:
    whole = bytearray(RANDOM[:999])
    fragments = [memoryview(bytearray(one)) for one in erasure.split(memoryview(whole), 4, 2)]
    assert erasure.join(fragments[1:]) == whole


def test_threads_do_not_disturb_each_other() -> None:
    wholes = [RANDOM[start : start + 50_000 + start] for start in range(0, 200_000, 1000)]

    def there_and_back(whole: bytes) -> bytes:
        return erasure.join(erasure.split(whole, 4, 2)[2:])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, wholes)) == wholes
