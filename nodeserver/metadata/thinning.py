"""Which versions of a file go. Pure: no clock, no database."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nodeserver.protocol.wire import Policy

MINUTE, HOUR, DAY = 60, 3600, 86_400

DEFAULT = Policy(keep=[(0, 10 * MINUTE), (MINUTE, HOUR), (HOUR, DAY), (DAY, 30 * DAY), (7 * DAY, 365 * DAY)])
"""Where no policy is set."""

_SECOND = 1_000_000_000


class Item(NamedTuple):
    """A version, or anything else that was made at one moment and took the place of another."""

    id: bytes
    time_ns: int
    held: bool = False


def going(
    policy: Policy,
    line: Sequence[Item],
    now_ns: int,
    *,
    ended_ns: int | None = None,
    excluded: bool = False,
    beyond_ns: int = 0,
) -> set[bytes]:
    """Those of ``line``, a file's versions from the oldest on, that ``policy`` does not keep.

    Ages count from when a version was superseded, or its file deleted at ``ended_ns`` (None: it exists), so that what
    was there at any moment of the last ``until`` seconds can still be seen; slots go by when it was made. Of a file
    whose name is ``excluded``, and of versions made at ``beyond_ns`` or before, none stays but the newest of a file
    that exists. Held ones always stay.
    """
    goes: set[bytes] = set()
    newer: int | None = None  # when the next version was made that stays
    until = ended_ns
    stay = 0
    for item in reversed(line):
        if not (item.held or until is None):
            out = (
                excluded
                or item.time_ns <= beyond_ns
                or (policy.max_versions is not None and stay >= policy.max_versions)
            )
            if out or not _stays(policy, item.time_ns, now_ns - until, newer):
                goes.add(item.id)
                until = item.time_ns
                continue
        stay, newer, until = stay + 1, item.time_ns, item.time_ns
    return goes


def _stays(policy: Policy, made_ns: int, age_ns: int, newer: int | None) -> bool:
    """Whether the slots keep what was made at a moment, with the next that stays made at ``newer``."""
    if policy.max_age is not None and age_ns > policy.max_age * _SECOND:
        return False
    if not policy.keep:
        return True
    for every, until in policy.keep:
        if age_ns < until * _SECOND:
            slot = every * _SECOND
            return not slot or newer is None or newer // slot != made_ns // slot
    return False


def end_of(policy: Policy) -> int | None:
    """Seconds after which nothing is kept of what is no more; None when something is for ever."""
    ends = [until for _, until in policy.keep[-1:]]
    if policy.max_age is not None:
        ends.append(policy.max_age)
    return min(ends, default=None)


def excludes(policy: Policy, name: bytes) -> bool:
    """Whether a policy keeps no versions of files of that name."""
    text = os.fsdecode(name)
    return any(fnmatch.fnmatchcase(text, glob) for glob in policy.exclude)


def spent(sizes: Iterable[tuple[int, int]], budget: int) -> int:
    """The time of the newest version that a budget in bytes has no room for, 0 when it has for all.

    ``sizes`` are pairs of a version's time and the bytes that it needs and no newer one does, newest first.
    """
    total = 0
    for time_ns, size in sizes:
        total += size
        if total > budget and size:
            return time_ns
    return 0
