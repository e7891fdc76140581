"""Small chunks, many to a file: append-only packs, one being filled for each bucket."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nodeserver.chunks.disk import make_dir, read_at, sync_dir, write_at
from nodeserver.chunks.record import PACK_HEADER, BadPack, Record, new_header, read_header, record_header, scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACK_LIMIT = 256 * 1024 * 1024
"""Bytes after which a pack is followed by the next."""
MAX_OPEN = 64
"""Packs kept open for appending."""


@dataclass
class _Pack:
    fd: int
    number: int
    key: bytes
    end: int


@dataclass(frozen=True)
class Appended:
    """Records that are durable in a pack which now ends at ``end``."""

    number: int
    records: list[Record]
    end: int


class Packs:
    """The packs below ``root/BUCKET/packs``. Not thread-safe: one thread writes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[bytes, _Pack] = {}

    def path(self, bucket: bytes, number: int) -> Path:
        """Where pack ``number`` of a bucket lies."""
        return self._dir(bucket) / f"{number:08d}.pack"

    def numbers(self, bucket: bytes) -> list[int]:
        """The packs a bucket has, oldest first."""
        with suppress(FileNotFoundError):
            return sorted(int(path.stem) for path in self._dir(bucket).glob("*.pack"))
        return []

    @contextmanager
    def append(self, bucket: bytes, chunks: Mapping[bytes, bytes]) -> Iterator[Appended]:
        """Append stored chunks with one fsync. When the block raises they are taken out again.

        Raises ``OSError``; the pack then is as it was before.
        """
        pack = self._current(bucket)
        try:
            parts: list[bytes] = []
            records: list[Record] = []
            end = pack.end
            for chunk, stored in chunks.items():
                parts += (record_header(pack.key, chunk, len(stored)), stored)
                end += len(parts[-2]) + len(stored)
                records.append(Record(chunk, end - len(stored), len(stored)))
            write_at(pack.fd, b"".join(parts), pack.end)
            os.fdatasync(pack.fd)
            yield Appended(pack.number, records, end)
        except BaseException:
            # Closed besides: what a failed fsync left behind in the kernel is not to be built upon.
            del self._open[bucket]
            with suppress(OSError):
                os.ftruncate(pack.fd, pack.end)
            os.close(pack.fd)
            raise
        pack.end = end

    def recover(self, bucket: bytes, number: int, indexed: int) -> Appended | None:
        """The records behind byte ``indexed`` of a pack, made durable; a torn end is cut off.

        None when the pack held nothing and is gone. Raises ``BadPack``, ``OSError``.
        """
        path = self.path(bucket, number)
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= PACK_HEADER:
                path.unlink()
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                start = max(indexed, PACK_HEADER)
                records = list(scan(view, read_header(view[:PACK_HEADER]), start))
            end = records[-1].offset + records[-1].length if records else start
            if end < size:
                os.ftruncate(file.fileno(), end)
            os.fsync(file.fileno())
        sync_dir(path.parent)
        return Appended(number, records, end)

    def seal(self, bucket: bytes, number: int) -> None:
        """See to it that a pack is not appended to any more. Raises ``OSError``.

        Another takes its place as the newest: no number is used twice while somebody may still look for it.
        """
        if self.numbers(bucket)[-1:] == [number]:
            self.close(bucket)
            os.close(self._create(bucket, number + 1).fd)

    def remove(self, bucket: bytes, number: int) -> int:
        """Delete a sealed pack; how many bytes it had. Raises ``OSError``."""
        path = self.path(bucket, number)
        size = path.stat().st_size
        path.unlink()
        return size

    def close(self, bucket: bytes | None = None) -> None:
        """Close the pack a bucket appends to, or all of them."""
        for key in [bucket] if bucket else list(self._open):
            if pack := self._open.pop(key, None):
                os.close(pack.fd)

    def _dir(self, bucket: bytes) -> Path:
        return self._root / bucket.hex() / "packs"

    def _current(self, bucket: bytes) -> _Pack:
        pack = self._open.get(bucket)
        if pack and pack.end < PACK_LIMIT:
            return pack
        self.close(bucket)
        if len(self._open) >= MAX_OPEN:
            self.close(next(iter(self._open)))
        numbers = self.numbers(bucket)
        number = numbers[-1] if numbers else 0
        pack = (self._reopen(bucket, number) if numbers else None) or self._create(bucket, number + 1)
        self._open[bucket] = pack
        return pack

    def _reopen(self, bucket: bytes, number: int) -> _Pack | None:
        """The pack, unless it is full or does not read as one."""
        fd = os.open(self.path(bucket, number), os.O_RDWR | os.O_CLOEXEC)
        try:
            key = read_header(read_at(fd, PACK_HEADER, 0))
            end = os.fstat(fd).st_size
            if end < PACK_LIMIT:
                return _Pack(fd, number, key, end)
        except BadPack:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _create(self, bucket: bytes, number: int) -> _Pack:
        make_dir(self._dir(bucket))
        path = self.path(bucket, number)
        header, key = new_header()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_at(fd, header, 0)
            sync_dir(path.parent)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        return _Pack(fd, number, key, len(header))
