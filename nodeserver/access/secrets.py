"""Secrets in files: written once, durably, readable by their owner alone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def read_or_create(path: Path, content: bytes) -> bytes:
    """What the file ``path`` holds; made with ``content`` and mode 0600 when there is none.

    A crash leaves the whole file or none. Raises ``OSError``.
    """
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    name = _written(path, content)
    try:
        os.link(name, path)  # unlike rename, fails when somebody else was first
    finally:
        os.unlink(name)
    _sync(path.parent)
    return content


def replace(path: Path, content: bytes) -> None:
    """Let the file ``path`` hold ``content``, with mode 0600. A crash leaves the old or the new. Raises ``OSError``."""
    os.replace(_written(path, content), path)
    _sync(path.parent)


def _written(path: Path, content: bytes) -> str:
    """The name of a new file beside ``path``."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600, O_EXCL
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return name


def _sync(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
