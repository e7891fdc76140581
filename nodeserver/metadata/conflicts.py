"""Names for what lost a race."""

from __future__ import annotations

import os.path
import secrets
from datetime import UTC, datetime

from nodeserver.metadata.tree import Place, Tree
from nodeserver.protocol.names import NAME_MAX

EXTENSION_MAX = 32
"""A longer end of a name is not taken for an extension."""
NUMBERS = 8
"""Conflict names that are counted; behind them stands a random number, so that nobody looks at thousands of names."""


def conflict_name(name: bytes, client: str, time_ns: int, nth: str = "") -> bytes:
    """``stem (conflict CLIENT YYYY-MM-DDTHH-MM-SSZ NTH).ext``, the stem cut so that it fits a directory entry."""
    stem, extension = os.path.splitext(name)
    if len(extension) > EXTENSION_MAX:
        stem, extension = name, b""
    when = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    tail = f" (conflict {client} {when}{nth and ' '}{nth})".encode() + extension
    return _cut(stem, NAME_MAX - len(tail)) + tail


def printable(client_name: str, client: bytes) -> str:
    """What stands for a client in names: its own name made safe and short, or the start of its id."""
    safe = "".join(char for char in client_name if char.isprintable() and char not in "/()")
    return _cut(safe.strip().encode(), 64).decode() or client.hex()[:8]


def free_place(tree: Tree, directory: bytes, name: bytes, client: str, time_ns: int) -> Place:
    """A place in ``directory`` that is free, with a conflict name made from ``name``.

    Takes the same work for the thousandth name of a commit as for the first.
    """
    while True:
        count = tree.conflicts[directory, name] = tree.conflicts[directory, name] + 1
        nth = str(count) if count <= NUMBERS else secrets.token_hex(8)
        other = conflict_name(name, client, time_ns, nth if count > 1 else "")
        if tree.lookup((directory, other)) is None:
            return directory, other


def _cut(text: bytes, size: int) -> bytes:
    """At most ``size`` bytes of ``text``, not ending inside a UTF-8 character."""
    while len(text) > size or (text and _is_split(text)):
        text = text[: min(size, len(text) - 1)]
    return text


def _is_split(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
