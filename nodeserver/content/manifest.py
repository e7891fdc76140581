"""Manifests: the ordered slices that make up a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from nodeserver.content.codec import ID_SIZE, MAX_CHUNK
from nodeserver.protocol.wire import Slice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

MAX_INLINE = 1000
"""A manifest with more slices is stored in chunks of its own (``Manifest.indirect``)."""

MAX_SIZE = 1 << 60
"""Bytes in the longest file (1 EiB): far below what ``off_t`` holds, so that sums of sizes do too."""

MAX_SLICES = 1 << 21
"""In one file: 4 TiB, in chunks of average size."""
MAX_PACKED = 48 * MAX_SLICES
"""Bytes of a list of slices: what an indirect manifest may be of."""
_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
"""Bytes of a MessagePack integer, by its first byte."""

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


def check_indirect(slices: Iterable[Slice]) -> int:
    """The bytes of the list that an indirect manifest is of. Raises ``BadManifest`` for what nobody has to read."""
    size = 0
    for piece in slices:
        if not piece.chunk:
            raise BadManifest("a hole in a list of slices")
        size += piece.length
    if size > MAX_PACKED:
        raise BadManifest(f"a list of slices of {size} bytes is longer than {MAX_PACKED}")
    return size


class Unpacker:
    """The slices of an indirect manifest, part by part, in as much memory as a part takes. There are ``most``."""

    def __init__(self, most: int = MAX_SLICES) -> None:
        self._most = most
        self.length = 0
        """Bytes of the content so far."""
        self._rest = b""
        self._left: int | None = None

    def feed(self, part: Buffer) -> Iterator[Slice]:
        """The slices that ``part`` completes; to be gone through to its end. Raises ``BadManifest``."""
        data = self._rest + bytes(part)
        at = 0
        if self._left is None:
            if (found := _count(data)) is None:
                self._rest = data
                return
            self._left, at = found
            if self._left > self._most:
                raise BadManifest(f"a list of {self._left} slices is longer than {self._most}")
        while self._left and (next_ := _slice(data, at)) is not None:
            piece, at = next_
            self.length += check_slices((piece,))
            self._left -= 1
            yield piece
        self._rest = data[at:]
        if len(self._rest) > _SLICE_MAX or self.length > MAX_SIZE:
            raise BadManifest("not a list of slices")

    def end(self) -> None:
        """There is no more. Raises ``BadManifest`` if there should be."""
        if self._left != 0 or self._rest:
            raise BadManifest("a list of slices is cut off, or goes on behind its end")


_SLICE_MAX = 1 + 2 + ID_SIZE + 2 * 9
"""Bytes of a packed slice."""


def _count(data: bytes) -> tuple[int, int] | None:
    """How many slices a list has, and where the first begins; None when that is cut off."""
    if not data:
        return None
    first = data[0]
    size = {0xDC: 2, 0xDD: 4}.get(first, 0)
    if not size and first & 0xF0 != 0x90:
        raise BadManifest("not a list of slices")
    if len(data) < 1 + size:
        return None
    return int.from_bytes(data[1 : 1 + size], "big") if size else first & 0x0F, 1 + size


def _slice(data: bytes, at: int) -> tuple[Slice, int] | None:
    """The slice at a place and where the next begins; None when it is not there whole."""
    if len(data) < at + 3:
        return None
    size = data[at + 2]
    if data[at] != 0x93 or data[at + 1] != 0xC4 or size not in (0, ID_SIZE):
        raise BadManifest("not a list of slices")
    chunk = data[at + 3 : at + 3 + size]
    at += 3 + size
    numbers = []
    for _ in range(2):
        if at >= len(data):
            return None
        first = data[at]
        width = 0 if first < 0x80 else _INTEGERS.get(first, -1)
        if width < 0:
            raise BadManifest("not a list of slices")
        if len(data) < at + 1 + width:
            return None
        numbers.append(int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first)
        at += 1 + width
    return Slice(chunk, *numbers), at


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
