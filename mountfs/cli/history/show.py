"""How history looks: times, names, JSON."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import Any

import click

from mountfs import moments
from mountfs.errors import Misused

AHEAD = 60_000_000_000
"""Nanoseconds that the clock of a time may be ahead of ours."""


def local_time(time_ns: int) -> str:
    """A time in the zone of the user, for people."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def utc_time(time_ns: int) -> str:
    """A time for programs: UTC, with milliseconds."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).replace(microsecond=time_ns // 1000 % 1_000_000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(path: bytes) -> str:
    """A path for people; whatever a terminal might take for more than text is escaped."""
    text = path.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """A line on standard output, in which paths may have any bytes."""
    click.echo(printable(os.fsencode(text)))


def print_json(value: Any) -> None:
    """``value`` on standard output. Bytes that are no UTF-8 become lone surrogates, as Python has them in paths."""
    click.echo(json.dumps(value, indent=2))


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of a time on the command line, none in the future. Raises ``Misused``."""
    now_ns = time.time_ns()
    try:
        found = moments.parse(text, now_ns)
    except ValueError as error:
        raise Misused(str(error)) from None
    if found > now_ns + AHEAD:
        raise Misused(f"{text!r} is in the future: nobody knows yet what there will be")
    return found
