"""The file that holds a whole metadata database: written and read a piece at a time, with a checksum at its end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import msgspec
import zstandard
from blake3 import blake3

MAGIC = b"MFSDUMP\x01"
"""Its last byte is the version of the file format."""
LONGEST = 1 << 30
"""Bytes that a frame has at most: a row is as large as a commit may be, and a little."""
_CHECKSUM = 32
_LENGTH = 4
_PIECE = 1 << 20


class BadDump(Exception):
    """The file is not a dump, or not a whole one."""


class Head(msgspec.Struct, tag="head"):
    """The first frame."""

    id: bytes
    """16 bytes that tell this dump from others."""
    format: int
    """Of the metadata, as in ``schema_version``."""
    created_ns: int
    columns: dict[str, list[str]]
    """Of each table, in the order of the tables and of the values in rows."""


class Rows(msgspec.Struct, tag="rows"):
    """Rows of one table, in the order of its key."""

    table: str
    rows: list[list[Any]]


class Sum(msgspec.Struct, array_like=True):
    """What the rows of a table are."""

    rows: int
    digest: bytes
    """BLAKE3 of the MessagePack of each, in the order of the key."""


class Tail(msgspec.Struct, tag="tail"):
    """The last frame."""

    tables: dict[str, Sum]
    last_bucket: int
    """The greatest bucket number that was ever used."""


Frame = Head | Rows | Tail


class Place(NamedTuple):
    """A frame, and the offset in bytes of the next."""

    frame: Frame
    end: int


class Writer:
    """Writes frames to a file, mode 0600, that appears under its name at the end of the block, when all went well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = blake3()
        self._zstd = zstandard.ZstdCompressor(3)

    def __enter__(self) -> Self:
        descriptor, self._name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        self._file = os.fdopen(descriptor, "wb")
        self._put(MAGIC)
        return self

    def write(self, frame: Frame) -> None:
        """Append a frame. Raises ``OSError``."""
        payload = self._zstd.compress(msgspec.msgpack.encode(frame))
        self._put(len(payload).to_bytes(_LENGTH, "big") + payload)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is not None:
                    return
                self._file.write(self._hash.digest())
                self._file.flush()
                os.fsync(self._file.fileno())
            os.replace(self._name, self._path)
        finally:
            Path(self._name).unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)


def check(path: Path) -> tuple[Head, Tail]:
    """The first and the last frame of a file that is whole. Raises ``BadDump``, ``OSError``."""
    hash_ = blake3()
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BadDump(f"{path} is not a dump that this release reads")
        left = os.fstat(file.fileno()).st_size - _CHECKSUM
        file.seek(0)
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            hash_.update(piece)
            left -= len(piece)
        if file.read() != hash_.digest():
            raise BadDump(f"{path} is damaged or not whole: its checksum does not match")
    first = next(frames(path), None)
    last = next(frames(path, _last(path)), None)
    if not first or not isinstance(first.frame, Head) or not last or not isinstance(last.frame, Tail):
        raise BadDump(f"{path} has no beginning or no end")
    return first.frame, last.frame


def frames(path: Path, offset: int = 0) -> Iterator[Place]:
    """The frames from an offset on, 0 for the first. Raises ``BadDump``, ``OSError``."""
    decoder = msgspec.msgpack.Decoder(Frame)
    zstd = zstandard.ZstdDecompressor()
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size - _CHECKSUM
        place = file.seek(offset or len(MAGIC))
        while place < end:
            payload = _exactly(file, int.from_bytes(_exactly(file, _LENGTH), "big"))
            place += _LENGTH + len(payload)
            try:
                yield Place(decoder.decode(zstd.decompress(payload, LONGEST)), place)
            except (msgspec.DecodeError, zstandard.ZstdError) as error:
                raise BadDump(f"{path}: {error}") from error


def _last(path: Path) -> int:
    """The offset of the last frame."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size - _CHECKSUM
        last = place = file.seek(len(MAGIC))
        while place < end:
            last, place = place, file.seek(int.from_bytes(_exactly(file, _LENGTH), "big"), os.SEEK_CUR)
    return last


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BadDump("the file ends too soon")
    return data
