"""Packs, and notes of what in packs is gone: objects that are written once and never changed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from nodeserver.chunks.record import BadPack, Record
from nodeserver.content.codec import ID_SIZE
from nodeserver.protocol.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

VERSION = 1
PACK = ".pack"
NOTE = ".gone"
NO_PACK = bytes(16)
"""In a note: the chunk was an object of its own."""

_HEAD = struct.Struct(">4sBxxxI")
_RECORD = struct.Struct(f">{ID_SIZE}sI")
_GONE = struct.Struct(f">16s{ID_SIZE}s")
_SUM = 32


class Gone(NamedTuple):
    """A chunk that was deleted out of one place."""

    pack: bytes
    """The id of the pack, or ``NO_PACK``."""
    chunk: bytes


def new_name(suffix: str, behind: str = "") -> str:
    """A name for a new object: names are in the order of their times, and this one comes behind another."""
    name = new_id().hex() + suffix
    if name > behind:
        return name
    # The other's clock is ahead of ours.
    return f"{int(behind[:12], 16) + 1:012x}{name[12:]}"


def name_at(time_ns: int) -> str:
    """Comes before every name that is made from a moment on, by the clock that made it."""
    return (max(0, time_ns) // 1_000_000).to_bytes(6, "big").hex()


def encode_pack(chunks: Mapping[bytes, bytes]) -> tuple[bytes, list[Record]]:
    """A pack of stored chunks, and where in it each lies."""
    head = b"".join(_RECORD.pack(chunk, len(stored)) for chunk, stored in chunks.items())
    start = _sealed(b"MFPO", len(chunks), head)
    return b"".join((start, *chunks.values())), _records(head, len(start))


def pack_head(start: bytes) -> int:
    """How many of a pack's first bytes tell what is in it. Raises ``BadPack``."""
    return _size(start, b"MFPO", _RECORD)


def decode_pack(start: bytes) -> list[Record]:
    """Where in a pack its chunks lie. Raises ``BadPack``."""
    return _records(_opened(start, b"MFPO", _RECORD), pack_head(start))


def encode_note(gone: Sequence[Gone]) -> bytes:
    """A note of what was deleted."""
    return _sealed(b"MFGN", len(gone), b"".join(_GONE.pack(*one) for one in gone))


def decode_note(data: bytes) -> list[Gone]:
    """What a note tells. Raises ``BadPack``."""
    return [Gone(*one) for one in _GONE.iter_unpack(_opened(data, b"MFGN", _GONE))]


def _records(head: bytes, offset: int) -> list[Record]:
    found: list[Record] = []
    for chunk, length in _pairs(head):
        found.append(Record(chunk, offset, length))
        offset += length
    return found


def _pairs(head: bytes) -> Iterable[tuple[bytes, int]]:
    return _RECORD.iter_unpack(head)


def _sealed(magic: bytes, count: int, body: bytes) -> bytes:
    content = _HEAD.pack(magic, VERSION, count) + body
    return content + blake3(content).digest(_SUM)


def _size(data: bytes, magic: bytes, row: struct.Struct) -> int:
    if len(data) < _HEAD.size:
        raise BadPack(f"{len(data)} bytes are too few")
    found, version, count = _HEAD.unpack_from(data)
    if found != magic or version != VERSION:
        raise BadPack(f"unknown format {found!r}, version {version}")
    return _HEAD.size + int(count) * row.size + _SUM


def _opened(data: bytes, magic: bytes, row: struct.Struct) -> bytes:
    size = _size(data, magic, row)
    if len(data) < size or blake3(data[: size - _SUM]).digest(_SUM) != data[size - _SUM : size]:
        raise BadPack("the checksum does not match")
    return data[_HEAD.size : size - _SUM]
