"""The material: bytes that do not compress, and a source tree."""

from __future__ import annotations

import itertools
import os
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SKIPPED = {"site-packages", "dist-packages", "__pycache__"}


def incompressible(size: int, block: int) -> Iterator[bytes]:
    """``size`` bytes in pieces of ``block``, no two alike, faster than the system's random numbers."""
    stream = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(block)
    while size > 0:
        yield stream.update(zeros[: min(block, size)])
        size -= block


def pack_source_tree(archive: Path, limit: int | None) -> None:
    """Write a tar file of this Python's standard library, of its first ``limit`` files."""
    root = Path(sysconfig.get_path("stdlib"))
    with tarfile.open(archive, "w") as tar:
        for file in itertools.islice(_files(root), limit):
            tar.add(file, arcname=file.relative_to(root), recursive=False)


def _files(root: Path) -> Iterator[Path]:
    for place, directories, names in os.walk(root):
        # Compiled libraries are no source: they would outweigh all the rest.
        directories[:] = sorted(name for name in directories if name not in SKIPPED and not name.startswith("config-"))
        for name in sorted(names):
            file = Path(place, name)
            if file.is_file() and not file.is_symlink() and file.suffix not in {".so", ".a"}:
                yield file
