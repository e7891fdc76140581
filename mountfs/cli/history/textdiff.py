"""The difference of two texts, as diff -u shows it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

MOST = 4 << 20
"""Bytes of a text that is compared line by line."""
NO_NEWLINE = b"\\ No newline at end of file\n"


def is_text(data: bytes) -> bool:
    """Whether people can read it: UTF-8 without NUL."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def unified(before: bytes, after: bytes, before_label: str, after_label: str) -> Iterator[bytes]:
    """The lines of a unified diff, which patch takes; none when the texts are the same."""
    one, other = (label.encode(errors="surrogateescape") for label in (before_label, after_label))
    for line in difflib.diff_bytes(difflib.unified_diff, _lines(before), _lines(after), one, other):
        if line.endswith(b"\n"):
            yield line
        else:
            yield line + b"\n"
            yield NO_NEWLINE


def _lines(data: bytes) -> list[bytes]:
    """Only a line feed ends a line."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
