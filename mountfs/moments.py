"""Moments as people write them: ``-1h``, ``yesterday``, ``2026-11-22T14-15Z``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

_SECOND = 1_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LAST = 2**63 - 1
_AGO = re.compile(r"-((?:\d+[smhdw])+)", re.ASCII)
_DATE = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[Tt_ ](?P<hour>\d\d)(?P<sep>[:-])(?P<minute>\d\d)(?:(?P=sep)(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"(?P<zone>[Zz]|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_SAMBA = re.compile(
    r"GMT-(?P<year>\d{4})\.(?P<month>\d\d)\.(?P<day>\d\d)-(?P<hour>\d\d)\.(?P<minute>\d\d)\.(?P<second>\d\d)", re.ASCII
)
_FIELDS = ("year", "month", "day", "hour", "minute", "second")


def is_relative(text: str) -> bool:
    """Whether a text that :func:`parse` takes means another moment later on."""
    return text.removeprefix("@") in ("now", "yesterday") or bool(_AGO.fullmatch(text.removeprefix("@")))


def parse(text: str, now_ns: int, zone: tzinfo | None = None) -> int:
    """The moment that ``text`` stands for, in nanoseconds since 1970, between 0 and 2⁶³ - 1.

    ``now``, ``yesterday`` (24 hours ago), ``-90m`` or ``-1d12h`` (units s, m, h, d, w), ``2026-11-22``,
    ``2026-11-22T14-15``, with seconds and up to nine digits of their fraction, ``-`` or ``:`` in the time, and ``Z``
    or ``+0100`` at the end; ``GMT-2026.11.22-14.15.30``. An ``@`` may stand in front. Without ``Z`` or an offset the
    time is that of ``zone``, None for the machine's. A time with seconds means their end: ``30`` is 30.999999999 and
    ``30.123`` is 30.123999999, so that a time which was cut to seconds or less, by a clock or a log, includes what
    happened then. Raises ValueError.
    """
    body = text.removeprefix("@")
    if body == "now":
        moment = now_ns
    elif body == "yesterday":
        moment = now_ns - _UNITS["d"] * _SECOND
    elif match := _AGO.fullmatch(body):
        steps = re.findall(r"(\d+)([smhdw])", match[1])
        moment = now_ns - sum(int(count) * _UNITS[unit] for count, unit in steps) * _SECOND
    elif match := _SAMBA.fullmatch(body):
        moment = _from_fields(text, match, UTC) + _rest_of_second("")
    elif match := _DATE.fullmatch(body):
        moment = _from_fields(text, match, _zone(text, match["zone"]) or zone)
        if match["second"]:
            moment += _rest_of_second(match["fraction"] or "")
    else:
        raise ValueError(
            f"{text!r} is not a time, such as now, yesterday, -1h, 2026-11-22, 2026-11-22T14-15Z"
            " or 2026-11-22T14:15:30+01:00"
        )
    return min(max(moment, 0), _LAST)


def _from_fields(text: str, match: re.Match[str], zone: tzinfo | None) -> int:
    fields = match.groupdict()
    try:
        when = datetime(*(int(fields[name] or 0) for name in _FIELDS), tzinfo=zone)  # type: ignore[arg-type,misc]
        return int(when.timestamp()) * _SECOND
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a time: {error}") from None


def _zone(text: str, offset: str | None) -> tzinfo | None:
    if not offset:
        return None
    if offset in "Zz":
        return UTC
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError(f"{text!r} is not a time: there is no offset {offset}")
    return timezone((1 if offset[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes))


def _rest_of_second(digits: str) -> int:
    return int(digits.ljust(9, "9"))
