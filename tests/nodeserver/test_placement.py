"""Placement: balance, little movement, copies apart, and the same answer everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserver.placement.map import ClusterMap, Node, State, make_map
from nodeserver.placement.moves import preview
from nodeserver.placement.rendezvous import Placement, chunk_key, mixed, node_key
from nodeserver.placement.scheme import parse_scheme
from nodeserver.placement.shares import wanted

COUNT = 20_000
CHUNKS = [hashlib.sha256(number.to_bytes(4)).digest() for number in range(COUNT)]
SIZE = 1000


def cluster(zones: dict[str, list[float]]) -> ClusterMap:
    """A map of zones with nodes of these weights."""
    weights = [(zone, weight) for zone, members in zones.items() for weight in members]
    return make_map(
        Node(number.to_bytes(16), f"http://node{number}", zone, weight=weight)
        for number, (zone, weight) in enumerate(weights, start=1)
    )


def shares_of(found: ClusterMap, pieces: int, chunks: list[bytes] = CHUNKS) -> dict[bytes, float]:
    """How many pieces of a chunk each node has on average."""
    placement = Placement(found, pieces)
    counts = Counter(node.id for chunk in chunks for node in placement.home(chunk))
    return {node: count / len(chunks) for node, count in counts.items()}


def assert_within_noise(share: float, expected: float, tolerance: float = 0.05) -> None:
    """Within 5 %, and four standard deviations of chance where that is more."""
    noise = 4 * (expected * max(0.0, 1 - expected) / COUNT) ** 0.5
    assert abs(share - expected) <= max(tolerance * expected, noise), (share, expected)


EQUAL_ZONES = {zone: [1.0] * 4 for zone in "abcde"}
UNEQUAL_NODES = {zone: [1.0, 2.0, 3.0] for zone in "abcd"}
UNEQUAL_ZONES = {"a": [1.0] * 3, "b": [1.0] * 4, "c": [2.0] * 2, "d": [1.0] * 5, "e": [1.0, 3.0]}
ONE_ZONE = {"": [1.0, 1.0, 2.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize("scheme", ["replicate:1", "replicate:2", "replicate:3", "erasure:3+1"])
@pytest.mark.parametrize("zones", [EQUAL_ZONES, UNEQUAL_NODES, UNEQUAL_ZONES], ids=["equal", "nodes", "zones"])
def test_nodes_have_pieces_by_weight(zones: dict[str, list[float]], scheme: str) -> None:
    """As many zones as pieces or more: a node's share is its part of its zone's, a zone's is by weight or whole."""
    found = cluster(zones)
    pieces = parse_scheme(scheme).pieces
    shares = shares_of(found, pieces)
    weights = {zone: sum(members) for zone, members in zones.items()}
    of_zone = dict(zip(weights, wanted(list(weights.values()), pieces), strict=True))
    for node in found.nodes:
        assert_within_noise(shares[node.id], of_zone[node.zone] * node.weight / weights[node.zone])


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_nodes_of_one_zone_have_pieces_by_weight(pieces: int) -> None:
    found = cluster(ONE_ZONE)
    shares = shares_of(found, pieces)
    for node, expected in zip(found.nodes, wanted([node.weight for node in found.nodes], pieces), strict=True):
        assert_within_noise(shares[node.id], expected)


def test_six_fragments_in_three_zones_are_two_in_each_by_weight() -> None:
    found = cluster({"a": [1.0, 1.0, 2.0], "b": [1.0] * 4, "c": [1.0, 2.0, 3.0, 4.0]})
    shares = shares_of(found, 6)
    for zone in "abc":
        members = [node for node in found.nodes if node.zone == zone]
        for node, expected in zip(members, wanted([node.weight for node in members], 2), strict=True):
            assert_within_noise(shares[node.id], expected)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.floats(0.5, 4), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(1, 4))
def test_shares_of_any_cluster_with_enough_zones(weights: list[list[float]], pieces: int) -> None:
    zones = {str(number): members for number, members in enumerate(weights)}
    found = cluster(zones)
    shares = shares_of(found, pieces, CHUNKS[:10_000])
    assert sum(shares.values()) == pytest.approx(min(pieces, len(found.nodes)))
    if len(zones) >= pieces:
        sums = [sum(members) for members in weights]
        for node in found.nodes:
            zone = int(node.zone)
            expected = wanted(sums, pieces)[zone] * node.weight / sums[zone]
            # Of hundreds of comparisons some are far out by chance: five standard deviations.
            assert abs(shares[node.id] - expected) <= max(0.05 * expected, 5 * (expected / 10_000) ** 0.5)


def test_no_more_is_wanted_than_one_of_each() -> None:
    assert wanted([1, 1, 2], 2) == [0.5, 0.5, 1.0]
    assert wanted([1, 1, 8], 2) == [0.5, 0.5, 1.0]
    assert wanted([1, 3, 8, 8], 3) == [0.25, 0.75, 1.0, 1.0]
    assert wanted([5, 7], 2) == [1.0, 1.0]
    assert wanted([1, 1, 1, 1], 2) == [0.5] * 4


clusters = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 10), st.sampled_from(State)), max_size=12).map(
    lambda found: make_map(
        Node(number.to_bytes(16), "", zone, weight=weight, state=state)
        for number, (zone, weight, state) in enumerate(found)
    )
)


@settings(deadline=None)
@given(clusters, st.binary(min_size=32, max_size=32), st.integers(1, 8))
def test_pieces_never_share_what_they_need_not(found: ClusterMap, chunk: bytes, pieces: int) -> None:
    placement = Placement(found, pieces)
    home, targets, sources = placement.home(chunk), placement.targets(chunk), placement.sources(chunk)
    up = [node for node in found.nodes if node.state is State.UP]
    assert len({node.id for node in home}) == len(home) == min(pieces, len(up))
    zones = Counter(node.zone for node in home)
    room = Counter(node.zone for node in up)
    assert len(zones) == min(len(home), len(room))
    # No zone has two more than another that could take one.
    assert all(zones[one] <= zones[other] + 1 for one in zones for other in room if zones[other] < room[other])
    assert {node.id for node in targets} == {node.id for node in up}
    assert targets[: len(home)] == home == sources[: len(home)]
    assert {node.id for node in sources} == {node.id for node in found.nodes if node.state is not State.REMOVED}
    assert len(sources) == len({node.id for node in sources})


@pytest.mark.parametrize("state", [State.DRAINING, State.DOWN, State.REMOVED])
def test_only_nodes_that_are_up_get_anything_new(state: State) -> None:
    before = cluster(UNEQUAL_ZONES)
    gone = before.nodes[5].id
    after = before.with_state(gone, state)
    assert gone in shares_of(before, 3, CHUNKS[:2000])
    assert gone not in shares_of(after, 3, CHUNKS[:2000])
    assert Placement(after, 3).epoch == before.epoch + 1


def test_what_a_draining_node_has_is_looked_for_right_after_the_home() -> None:
    before = cluster(EQUAL_ZONES)
    leaving = before.nodes[0].id
    was, now = Placement(before, 3), Placement(before.with_state(leaving, State.DRAINING), 3)
    had = [chunk for chunk in CHUNKS[:2000] if leaving in {node.id for node in was.home(chunk)}]
    places = [[node.id for node in now.sources(chunk)].index(leaving) for chunk in had]
    assert min(places) == 3
    assert sum(places) / len(places) < 4.5


def moved(before: ClusterMap, after: ClusterMap, scheme: str) -> float:
    """The part of all pieces that move."""
    found = preview(((chunk, SIZE) for chunk in CHUNKS[:10_000]), parse_scheme(scheme), before, after)
    return found.total.pieces / found.pieces


@pytest.mark.parametrize("scheme", ["replicate:1", "replicate:3", "erasure:4+2"])
@pytest.mark.parametrize("zones", [{str(zone): [1.0] for zone in range(8)}, {"": [1.0] * 8}], ids=["apart", "together"])
def test_a_node_that_comes_or_goes_moves_its_share(zones: dict[str, list[float]], scheme: str) -> None:
    """Nodes of one weight, each a zone or all in one: 1/n of the pieces and no more than chance adds."""
    small = cluster(zones)
    large = small.with_nodes(Node(b"n" * 16, "", "new" if len(zones) > 1 else ""))
    assert moved(small, large, scheme) == pytest.approx(1 / 9, rel=0.06)
    assert moved(large, large.with_state(b"n" * 16, State.REMOVED), scheme) == pytest.approx(1 / 9, rel=0.06)


@pytest.mark.parametrize("scheme", ["replicate:1", "replicate:2", "replicate:3"])
@pytest.mark.parametrize("zones", [EQUAL_ZONES, UNEQUAL_NODES, UNEQUAL_ZONES, ONE_ZONE])
def test_at_most_one_and_a_half_shares_move(zones: dict[str, list[float]], scheme: str) -> None:
    """However unequal: what keeps the others in proportion adds at most half of the node's own share."""
    small = cluster(zones)
    mean = sum(node.weight for node in small.nodes) / len(small.nodes)
    large = small.with_nodes(Node(b"n" * 16, "", small.nodes[0].zone, weight=mean))
    share = 1 / len(large.nodes)
    assert 0.5 * share < moved(small, large, scheme) < 1.5 * share
    assert 0.5 * share < moved(large, large.with_state(b"n" * 16, State.REMOVED), scheme) < 1.5 * share


def test_an_outage_moves_only_what_the_node_had() -> None:
    before = cluster(UNEQUAL_ZONES)
    down = before.nodes[2].id
    after = before.with_state(down, State.DOWN)
    chunks = CHUNKS[:5000]
    found = preview(((chunk, SIZE) for chunk in chunks), parse_scheme("replicate:3"), before, after)
    assert found.total.pieces == pytest.approx(shares_of(before, 3, chunks)[down] * len(chunks))
    assert {source for source, _ in found.flows} == {None}


def test_a_preview_tells_from_where_to_where() -> None:
    before = cluster({zone: [1.0] for zone in "abcd"})
    leaving = before.nodes[0].id
    after = before.with_state(leaving, State.DRAINING)
    chunks = [(chunk, SIZE) for chunk in CHUNKS[:1000]]
    had = sum(leaving in {node.id for node in Placement(before, 2).home(chunk)} for chunk, _ in chunks)
    found = preview(chunks, parse_scheme("replicate:2"), before, after)
    assert (found.chunks, found.moved, found.pieces, found.missing) == (1000, had, 2000, 0)
    assert (found.total.pieces, found.total.bytes) == (had, had * SIZE)
    assert {source for source, _ in found.flows} == {leaving}
    assert {target for _, target in found.flows} == {node.id for node in before.nodes[1:]}
    assert sum(amount.bytes for amount in found.flows.values()) == found.busiest() == had * SIZE
    assert found.seconds(1000.0) == had
    fragments = preview(chunks, parse_scheme("erasure:2+1"), before, after, into=found)
    assert fragments is found
    assert found.chunks == 2000


def test_a_preview_counts_what_finds_no_node() -> None:
    before = cluster({zone: [1.0] for zone in "abc"})
    after = before.with_state(before.nodes[0].id, State.DOWN)
    found = preview([(CHUNKS[0], SIZE)], parse_scheme("replicate:3"), before, after)
    assert (found.pieces, found.missing, found.total.pieces) == (2, 1, 0)
    assert found.busiest() == 0


def test_the_same_map_gives_the_same_places_everywhere() -> None:
    """In another process, with another hash seed, and in every release to come."""
    found = cluster(UNEQUAL_ZONES)
    here = [[node.id[-1] for node in Placement(found, 3).targets(chunk)] for chunk in CHUNKS[:50]]
    script = (
        "import sys; from nodeserver.placement import map, rendezvous\n"
        "place = rendezvous.Placement(map.unpack(bytes.fromhex(sys.argv[1])), 3)\n"
        "print([[node.id[-1] for node in place.targets(bytes.fromhex(chunk))] for chunk in sys.argv[2:]])"
    )
    arguments = [sys.executable, "-c", script, found.pack().hex(), *(chunk.hex() for chunk in CHUNKS[:50])]
    for seed in ("1", "2"):
        there = subprocess.run(arguments, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == str(here)
    assert here[:3] == PINNED
    assert (mixed(0), mixed(1)) == (0, 0x5692161D100B05E5)
    assert node_key(b"n" * 16) == 0x986528F78905EEB7
    assert chunk_key(CHUNKS[0]) == 0xDF3F619804A92FDB


PINNED = [
    [1, 14, 15, 4, 9, 11, 16, 5, 3, 8, 10, 6, 2, 12, 7, 13],
    [10, 8, 2, 6, 16, 3, 12, 7, 15, 9, 4, 13, 1, 5, 11, 14],
    [15, 10, 7, 8, 1, 11, 16, 6, 2, 9, 13, 4, 3, 12, 5, 14],
]
