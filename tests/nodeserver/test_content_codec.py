"""The stored form of chunks: whatever goes in comes out, and nothing else ever does."""

from __future__ import annotations

import mmap
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from nodeserver.content import codec
from nodeserver.content.codec import HEADER, MAX_CHUNK, MAX_STORED, CorruptChunk

KEY = bytes(range(32))
INCOMPRESSIBLE = random.Random(1).randbytes(200)
COMPRESSIBLE = b"the quick brown fox " * 100

plaintexts = st.one_of(
    st.binary(max_size=4096),
    st.tuples(st.binary(max_size=64), st.integers(0, 5000)).map(lambda part: part[0] * part[1]),
)


def forge(codec_id: int, length: int, payload: bytes, version: int = 1) -> bytes:
    """A stored chunk whose checksum is right, whatever the rest says."""
    fields = b"MFCH" + bytes([version, codec_id, 0, 0]) + length.to_bytes(4, "big")
    return fields + blake3(fields + payload).digest() + payload


@given(plaintexts)
def test_round_trip(plaintext: bytes) -> None:
    stored = codec.encode(plaintext)
    codec.verify(stored)
    assert codec.decode(stored) == plaintext
    assert len(stored) <= HEADER + len(plaintext)
    assert codec.open_chunk(KEY, codec.chunk_id(KEY, plaintext), stored) == plaintext


def test_the_format_stays_as_it_was() -> None:
    assert codec.encode(b"abc").hex() == (
        "4d46434801000000000000038c126877d9670acd677462f9a6e9915dbada851d66fd1249f6504e8927bc677e616263"
    )
    assert codec.chunk_id(KEY, b"abc").hex() == "6da54495d8152f2bcba87bd7282df70901cdb66b4448ed5f4c7bd2852b8b5532"


def test_any_buffer_will_do() -> None:
    with mmap.mmap(-1, len(COMPRESSIBLE)) as mapped:
        mapped[:] = COMPRESSIBLE
        for buffer in (bytearray(COMPRESSIBLE), memoryview(COMPRESSIBLE), memoryview(COMPRESSIBLE).cast("I"), mapped):
            stored = codec.encode(buffer)
            assert codec.decode(bytearray(stored)) == COMPRESSIBLE
            assert codec.chunk_id(KEY, buffer) == codec.chunk_id(KEY, COMPRESSIBLE)


def test_the_largest_chunk_and_one_byte_more() -> None:
    stored = codec.encode(random.Random(2).randbytes(MAX_CHUNK))
    assert len(stored) == MAX_STORED
    codec.verify(stored)
    with pytest.raises(ValueError, match="longer than"):
        codec.encode(bytes(MAX_CHUNK + 1))


@pytest.mark.parametrize("quarter", range(4))
def test_a_large_chunk_is_compressed_when_part_of_it_can_be(quarter: int) -> None:
    size = 256 * 1024
    parts = [random.Random(number).randbytes(size) for number in range(4)]
    assert len(codec.encode(b"".join(parts))) == 4 * size + HEADER
    parts[quarter] = bytes(size)
    stored = codec.encode(b"".join(parts))
    assert len(stored) < 3.1 * size
    assert codec.decode(stored) == b"".join(parts)


@pytest.mark.parametrize("plaintext", [b"", INCOMPRESSIBLE, COMPRESSIBLE], ids=["empty", "raw", "zstd"])
def test_every_flipped_bit_is_detected(plaintext: bytes) -> None:
    stored = codec.encode(plaintext)
    for bit in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        for check in (codec.verify, codec.decode):
            with pytest.raises(CorruptChunk):
                check(damaged)


@pytest.mark.parametrize("plaintext", [INCOMPRESSIBLE, COMPRESSIBLE], ids=["raw", "zstd"])
def test_every_other_length_is_detected(plaintext: bytes) -> None:
    stored = codec.encode(plaintext)
    for damaged in [stored[:length] for length in range(len(stored))] + [stored + b"\0", stored + stored]:
        with pytest.raises(CorruptChunk):
            codec.verify(damaged)


@given(st.binary(max_size=300))
def test_garbage_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptChunk):
        codec.decode(data)


def test_a_chunk_under_another_id_is_corrupt() -> None:
    stored = codec.encode(b"one")
    with pytest.raises(CorruptChunk) as caught:
        codec.open_chunk(KEY, codec.chunk_id(KEY, b"two"), stored)
    assert caught.value.chunk == codec.chunk_id(KEY, b"two")
    with pytest.raises(CorruptChunk):
        codec.open_chunk(bytes(32), codec.chunk_id(KEY, b"one"), stored)


BOMB = zstandard.compress(bytes(256 * 1024 * 1024))
STREAMED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
FRAME = zstandard.compress(bytes(1000))


@pytest.mark.parametrize(
    "stored",
    [
        forge(1, MAX_CHUNK, BOMB),
        forge(1, 256 * 1024 * 1024, BOMB),
        forge(1, 999, FRAME),
        forge(1, 1000, STREAMED),
        forge(1, 1000, FRAME + FRAME),
        forge(1, 1000, FRAME[:-1]),
        forge(1, 1000, b"no frame"),
        forge(0, MAX_CHUNK + 1, b"x"),
        forge(0, 2, b"x"),
        forge(1, 1, b"longer than the plaintext"),
        forge(2, 3, b"abc"),
        forge(0, 3, b"abc", version=2),
    ],
    ids=[
        "bomb",
        "bomb in the header too",
        "frame longer than the header says",
        "frame of no length",
        "two frames",
        "cut frame",
        "no frame",
        "header beyond the largest",
        "raw of another length",
        "payload longer than plaintext",
        "unknown codec",
        "unknown version",
    ],
)
def test_a_forged_chunk_is_refused_without_spending_memory(stored: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptChunk):
            codec.decode(stored)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_threads_do_not_disturb_each_other() -> None:
    pieces = [random.Random(seed).randbytes(500) * 20 for seed in range(400)]
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(codec.encode, pieces))
        assert [bytes(piece) for piece in pool.map(codec.decode, stored)] == pieces
