"""What a policy keeps, as a pure function of versions and times."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserver.metadata.thinning import DAY, DEFAULT, HOUR, MINUTE, Item, end_of, excludes, going, spent
from nodeserver.protocol.wire import Policy

S = 1_000_000_000
NOW = 1_800_000_000 * S
WEEK = 7 * DAY


def line(*ages: float) -> list[Item]:
    """Versions made so many seconds ago, oldest first."""
    return [Item(b"%d" % number, NOW - int(age * S)) for number, age in enumerate(sorted(ages, reverse=True))]


def kept(policy: Policy, items: list[Item], **how: object) -> list[float]:
    """The ages in seconds of those that stay, oldest first."""
    goes = going(policy, items, NOW, **how)  # type: ignore[arg-type]
    return [(NOW - item.time_ns) / S for item in items if item.id not in goes]


def test_everything_of_the_last_ten_minutes_stays() -> None:
    items = line(*range(0, 600, 5))
    assert len(kept(DEFAULT, items)) == len(items)


def test_slots_keep_their_newest() -> None:
    start = NOW // (60 * S) * 60 * S - 30 * MINUTE * S  # the beginning of a minute
    items = [Item(b"%d" % second, start + second * S) for second in range(0, 300, 10)]
    items.append(Item(b"head", NOW))
    stay = [item for item in items if item.id not in going(DEFAULT, items, NOW)]
    # The last was superseded just now, and so is as young as can be; of each minute the last is there.
    assert [item.id for item in stay] == [b"50", b"110", b"170", b"230", b"290", b"head"]


def test_a_year_of_saves_leaves_some_hundred() -> None:
    items = line(*range(0, 400 * DAY, 30 * MINUTE), *range(0, DAY, MINUTE), *range(0, HOUR, 10))
    stay = kept(DEFAULT, items)
    assert 60 + 50 + 23 + 29 + 47 <= len(stay) <= 61 + 61 + 25 + 31 + 50 + 3
    assert max(stay) <= 365 * DAY + 30 * MINUTE
    ages = [age for age in stay if 31 * DAY < age < 364 * DAY]
    assert all(5 * DAY < older - newer < 9 * DAY for older, newer in pairwise(ages))


def test_what_was_there_until_a_moment_ago_stays_however_old_it_is() -> None:
    assert kept(DEFAULT, line(1000 * DAY, 30)) == [1000 * DAY, 30]
    assert kept(DEFAULT, line(1000 * DAY), ended_ns=NOW - 30 * S) == [1000 * DAY]
    assert kept(DEFAULT, line(1000 * DAY, 400 * DAY)) == [400 * DAY]
    assert kept(DEFAULT, line(1000 * DAY), ended_ns=NOW - 364 * DAY * S) == [1000 * DAY]
    assert kept(DEFAULT, line(1000 * DAY), ended_ns=NOW - 366 * DAY * S) == []


def test_caps() -> None:
    items = line(*range(100, 0, -10))
    assert kept(Policy(max_versions=3), items) == [30, 20, 10]
    assert kept(Policy(max_versions=0), items) == [10]
    assert kept(Policy(max_versions=0), items, ended_ns=NOW) == []
    assert kept(Policy(max_age=45), items) == [50, 40, 30, 20, 10]
    assert kept(Policy(), items) == list(range(100, 0, -10))
    assert kept(Policy(), items, beyond_ns=NOW - 40 * S) == [30, 20, 10]
    assert kept(Policy(), items, excluded=True) == [10]
    assert kept(Policy(), items, excluded=True, ended_ns=NOW) == []


def test_held_ones_stay_and_count() -> None:
    items = [item._replace(held=number in (0, 4)) for number, item in enumerate(line(*range(100, 0, -10)))]
    for policy in Policy(max_versions=1), Policy(max_age=0):
        assert kept(policy, items) == [100, 60, 10]
    assert kept(Policy(), items, excluded=True, ended_ns=NOW) == [100, 60]


def test_globs_are_of_names() -> None:
    policy = Policy(exclude=["*.swp", ".~lock*", "*.p?rt", "[ab].tmp", "caf\udce9*"])
    for name in (b"x.swp", b".x.swp", b".~lock.report.odt#", b"film.part", b"a.tmp", b"caf\xe9.txt"):
        assert excludes(policy, name), name
    for name in (b"x.swpx", b"X.SWP", b"part", b"c.tmp", b"cafe.txt"):
        assert not excludes(policy, name), name


def test_the_end_of_a_policy() -> None:
    assert end_of(DEFAULT) == 365 * DAY
    assert end_of(Policy()) is None
    assert end_of(Policy(max_age=5)) == 5
    assert end_of(Policy(keep=[(0, 60)], max_age=100)) == 60


def test_what_a_budget_has_no_room_for() -> None:
    sizes = [(50, 10), (40, 0), (30, 20), (20, 5), (10, 0)]
    assert spent(sizes, 35) == 0
    assert spent(sizes, 34) == 20
    assert spent(sizes, 29) == 30
    assert spent(sizes, 0) == 50
    assert spent([], 0) == 0


rules = st.builds(
    Policy,
    keep=st.sampled_from(
        [DEFAULT.keep, [], [(0, 60)], [(10, 100), (100, 1000)], [(7, 50), (11, 3000)], [(0, 30), (1000, 1_000_000)]]
    ),
    max_versions=st.none() | st.integers(0, 8),
    max_age=st.none() | st.integers(0, 5000),
)
times = st.lists(st.integers(0, 6000), min_size=1, max_size=60, unique=True)
lines = st.builds(
    lambda ages, held: [item._replace(held=number in held) for number, item in enumerate(line(*ages))],
    times,
    st.sets(st.integers(0, 60), max_size=3),
)
ends = st.none() | st.integers(0, 7000).map(lambda age: NOW - age * S)


@settings(max_examples=300)
@given(rules, lines, ends)
def test_the_newest_of_what_exists_and_what_is_held_never_go(
    policy: Policy, items: list[Item], ended: int | None
) -> None:
    ended = None if ended is None else max(ended, items[-1].time_ns)
    goes = going(policy, items, NOW, ended_ns=ended)
    assert goes <= {item.id for item in items}
    assert not goes & {item.id for item in items if item.held}
    assert ended is not None or items[-1].id not in goes


@settings(max_examples=300)
@given(rules, lines)
def test_nothing_that_was_there_within_a_keep_all_time_goes(policy: Policy, items: list[Item]) -> None:
    """So that any moment in it shows what was there, unless a cap takes it."""
    policy = Policy(keep=[(0, 100), *policy.keep[1:2]] if policy.keep[1:] else [(0, 100)])
    goes = going(policy, items, NOW)
    for one, following in pairwise(items):
        if following.time_ns > NOW - 100 * S:
            assert one.id not in goes


@settings(max_examples=300)
@given(rules, lines, ends)
def test_each_slot_that_had_something_has_its_newest(policy: Policy, items: list[Item], ended: int | None) -> None:
    policy = Policy(keep=policy.keep)
    ended = None if ended is None else max(ended, items[-1].time_ns)
    goes = going(policy, items, NOW, ended_ns=ended)
    until = [item.time_ns for item in items[1:]] + [ended]
    for number, (item, superseded) in enumerate(zip(items, until, strict=True)):
        if superseded is None or item.held:
            continue
        tier = next((every for every, to in policy.keep if NOW - superseded < to * S), None)
        if policy.keep and tier is None:
            assert item.id in goes
        elif not tier:
            assert item.id not in goes
        elif item.id in goes:
            slot = item.time_ns // (tier * S)
            assert any(later.time_ns // (tier * S) == slot and later.id not in goes for later in items[number + 1 :]), (
                "something newer of the slot stays"
            )


@settings(max_examples=300)
@given(rules, lines, ends, st.integers(0, 4000))
def test_thinning_as_one_goes_keeps_no_less_than_thinning_at_the_end(
    policy: Policy, items: list[Item], ended: int | None, earlier: int
) -> None:
    """Of slots that fit into each other: what stays does not depend on how often retention ran."""
    policy = Policy(keep=[(0, 10), (10, 100), (100, 1000), (1000, 5000)])
    ended = None if ended is None else max(ended, items[-1].time_ns)
    then = NOW - earlier * S
    before = [item for item in items if item.time_ns <= then]
    gone = going(policy, before, then, ended_ns=ended if ended is not None and ended <= then else None)
    left = [item for item in items if item.id not in gone]
    stays_twice = {item.id for item in left} - going(policy, left, NOW, ended_ns=ended)
    stays_once = {item.id for item in items} - going(policy, items, NOW, ended_ns=ended)
    assert stays_once <= stays_twice
