"""Retention policies as people write them: ``keep=all:10m,1m:1h,1h:1d max-versions=100``."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from mountfs.errors import Misused
from nodeserver.protocol.wire import Policy

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
"""Seconds. A year has 365 days."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A setting: its field, and how it is read and shown."""

    field: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]
    nothing: Any = None
    """What the field has when the setting is taken away."""


def parse_duration(text: str) -> int:
    """Seconds of ``10m``, ``1d12h``. Raises ValueError."""
    if not re.fullmatch(r"(\d+[smhdwy])+", text, re.ASCII):
        raise ValueError(f"{text!r} is not a length of time, such as 10m, 12h, 30d or 1y")
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([smhdwy])", text))


def show_duration(seconds: int) -> str:
    """The inverse of :func:`parse_duration`, in the largest unit that fits."""
    unit = next(unit for unit in reversed(UNITS) if not seconds % UNITS[unit])
    return f"{seconds // UNITS[unit]}{unit}" if seconds else "0s"


def parse_keep(text: str) -> list[tuple[int, int]]:
    """Pairs of EVERY:UNTIL, both in seconds, ``all`` for 0. Raises ValueError."""
    pairs = []
    for part in text.split(","):
        every, colon, until = part.partition(":")
        if not colon:
            raise ValueError(f"{part!r} is not EVERY:UNTIL, such as 1h:1d")
        pairs.append((0 if every == "all" else parse_duration(every), parse_duration(until)))
    if any(one >= other for column in zip(*pairs, strict=True) for one, other in itertools.pairwise(column)):
        raise ValueError(f"{text!r} does not ascend: each pair keeps fewer versions, for longer")
    return pairs


def show_keep(pairs: Iterable[tuple[int, int]]) -> str:
    """The inverse of :func:`parse_keep`."""
    return ",".join(f"{show_duration(every) if every else 'all'}:{show_duration(until)}" for every, until in pairs)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ValueError(f"{text!r} is not a number from 1 on")
    return int(text)


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text, re.ASCII)
    if not match or float(match[1]) > 100:
        raise ValueError(f"{text!r} is not a share in percent, such as 25%")
    return float(match[1]) / 100


def _globs(text: str) -> list[str]:
    return [glob for glob in text.split(",") if glob]


KEYS = {
    "keep": Key("keep", parse_keep, show_keep, []),
    "max-versions": Key("max_versions", _count, str),
    "max-age": Key("max_age", parse_duration, show_duration),
    "max-share": Key("max_share", _share, lambda share: f"{100 * share:g}%"),
    "exclude": Key("exclude", _globs, ",".join, []),
}


def changed(policy: Policy, settings: Iterable[str]) -> Policy:
    """A policy with KEY=VALUE settings; without a value a setting is taken away. Raises ``Misused``."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        key = KEYS.get(name.replace("_", "-"))
        if key is None or not equals:
            raise Misused(f"{setting}: not one of {', '.join(f'{name}=…' for name in KEYS)}")
        try:
            values[key.field] = key.read(text) if text else key.nothing
        except ValueError as error:
            raise Misused(f"{name}: {error}") from None
    return msgspec.structs.replace(policy, **values)


def shown(policy: Policy) -> dict[str, str]:
    """The settings of a policy that are there, by name; each can be set as it is shown."""
    values = {name: getattr(policy, key.field) for name, key in KEYS.items()}
    return {name: KEYS[name].show(value) for name, value in values.items() if value != KEYS[name].nothing}
