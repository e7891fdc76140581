"""The stored form of a chunk: what travels to a node and lies on its disk.

A header (see ``HEADER``), then the payload: the plaintext, or its zstd frame when that is smaller. The
writer chooses: it does not try to compress what does not look as if it could be.
The checksum covers the header's other fields too, so any bit that flips anywhere is found without
knowing the bucket's key.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

MAX_CHUNK = 8 * 1024 * 1024
"""Bytes of plaintext in the largest chunk."""

ID_SIZE = 32
"""Bytes in a chunk id."""

MAGIC = b"MFCH"
VERSION = 1
RAW = 0
ZSTD = 1

_FIELDS = struct.Struct(">4sBBxxI")
HEADER = _FIELDS.size + 32
"""Bytes before the payload: magic, version, codec, two zeros, plaintext length (big-endian), then 32
bytes of BLAKE3 over the fields before and the payload behind."""

SAMPLE = 16 * 1024
"""Bytes of each of the samples that tell whether a chunk is worth compressing."""
SAMPLES = 4

MAX_STORED = HEADER + MAX_CHUNK
"""Bytes in the largest stored form."""


class CorruptChunk(Exception):
    """A stored chunk is not what its writer stored, or never was a chunk. ``chunk`` is its id where known."""

    def __init__(self, detail: str, chunk: bytes = b"") -> None:
        super().__init__(detail)
        self.chunk = chunk


class _Zstd(threading.local):
    """zstd contexts must not be shared by threads, and are dear to create."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()

# glibc returns freed memory to the kernel at once until it has seen a block of this size freed.
# Faulting the pages of each chunk in again costs four times what encoding it does.
bytes(2 * MAX_STORED)


def chunk_id(chunk_key: bytes, plaintext: Buffer) -> bytes:
    """The id of a chunk: 32 bytes of BLAKE3 of its plaintext, keyed with the bucket's 32-byte key."""
    return blake3(memoryview(plaintext).cast("B"), key=chunk_key).digest()


def encode(plaintext: Buffer) -> bytes:
    """The stored form of ``plaintext``. Raises ``ValueError`` when it is longer than ``MAX_CHUNK``."""
    view = memoryview(plaintext).cast("B")
    if len(view) > MAX_CHUNK:
        raise ValueError(f"a chunk of {len(view)} bytes is longer than {MAX_CHUNK}")
    codec, payload = RAW, view
    if _promising(view):
        compressed = _zstd.compressor.compress(view)
        if len(compressed) < len(view):
            codec, payload = ZSTD, memoryview(compressed)
    fields = _FIELDS.pack(MAGIC, VERSION, codec, len(view))
    return b"".join((fields, _checksum(fields, payload), payload))


def verify(stored: Buffer) -> None:
    """Check header and checksum without decoding. Raises ``CorruptChunk``."""
    view = memoryview(stored).cast("B")
    _check(view, _open(view)[2])


def decode(stored: Buffer) -> bytes | memoryview:
    """The plaintext of a stored chunk; a view of ``stored`` when it is not compressed.

    Raises ``CorruptChunk``. Never allocates more than ``MAX_CHUNK`` bytes, whatever a frame claims.
    """
    view = memoryview(stored).cast("B")
    codec, length, payload = _open(view)
    _check(view, payload)
    return _expand(codec, length, payload)


def _expand(codec: int, length: int, payload: memoryview) -> bytes | memoryview:
    if codec == RAW:
        return payload
    try:
        if zstandard.frame_content_size(payload) != length:
            raise CorruptChunk("the frame's length differs from the header's")
        plaintext = _zstd.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptChunk(f"not a zstd frame: {error}") from error
    if len(plaintext) != length:
        raise CorruptChunk(f"{len(plaintext)} bytes of plaintext, not {length}")
    return plaintext


def open_chunk(chunk_key: bytes, expected: bytes, stored: Buffer) -> bytes | memoryview:
    """The plaintext of a stored chunk, proven to be the one with the id ``expected``.

    Raises ``CorruptChunk`` when it is damaged or is another chunk. The checksum is not looked at: the id is
    one too, of more.
    """
    plaintext = _expand(*_open(memoryview(stored).cast("B")))
    if chunk_id(chunk_key, plaintext) != expected:
        raise CorruptChunk(f"the content is not that of chunk {expected.hex()}", expected)
    return plaintext


def plain_length(stored: Buffer) -> int:
    """Bytes of the plaintext that a stored chunk says it has. Raises ``CorruptChunk``."""
    return _open(memoryview(stored).cast("B"))[1]


def prove(chunk_key: bytes, chunks: Iterable[tuple[bytes, Buffer]]) -> None:
    """Check that stored chunks are those of their ids. Raises ``CorruptChunk``, which names the first that is not."""
    for chunk, stored in chunks:
        try:
            open_chunk(chunk_key, chunk, stored)
        except CorruptChunk as error:
            raise CorruptChunk(f"chunk {chunk.hex()}: {error}", chunk) from error


def _checksum(fields: Buffer, payload: Buffer) -> bytes:
    return blake3(fields).update(payload).digest()


def _check(view: memoryview, payload: memoryview) -> None:
    if _checksum(view[: _FIELDS.size], payload) != view[_FIELDS.size : HEADER]:
        raise CorruptChunk("the checksum does not match")


def _promising(view: memoryview) -> bool:
    """Whether any part of a large chunk looks as if it could be compressed: most large files are so already."""
    if len(view) <= SAMPLES * SAMPLE:
        return True
    starts = range(0, len(view) - SAMPLE + 1, (len(view) - SAMPLE) // (SAMPLES - 1))
    return any(len(_zstd.compressor.compress(view[start : start + SAMPLE])) < SAMPLE for start in starts)


def _open(view: memoryview) -> tuple[int, int, memoryview]:
    """Codec, plaintext length and payload of a stored chunk, whatever its bytes are."""
    if len(view) < HEADER:
        raise CorruptChunk(f"{len(view)} bytes are too few for a chunk")
    magic, version, codec, length = _FIELDS.unpack_from(view)
    payload = view[HEADER:]
    if magic != MAGIC or version != VERSION or codec not in (RAW, ZSTD):
        raise CorruptChunk(f"unknown chunk format {magic!r}, version {version}, codec {codec}")
    if length > MAX_CHUNK or len(payload) > length or (codec == RAW and len(payload) != length):
        raise CorruptChunk(f"a payload of {len(payload)} bytes cannot hold a chunk of {length}")
    return codec, length, payload
