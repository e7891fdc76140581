"""The extended attributes that tell of a version."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeserver.protocol.wire import Version

FACTS: dict[bytes, Callable[[Version], str]] = {
    b"user.mountfs.version_id": lambda version: version.id.hex(),
    b"user.mountfs.number": lambda version: str(version.number),
    b"user.mountfs.checksum": lambda version: version.hash.hex(),
    b"user.mountfs.committed_at": lambda version: _utc(version.committed_ns),
    b"user.mountfs.author": lambda version: version.author,
    b"user.mountfs.client": lambda version: version.client.hex(),
    b"user.mountfs.base": lambda version: version.base.hex(),
    b"user.mountfs.is_current": lambda version: str(int(version.current)),
}
"""By name. Times are UTC; identifiers and hashes hexadecimal; ``base`` is empty without one."""


def fact(name: bytes, version: Version) -> bytes:
    """The value of the attribute ``name``, which must be one of them."""
    return FACTS[name](version).encode()


def _utc(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09}Z"
