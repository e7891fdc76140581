"""Times as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from mountfs import moments

SECOND = 1_000_000_000
NOON = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()) * SECOND
BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: timezone | ZoneInfo = UTC) -> int:
    """``text`` in nanoseconds after noon of 2026-11-22, at which it is said."""
    return moments.parse(text, NOON, zone) - NOON


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", 0),
        ("yesterday", -86_400),
        ("-0s", 0),
        ("-30s", -30),
        ("-90m", -5400),
        ("-1h", -3600),
        ("-2d", -172_800),
        ("-1w", -604_800),
        ("-1d12h", -129_600),
        ("2026-11-22", -43_200),
        ("2026-11-22T14-15", 8100),
        ("2026-11-22T14:15", 8100),
        ("2026-11-22 14:15", 8100),
        ("2026-11-22_14-15", 8100),
        ("2026-11-22T14-15Z", 8100),
        ("2026-11-22T14-15+0100", 4500),
        ("2026-11-22T14-15+01:00", 4500),
        ("2026-11-22T14-15-0130", 13_500),
        ("2026-11-22T14:15-01:30", 13_500),
        ("2026-11-22Z", -43_200),
        ("2026-11-22+0200", -50_400),
    ],
)
def test_what_people_write(text: str, seconds: int) -> None:
    assert at(text) == seconds * SECOND
    assert at("@" + text) == seconds * SECOND


def test_seconds_mean_their_end() -> None:
    end = 999_999_999
    assert at("2026-11-22T14-15-30") == at("2026-11-22T14:15:30z") == 8130 * SECOND + end
    assert at("GMT-2026.11.22-14.15.30") == 8130 * SECOND + end
    assert at("2026-11-22T14-15-30-0130") == 13_530 * SECOND + end
    assert at("2026-11-22T12-00-00.123Z") == 123_999_999
    assert at("2026-11-22T12:00:00.5") == 599_999_999
    assert at("2026-11-22T12:00:00,000000001") == 1


def test_without_an_offset_it_is_local_time_of_that_day() -> None:
    assert at("2026-11-22T13-00", BERLIN) == 0
    assert at("2026-07-22T14-00", BERLIN) == at("2026-07-22T12-00Z")
    assert at("2026-11-22T12-00Z", BERLIN) == 0
    assert at("GMT-2026.11.22-12.00.00", BERLIN) == at("2026-11-22T12-00-00Z")
    assert at("2026-11-22T12-00", timezone(timedelta(hours=5, minutes=30))) == -19_800 * SECOND


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
def test_the_zone_of_the_machine() -> None:
    assert moments.parse("2026-11-22T07-00", NOON) == NOON
    assert moments.parse("2026-07-22T08-00", NOON) == moments.parse("2026-07-22T12-00Z", NOON)


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "@@now", "tomorrow", "-", "-h", "-1", "-1x", "1h", "+1h", "- 1h", "-1h ", "-1.5h", "2026", "2026-11",
        "2026-1-2", "2026-11-22T", "2026-11-22T14",
        "2026-11-22T14-15:30", "2026-11-22T14-15Z+0100", "2026-11-22T14-15-30.Z",
        "2026-11-22T14-15-30.1234567890", "GMT-2026-11-22-14.15.30", "-\u0661h", "report.odt",
    ],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time, such as now") as caught:
        at(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-13-01", "month must be in 1..12"),
        ("2026-02-30", "day is out of range for month"),
        ("2026-11-22T24-00", "hour must be in 0..23"),
        ("2026-11-22T23-60", "minute must be in 0..59"),
        ("0000-01-01", "year 0 is out of range"),
        ("2026-11-22T14-15+2400", r"there is no offset \+2400"),
        ("GMT-2026.11.32-00.00.00", "day is out of range for month"),
    ],
)
def test_what_no_calendar_has(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        at(text)


def test_far_times_are_as_far_as_times_go() -> None:
    assert moments.parse("-99999999999w", NOON) == moments.parse("0001-01-01", NOON, BERLIN) == 0
    assert moments.parse("9999-12-31", NOON) == 2**63 - 1


def test_which_of_them_move_on() -> None:
    assert all(map(moments.is_relative, ("now", "@now", "yesterday", "-1h", "@-1d12h")))
    assert not any(map(moments.is_relative, ("2026-11-22", "@GMT-2026.11.22-14.15.30", "report")))
