"""Large chunks and fragments of chunks, one to a file. The file system is their only index."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from nodeserver.chunks.disk import make_dir, sync_dir, write_new
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import CHUNK_ID, PieceId, chunk_of

WHOLE, FRAGMENTS = "files", "fragments"
"""The directories of whole chunks and of fragments."""


class Files:
    """The files below ``root/BUCKET/files``, and of fragments below ``root/BUCKET/fragments``. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = count()
        self._landing: set[str] = set()
        self._settled: set[str] = set()

    def path(self, bucket: bytes, chunk: bytes) -> str:
        """Where a chunk lies, if it is there."""
        name = chunk.hex()
        return f"{self._root}/{bucket.hex()}/{_kind(chunk)}/{name[:2]}/{name}"

    def size(self, bucket: bytes, chunk: bytes) -> int | None:
        """Bytes of a stored chunk; None when there is none."""
        try:
            return os.stat(self.path(bucket, chunk)).st_size
        except FileNotFoundError:
            return None

    def has(self, bucket: bytes, chunk: bytes) -> bool:
        """Whether a chunk is stored, durably: not while its writer still waits for the disk."""
        path = self.path(bucket, chunk)
        if not os.path.exists(path) or path in self._landing:
            return False
        directory = os.path.dirname(path)
        if directory not in self._settled:
            # An earlier process may have died between the rename and this.
            sync_dir(directory)
            self._settled.add(directory)
        return True

    def write(self, bucket: bytes, chunk: bytes, stored: bytes) -> None:
        """Store a chunk in place of any that is there, durable on return.

        Raises ``OSError``; nothing half-written is left then.
        """
        path = self.path(bucket, chunk)
        directory = os.path.dirname(path)
        if directory not in self._settled:
            make_dir(Path(directory))
        temporary = str(self._root / "tmp" / str(next(self._numbers)))
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                write_new(fd, stored)
            finally:
                os.close(fd)
            self._landing.add(path)
            os.rename(temporary, path)
            sync_dir(directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        # Only now, never after a failed fsync: a name that may not last must go on being missing.
        self._landing.discard(path)
        self._settled.add(directory)

    def delete(self, bucket: bytes, chunk: bytes) -> None:
        """Delete a chunk if it is there. Raises ``OSError``."""
        with suppress(FileNotFoundError):
            os.unlink(self.path(bucket, chunk))

    def count(self, bucket: bytes) -> int:
        """How many chunks there are, about: ids are as good as random."""
        return 256 * len({chunk_of(held.piece) for held in self.listing(bucket, 0, 1)})

    def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> list[bytes]:
        """The chunks of which something came before a moment, whose ids begin with a byte from ``first`` on and below
        ``beyond``."""
        return [chunk_of(held.piece) for held in self.listing(bucket, first, beyond) if held.stored_ns < before_ns]

    def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """The pieces whose ids begin with a byte from ``first`` on and below ``beyond``."""
        return [
            held
            for start in range(first, beyond)
            for kind in (WHOLE, FRAGMENTS)
            for held in self._scan(bucket, kind, f"{start:02x}")
        ]

    def held(self, bucket: bytes, piece: PieceId) -> Held | None:
        """A piece, if it is here."""
        try:
            stat = os.stat(self.path(bucket, piece))
        except FileNotFoundError:
            return None
        return Held(piece, stat.st_size, stat.st_mtime_ns)

    def has_fragments(self, bucket: bytes) -> bool:
        """Whether there is any fragment of the bucket's chunks."""
        return os.path.isdir(f"{self._root}/{bucket.hex()}/{FRAGMENTS}")

    def fragments(self, bucket: bytes, chunk: bytes) -> list[Held]:
        """The fragments of a chunk that are here."""
        name = chunk.hex()
        return self._scan(bucket, FRAGMENTS, name[:2], name)

    def _scan(self, bucket: bytes, kind: str, directory: str, prefix: str = "") -> list[Held]:
        found: list[Held] = []
        with suppress(FileNotFoundError), os.scandir(f"{self._root}/{bucket.hex()}/{kind}/{directory}") as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        found.append(Held(bytes.fromhex(entry.name), stat.st_size, stat.st_mtime_ns))
        return found

    def forget(self, bucket: bytes) -> None:
        """Drop what is remembered of a bucket's directories, which are gone."""
        prefix = f"{self._root}/{bucket.hex()}/"
        self._settled = {directory for directory in self._settled if not directory.startswith(prefix)}


def _kind(piece: PieceId) -> str:
    return WHOLE if len(piece) == CHUNK_ID else FRAGMENTS
