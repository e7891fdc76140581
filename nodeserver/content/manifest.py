"""Manifests: the ordered slices that make up a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from nodeserver.content.codec import ID_SIZE, MAX_CHUNK
from nodeserver.protocol.wire import Slice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

MAX_INLINE = 1000
"""A manifest with more slices is stored in chunks of its own (``Manifest.indirect``)."""

MAX_SIZE = 1 << 60
"""Bytes in the longest file (1 EiB): far below what ``off_t`` holds, so that sums of sizes do too."""

_decoder = msgspec.msgpack.Decoder(list[Slice])


class BadManifest(ValueError):
    """These slices cannot be a file's content."""


def pack_slices(slices: list[Slice]) -> bytes:
    """The MessagePack encoding of ``slices``: what an indirect manifest's chunks hold."""
    return msgspec.msgpack.encode(slices)


def unpack_slices(data: Buffer) -> list[Slice]:
    """The slices that ``data`` encodes. Raises ``BadManifest``."""
    try:
        slices = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise BadManifest(str(error)) from error
    check_slices(slices)
    return slices


def check_slices(slices: Iterable[Slice]) -> int:
    """The bytes that ``slices`` make up. Raises ``BadManifest`` when one of them is impossible."""
    total = 0
    for piece in slices:
        if piece.length <= 0 or piece.offset < 0:
            raise BadManifest(f"a slice of {piece.length} bytes at {piece.offset}")
        if piece.chunk and (len(piece.chunk) != ID_SIZE or piece.offset + piece.length > MAX_CHUNK):
            raise BadManifest(f"a slice up to byte {piece.offset + piece.length} of chunk {piece.chunk.hex()!r}")
        if not piece.chunk and piece.offset:
            raise BadManifest(f"a hole at offset {piece.offset}")
        total += piece.length
    if total > MAX_SIZE:
        raise BadManifest(f"{total} bytes are more than a file can hold")
    return total


def content_hash(chunk_key: bytes, slices: list[Slice]) -> bytes:
    """The hash of a version: 32 bytes of BLAKE3 of the packed slices, keyed with the chunk key."""
    return blake3(pack_slices(slices), key=chunk_key).digest()
