"""What is done about a chunk: from any state to the one that it should have, never through one where it is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeserver.placement.healing import plan
from nodeserver.placement.scheme import Erasure, Replicate, Scheme
from nodeserver.protocol.pieces import Fragment, PieceId, fragment_id, fragment_of

CHUNK = bytes(range(32))
NODES = [bytes([number]) * 16 for number in range(9)]
SCHEMES: list[Scheme] = [Replicate(1, 1), Replicate(2, 2), Replicate(3, 2), Erasure(2, 1), Erasure(4, 2)]
CODES = [(2, 1), (4, 2), (3, 2)]

pieces = st.one_of(
    st.just(CHUNK),
    st.sampled_from(CODES).flatmap(
        lambda code: st.integers(0, sum(code) - 1).map(lambda number: fragment_id(CHUNK, Fragment(*code, number)))
    ),
)
places = st.dictionaries(st.sampled_from(NODES), st.lists(pieces, max_size=3, unique=True), max_size=9)


def readable(held: dict[bytes, list[PieceId]]) -> bool:
    codes: dict[tuple[int, int], set[int]] = {}
    for found in held.values():
        for piece in found:
            fragment = fragment_of(piece)
            if fragment is None:
                return True
            codes.setdefault(fragment[:2], set()).add(fragment.number)
    return any(len(numbers) >= data for (data, _), numbers in codes.items())


@given(places, st.sampled_from(SCHEMES), st.permutations(NODES), st.integers(1, 9), st.data())
def test_two_rounds_lead_to_what_should_be(
    held: dict[bytes, list[PieceId]], scheme: Scheme, order: list[bytes], up: int, data: st.DataObject
) -> None:
    if not readable(held):
        return
    home = order[: min(up, scheme.pieces)]
    for _ in range(2):
        found = plan(CHUNK, scheme, home, held)
        assert not (found.make and found.drop), "nothing goes while something is to be made"
        for node, piece in data.draw(st.permutations(found.make)):
            held.setdefault(node, []).append(piece)
        for node, piece in data.draw(st.permutations(found.drop)):
            held[node].remove(piece)
            assert readable(held)
    last = plan(CHUNK, scheme, home, held)
    assert not last.make
    assert not last.drop
    assert not last.lacking
    if len(home) >= scheme.quorum:
        there = {node: found for node, found in held.items() if found}
        assert set(there) == set(home)
        assert all(len(found) == 1 for found in there.values())
        if isinstance(scheme, Erasure):
            assert len({piece for found in there.values() for piece in found}) == len(home)


@given(places, st.sampled_from(SCHEMES), st.permutations(NODES), st.sets(st.sampled_from(NODES), min_size=1))
def test_nothing_is_deleted_while_a_node_of_the_home_is_away(
    held: dict[bytes, list[PieceId]], scheme: Scheme, order: list[bytes], away: set[bytes]
) -> None:
    home = order[: scheme.pieces]
    found = plan(CHUNK, scheme, home, held, away)
    assert all(node not in away for node, _ in found.make)
    if away & set(home):
        assert not found.drop
