"""Sizes and times as people write and read them."""

from __future__ import annotations

import re

import click

BYTES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
"""Powers of two."""
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Size(click.ParamType[int]):
    """A number of bytes, written as ``500G``, ``2TiB`` or the plain number."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)(?:([KMGTP])(?:iB)?)?", str(value))
        if found is None:
            self.fail(f"{value!r} is not a size such as 500G or 2TiB", param, context)
        return int(found[1]) << BYTES[found[2] or ""]


class Duration(click.ParamType[float]):
    """A time in seconds, written as ``90s``, ``15m``, ``6h`` or ``2d``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is not a time such as 90s, 15m, 6h or 2d", param, context)
        return float(found[1]) * SECONDS[found[2]]


def size(count: float) -> str:
    """A number of bytes for people."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """A time in seconds for people."""
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
