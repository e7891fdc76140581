"""Names below ``.versions``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from nodeserver.protocol.names import NAME_MAX
from nodeserver.protocol.wire import Version

CURRENT, PREVIOUS = b"current", b"previous"
DIGITS = 8
"""Hexadecimal digits of a version's id in its name."""


def shown(name: bytes) -> bytes:
    """A real name as ``.versions`` lists it: what begins with ``@`` would be a time."""
    return b"@" + name if name.startswith(b"@") else name


def real(name: bytes) -> bytes | None:
    """The inverse of :func:`shown`; None for a time."""
    if name.startswith(b"@@"):
        return name[1:]
    return None if name.startswith(b"@") else name


def version_name(name: bytes, version: Version, digits: int = DIGITS) -> bytes:
    """``2026-11-22T14-15-30.123Z_3f9a2c71.odt``: when it was committed, and the end of its id."""
    seconds, millis = divmod(version.committed_ns // 1_000_000, 1000)
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(seconds))
    stem = f"{stamp}.{millis:03}Z_{version.id.hex()[-digits:]}".encode()
    extension = os.path.splitext(name)[1]
    return stem + extension if len(stem) + len(extension) <= NAME_MAX else stem


def version_names(name: bytes, versions: Iterable[Version]) -> dict[bytes, Version]:
    """All of them, in order. Of two that would be called the same, the later one has its whole id in its name."""
    named: dict[bytes, Version] = {}
    for version in versions:
        found = version_name(name, version)
        named[version_name(name, version, 32) if found in named else found] = version
    return named
