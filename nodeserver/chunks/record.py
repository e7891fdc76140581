"""The format of a pack: a header with a random key, then records, each naming and guarding itself.

A record's header carries a keyed checksum: the start of a record can be told from any bytes a
client chose, so a scan finds the next good record behind a damaged one.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from nodeserver.content.codec import CorruptChunk, verify

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

VERSION = 1

_MAGIC = b"MFPK"
_PACK = struct.Struct(">4sBxxx32s")
PACK_HEADER = _PACK.size + 16

_MARK = b"MFRC"
_RECORD = struct.Struct(">4sI32s")
RECORD_HEADER = _RECORD.size + 16


class BadPack(Exception):
    """A file does not begin as a pack does."""


class Record(NamedTuple):
    """Where a stored chunk lies in its pack, in bytes."""

    id: bytes
    offset: int
    length: int


def new_header() -> tuple[bytes, bytes]:
    """A pack's first bytes, and the key in them."""
    key = os.urandom(32)
    fields = _PACK.pack(_MAGIC, VERSION, key)
    return fields + _check(fields), key


def read_header(data: bytes) -> bytes:
    """The key of the pack that begins with ``data``. Raises ``BadPack``."""
    if len(data) < PACK_HEADER:
        raise BadPack(f"{len(data)} bytes are too few for a pack")
    magic, version, key = _PACK.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        raise BadPack(f"unknown pack format {magic!r}, version {version}")
    if _check(data[: _PACK.size]) != data[_PACK.size : PACK_HEADER]:
        raise BadPack("the header's checksum does not match")
    return bytes(key)


def record_header(key: bytes, chunk: bytes, length: int) -> bytes:
    """What goes before a stored chunk of ``length`` bytes."""
    fields = _RECORD.pack(_MARK, length, chunk)
    return fields + _check(fields, key)


def scan(pack: mmap.mmap, key: bytes, start: int) -> Iterator[Record]:
    """The intact records of a pack from ``start`` on; whatever lies between them is passed over."""
    for record in records(pack, key, start):
        if _intact(pack[record.offset : record.offset + record.length]):
            yield record


def records(pack: mmap.mmap, key: bytes, start: int) -> Iterator[Record]:
    """The records of a pack from ``start`` on, whatever became of the chunks in them."""
    at = pack.find(_MARK, start)
    while at >= 0:
        record = _record(pack, key, at)
        if record is None:
            at = pack.find(_MARK, at + 1)
            continue
        yield record
        at = pack.find(_MARK, record.offset + record.length)


def _record(pack: mmap.mmap, key: bytes, at: int) -> Record | None:
    head = pack[at : at + RECORD_HEADER]
    if len(head) < RECORD_HEADER or head[_RECORD.size :] != _check(head[: _RECORD.size], key):
        return None
    _, length, chunk = _RECORD.unpack_from(head)
    offset = at + RECORD_HEADER
    return Record(chunk, offset, length) if offset + length <= len(pack) else None


def _intact(stored: bytes) -> bool:
    try:
        verify(stored)
    except CorruptChunk:
        return False
    return True


def _check(fields: bytes, key: bytes | None = None) -> bytes:
    return (blake3(fields, key=key) if key else blake3(fields)).digest(16)
