"""Cluster maps and redundancy schemes: values that say what they are, or why they are none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserver.placement.map import BadMap, ClusterMap, Node, State, make_map, newer, unpack
from nodeserver.placement.scheme import BadScheme, Erasure, Replicate, Scheme, parse_scheme

A, B, C = (bytes([letter]) * 16 for letter in b"abc")

nodes = st.builds(
    Node,
    id=st.binary(min_size=16, max_size=16),
    url=st.text(max_size=20),
    zone=st.text(max_size=5),
    region=st.text(max_size=5),
    weight=st.floats(0.001, 1000),
    state=st.sampled_from(State),
    capacity=st.integers(0, 1 << 60),
)
maps = st.builds(make_map, st.lists(nodes, unique_by=lambda node: node.id, max_size=8), st.integers(0, 1 << 40))
schemes = st.one_of(
    st.integers(1, 16).flatmap(lambda copies: st.builds(Replicate, st.just(copies), st.integers(1, copies))),
    st.builds(Erasure, st.integers(2, 32), st.integers(1, 32)),
)


@given(maps)
def test_a_map_survives_packing(cluster: ClusterMap) -> None:
    assert unpack(cluster.pack()) == cluster


def test_every_change_is_a_new_epoch_and_leaves_the_old_map_alone() -> None:
    first = make_map([Node(B, "http://b"), Node(A, "http://a")])
    assert [node.id for node in first.nodes] == [A, B]
    joined = first.with_nodes(Node(C, "http://c", zone="z"))
    drained = joined.with_state(A, State.DRAINING)
    heavier = drained.with_weight(B, 2.5)
    assert [one.epoch for one in (first, joined, drained, heavier)] == [1, 2, 3, 4]
    assert (heavier.node(A).state, heavier.node(B).weight, heavier.node(C).zone) == (State.DRAINING, 2.5, "z")
    assert len(first.nodes) == 2
    assert newer(first, heavier) is newer(heavier, first) is heavier
    assert newer(first, make_map([], 1)) is first


def test_who_was_removed_stays_so_until_he_joins_anew() -> None:
    cluster = make_map([Node(A, "http://a"), Node(B, "http://b")]).with_state(A, State.REMOVED)
    with pytest.raises(BadMap, match="was removed"):
        cluster.with_state(A, State.UP)
    with pytest.raises(KeyError):
        cluster.with_weight(C, 1)
    assert cluster.with_nodes(Node(A, "http://a")).node(A).state is State.UP


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (Node(b"short", ""), "has 5 bytes, not 16"),
        (Node(A, "", weight=0), "weight 0; it must be above 0"),
        (Node(A, "", weight=-1), "weight -1; it must be above 0"),
        (Node(A, "", weight=float("nan")), "weight nan"),
        (Node(A, "", weight=float("inf")), "weight inf"),
        (Node(A, "", capacity=-1), "capacity of -1 bytes"),
    ],
)
def test_an_impossible_node_is_refused(node: Node, why: str) -> None:
    with pytest.raises(BadMap, match=why):
        make_map([node])
    with pytest.raises(BadMap, match=why):
        unpack(ClusterMap(1, (node,)).pack())


def test_a_node_twice_is_refused() -> None:
    with pytest.raises(BadMap, match="in the map twice"):
        make_map([Node(A, "http://a"), Node(A, "http://b")])


@given(st.binary(max_size=40))
def test_garbage_is_no_map(data: bytes) -> None:
    try:
        cluster = unpack(data)
    except BadMap:
        return
    assert unpack(cluster.pack()) == cluster


def test_a_newer_version_is_refused_whatever_it_holds() -> None:
    with pytest.raises(BadMap, match="version 2 of the cluster map is not known"):
        unpack(msgspec.msgpack.encode({"version": 2, "nodes": "something else"}))


def test_a_field_of_a_later_release_does_no_harm() -> None:
    packed = msgspec.msgpack.encode({"epoch": 7, "nodes": [{"id": A, "url": "u", "rack": 9}], "hint": 1})
    assert unpack(packed) == make_map([Node(A, "u")], 7)


@given(schemes)
def test_a_scheme_is_parsed_as_it_is_shown(scheme: Scheme) -> None:
    assert parse_scheme(str(scheme)) == scheme
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(scheme), type=Scheme) == scheme
    assert 1 <= scheme.needed <= scheme.quorum <= scheme.pieces or isinstance(scheme, Replicate)
    assert scheme.quorum <= scheme.pieces


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("replicate:1", Replicate(1, 1)),
        ("replicate:2", Replicate(2, 2)),
        ("replicate:3", Replicate(3, 2)),
        ("replicate:5", Replicate(5, 3)),
        ("replicate:3:1", Replicate(3, 1)),
        ("erasure:4+2", Erasure(4, 2)),
    ],
)
def test_what_is_left_out_has_a_default(text: str, scheme: Scheme) -> None:
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not replicate:N, replicate:N:W or erasure:k"),
        ("replicate", "is not replicate:N"),
        ("replicate:3:", "is not replicate:N"),
        ("replicate:-1", "is not replicate:N"),
        ("replicate:٣", "is not replicate:N"),
        ("erasure:4", "is not replicate:N"),
        ("erasure:4+2 ", "is not replicate:N"),
        ("replicate:0", "must be 1 to 16 copies, not 0"),
        ("replicate:17", "must be 1 to 16 copies, not 17"),
        ("replicate:3:4", "1 to 3 copies can acknowledge a write, not 4"),
        ("replicate:3:0", "1 to 3 copies can acknowledge a write, not 0"),
        ("erasure:1+2", "at least 2 data fragments"),
        ("erasure:4+0", "at least 1 parity fragment"),
        ("erasure:60+5", "at most 64 fragments, not 65"),
    ],
)
def test_what_is_no_scheme_says_why(text: str, why: str) -> None:
    with pytest.raises(BadScheme, match=why):
        parse_scheme(text)


def test_sizes_of_pieces() -> None:
    assert Replicate(3, 2).piece_size(1001) == 1001
    assert [Erasure(4, 2).piece_size(size) for size in (0, 1, 4, 5, 1001)] == [0, 1, 1, 2, 251]
    assert (Erasure(4, 2).pieces, Erasure(4, 2).needed, Erasure(4, 2).quorum) == (6, 4, 5)
