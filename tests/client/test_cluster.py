"""Chunks in a cluster whose nodes fail in every way they can."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nodeserver.client.cluster import Cluster, Node, Place
from nodeserver.client.cluster.cluster import PATIENCE
from nodeserver.client.errors import ClientError, QuorumLost, Refused
from nodeserver.content.codec import chunk_id, encode
from nodeserver.placement.map import State, make_map
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import fragment_of
from tests.client.backends import both
from tests.client.faultypeer import FaultyPeer, Mode

KEY = bytes(32)
BUCKET = bytes(16)
LARGE = 600_000


class Site:
    """Nodes and a client of them."""

    def __init__(self, count: int) -> None:
        self.ids = [bytes([number]) * 16 for number in range(count)]
        self.peers = {id_: FaultyPeer() for id_ in self.ids}
        nodes = [Node(id_, f"http://node{id_[0]}", zone=f"z{id_[0]}") for id_ in self.ids]
        self.reported: list[bytes] = []
        self.cluster = Cluster(
            lambda node: self.peers[node.id], make_map(nodes), repair=lambda _, chunks: self.reported.extend(chunks)
        )

    def set(self, mode: Mode, count: int) -> None:
        """Let the first ``count`` nodes be in a mode, and the others be good."""
        for number, peer in enumerate(self.peers.values()):
            peer.mode = mode if number < count else "good"

    def holders(self, chunk: bytes) -> int:
        return sum(any(piece[: len(chunk)] == chunk for _, piece in peer.pieces) for peer in self.peers.values())

    async def store(self, place: Place, sizes: tuple[int, ...] = (100, LARGE)) -> dict[bytes, bytes]:
        plain = {chunk_id(KEY, content): content for content in (os.urandom(size) for size in sizes)}
        await self.cluster.put(place, [(chunk, encode(content)) for chunk, content in plain.items()], deadline=5)
        return plain

    async def check(self, place: Place, plain: dict[bytes, bytes]) -> None:
        assert dict(await self.cluster.open(place, KEY, list(plain), deadline=10)) == plain


@asynccontextmanager
async def site(count: int) -> AsyncIterator[Site]:
    made = Site(count)
    async with made.cluster:
        yield made


@both
async def test_copies_go_to_as_many_nodes_as_the_setting_says() -> None:
    async with site(5) as here:
        for place, copies in ((Place(BUCKET), 3), (Place(bytes([1]) * 16, "replicate:2"), 2)):
            plain = await here.store(place)
            await here.check(place, plain)
            assert await here.cluster.missing(place, list(plain)) == []
            for chunk in plain:
                assert here.holders(chunk) == copies


@pytest.mark.parametrize("mode", ["away", "full", "silent"])
@both
async def test_a_write_goes_to_others_when_nodes_fail(mode: Mode) -> None:
    async with site(5) as here:
        here.set(mode, 2)
        place = Place(BUCKET, "replicate:3:2")
        for _ in range(4):
            plain = await here.store(place)
            assert all(here.holders(chunk) >= 2 for chunk in plain)
            await here.check(place, plain)


@pytest.mark.parametrize("mode", ["away", "silent"])
@both
async def test_too_few_nodes_are_an_error(mode: Mode) -> None:
    async with site(3) as here:
        here.set(mode, 2)
        with pytest.raises(ClientError) as caught:
            await here.cluster.put(Place(BUCKET), [(chunk_id(KEY, b"x"), encode(b"x"))], deadline=0.5)
        assert caught.value.transient
        assert isinstance(caught.value, QuorumLost) == (mode == "away")


@both
async def test_no_room_anywhere_is_told_as_such() -> None:
    async with site(3) as here:
        here.set("full", 2)
        with pytest.raises(Refused) as caught:
            await here.store(Place(BUCKET))
        assert caught.value.code is Code.FULL


@pytest.mark.parametrize("mode", ["away", "silent", "lying"])
@pytest.mark.parametrize("setting", ["replicate:3:2", "erasure:3+2"])
@both
async def test_reads_survive_the_loss_of_two_nodes(setting: str, mode: Mode) -> None:
    async with site(5) as here:
        place = Place(BUCKET, setting)
        plain = await here.store(place)
        for _ in here.ids:
            here.set(mode, 2)
            await here.check(place, plain)
            here.peers = dict([*list(here.peers.items())[1:], next(iter(here.peers.items()))])
        if mode == "lying":
            assert here.reported


@pytest.mark.parametrize("setting", ["replicate:3:2", "erasure:3+2"])
@both
async def test_who_reads_does_not_wait_for_nodes_that_are_silent(setting: str) -> None:
    async with site(5) as here:
        place = Place(BUCKET, setting)
        plain = await here.store(place)
        here.set("silent", 2)
        found = await here.cluster.open(place, KEY, list(plain), deadline=PATIENCE - 0.5)
        assert dict(found) == plain


@both
async def test_large_chunks_are_coded_and_small_ones_copied() -> None:
    async with site(6) as here:
        place = Place(BUCKET, "erasure:4+2")
        plain = await here.store(place)
        small, large = plain
        pieces = [piece for peer in here.peers.values() for _, piece in peer.pieces]
        assert pieces.count(small) == 3
        fragments = {fragment_of(piece) for piece in pieces if piece[:32] == large}
        assert len(fragments) == 6
        assert None not in fragments
        assert await here.cluster.missing(place, list(plain)) == []


@both
async def test_what_too_few_nodes_have_counts_as_missing() -> None:
    async with site(3) as here:
        place = Place(BUCKET, "replicate:3:2")
        plain = await here.store(place)
        for peer in list(here.peers.values())[:2]:
            peer.pieces.clear()
        assert set(await here.cluster.missing(place, list(plain))) == set(plain)
        await here.check(place, plain)


@both
async def test_any_form_that_is_found_is_good() -> None:
    async with site(5) as here:
        coded, copied = Place(BUCKET, "erasure:3+2"), Place(BUCKET, "replicate:2")
        one, other = await here.store(coded), await here.store(copied)
        await here.check(copied, one)
        await here.check(coded, other)


@both
async def test_a_chunk_that_nobody_has_is_told_from_one_that_cannot_be_reached() -> None:
    async with site(3) as here:
        place = Place(BUCKET)
        with pytest.raises(Refused) as caught:
            await here.cluster.read(place, [os.urandom(32)], deadline=5)
        assert caught.value.code is Code.NO_CHUNK
        plain = await here.store(place)
        here.set("away", 3)
        with pytest.raises(QuorumLost):
            await here.cluster.read(place, list(plain), deadline=5)
        here.set("lying", 3)
        with pytest.raises(Refused) as caught:
            await here.cluster.read(place, list(plain), deadline=5)
        assert caught.value.code is Code.CORRUPT


@both
async def test_a_newer_map_counts_and_an_older_one_does_not() -> None:
    async with site(4) as here:
        place, old = Place(BUCKET, "replicate:3:2"), here.cluster.map
        here.cluster.follow(old.with_state(here.ids[0], State.DRAINING))
        here.cluster.follow(old)
        for _ in range(4):
            await here.store(place)
        assert not here.peers[here.ids[0]].pieces
