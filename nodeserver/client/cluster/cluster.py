"""Chunks in a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from nodeserver.client.cluster.reading import Opened, Race, joined
from nodeserver.client.cluster.roster import AVOID_SILENT, Roster
from nodeserver.client.cluster.writing import Writing, prepared
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import ClientError, DeadlineExceeded, QuorumLost, Unreachable, refused
from nodeserver.client.peer import Peer
from nodeserver.content.codec import open_chunk, verify
from nodeserver.content.erasure import verify as verify_fragment
from nodeserver.placement.map import ClusterMap, Node, NodeId, State
from nodeserver.placement.scheme import Erasure, Replicate, Scheme, chunk_scheme, copies_instead
from nodeserver.protocol.cluster import CHUNKS, MAX_FIND, Held
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import PieceId, fragment_of, readable
from nodeserver.protocol.wire import ChunkId

DEADLINE = 60.0
"""Seconds for a call, unless it says otherwise."""
PATIENCE, BRIEFLY = 3.0, 0.5
"""Seconds that a node gets to say what it has; one that did badly just now."""
LEEWAY = 0.03
"""Seconds that the others get to say what they have when there is enough: what they have can stand in."""
STRAGGLING = 64 << 20
"""Bytes on their way to slow nodes, behind writes that are acknowledged, at which the next write waits."""
MANY = 8
"""Who asks for so many chunks at once wants small ones, which are there in copies also where large ones are coded."""
ASSEMBLED = 4
"""Chunks put together from fragments at the same time."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class Place(NamedTuple):
    """A bucket, as far as its chunks are concerned."""

    bucket: bytes
    redundancy: str = ""
    """The bucket's setting; empty: as many copies as there are nodes, three at most."""


Holdings = dict[ChunkId, dict[NodeId, list[Held]]]
"""The pieces of chunks, by node."""


class Located(NamedTuple):
    """Which nodes have pieces of some chunks."""

    held: Holdings
    silent: set[NodeId]
    """Nodes that did not answer."""


class Cluster:
    """Stores chunks on nodes and reads them; an asynchronous context manager.

    Methods raise :class:`~nodeserver.client.errors.ClientError` and nothing else. ``peer_of`` makes the way to a node;
    ``repair`` is told of chunks, by bucket, of which a piece was bad or missing. Belongs to one event loop.
    """

    def __init__(
        self,
        peer_of: Callable[[Node], Peer],
        cluster_map: ClusterMap,
        *,
        repair: Callable[[bytes, list[ChunkId]], None] | None = None,
    ) -> None:
        self._roster = Roster(peer_of, cluster_map)
        self._repair = repair or _ignore
        self._stack = AsyncExitStack()
        self._straggling = 0
        self._fewer = anyio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, traceback)

    @property
    def map(self) -> ClusterMap:
        """The cluster map in use."""
        return self._roster.map

    def follow(self, cluster_map: ClusterMap) -> None:
        """Use a newer map; an older one is ignored."""
        self._roster.follow(cluster_map)

    @property
    def keepers(self) -> list[Node]:
        """The nodes that keep pieces and are not known to be down."""
        return self._roster.keepers

    def peer(self, node: NodeId) -> Peer:
        """The way to a node. Raises ``KeyError``, and Unreachable when it is known to be down or was removed."""
        found = self.map.node(node)
        if found.state in (State.DOWN, State.REMOVED):
            raise Unreachable(f"node {node.hex()[-8:]} is {found.state.value}")
        return self._roster.peer(found)

    def scheme(self, redundancy: str) -> Scheme:
        """The scheme of a bucket with this setting. Raises ``BadScheme``."""
        return self._roster.scheme(redundancy)

    # Writing

    async def put(
        self, place: Place, chunks: Sequence[tuple[ChunkId, Buffer]], *, deadline: float | None = None
    ) -> None:
        """Store chunks, in their stored form; returns when a write quorum of nodes has each on disk.

        Raises QuorumLost when too few can be reached, ``Refused`` with ``Code.FULL`` when too few have room.
        """
        seconds = DEADLINE if deadline is None else deadline
        scheme = self._roster.scheme(place.redundancy)
        make = partial(prepared, self._roster, scheme, chunks)
        jobs = await anyio.to_thread.run_sync(make) if isinstance(scheme, Erasure) else make()
        writing = Writing(self._roster, place.bucket, jobs, self._repair)
        with anyio.move_on_after(seconds):
            while self._straggling > STRAGGLING:
                await self._fewer.wait()
            self._tasks.start_soon(self._write, writing)
            await writing.settled.wait()
        if writing.error:
            raise writing.error
        if not writing.settled.is_set():
            raise writing.give_up(seconds)

    async def _write(self, writing: Writing) -> None:
        self._straggling += writing.size
        try:
            await writing.run()
        except Exception:
            # Whoever waits is told that it failed; what else this task group carries goes on.
            log.exception("a write ended unexpectedly")
        finally:
            self._straggling -= writing.size
            event, self._fewer = self._fewer, anyio.Event()
            event.set()

    # Looking

    async def missing(self, place: Place, ids: Sequence[ChunkId], *, deadline: float | None = None) -> list[ChunkId]:
        """Those of ``ids`` that fewer nodes are known to have than acknowledge a write."""
        scheme = self._roster.scheme(place.redundancy)
        schemes: list[Scheme] = [scheme, copies_instead(scheme)] if isinstance(scheme, Erasure) else [scheme]
        placements = [self._roster.placement(one.pieces) for one in schemes]
        asked: dict[NodeId, list[ChunkId]] = {}
        for chunk in ids:
            for home in {node.id for placement in placements for node in placement.home(chunk)}:
                asked.setdefault(home, []).append(chunk)

        def missing(held: Holdings) -> list[ChunkId]:
            return [chunk for chunk in ids if not _acknowledged(scheme, _pieces(held.get(chunk, {})))]

        return missing((await self._find(place.bucket, asked, deadline, lambda held: not missing(held))).held)

    async def locate(self, bucket: bytes, chunks: Sequence[ChunkId], *, deadline: float | None = None) -> Located:
        """Who has what of some chunks; every node is asked that may have something."""
        return await self._find(bucket, self._everywhere(chunks), deadline)

    async def locate_readable(self, bucket: bytes, chunks: Sequence[ChunkId]) -> Located:
        """Who has what of some chunks; without waiting for all when every chunk can be had from those that answered."""
        return await self._find(bucket, self._everywhere(chunks), None, partial(_all_readable, chunks))

    def _everywhere(self, chunks: Sequence[ChunkId]) -> dict[NodeId, Sequence[ChunkId]]:
        return {node.id: chunks for node in self.map.serving(CHUNKS)}

    async def _find(
        self,
        bucket: bytes,
        asked: Mapping[NodeId, Sequence[ChunkId]],
        deadline: float | None,
        enough: Callable[[Holdings], bool] = lambda _: False,
    ) -> Located:
        """What nodes have; without those that take ``LEEWAY`` longer than it takes until there is ``enough``."""
        found = Located({}, set())
        seconds = PATIENCE if deadline is None else min(deadline, PATIENCE)

        async def ask(node: NodeId, chunks: Sequence[ChunkId]) -> None:
            target = self.map.node(node)
            with anyio.move_on_after(BRIEFLY if self._roster.avoided(target) else seconds) as scope:
                try:
                    for start in range(0, len(chunks), MAX_FIND):
                        some = chunks[start : start + MAX_FIND]
                        for chunk, pieces in (await self.peer(node).find(bucket, some, deadline=seconds)).items():
                            found.held.setdefault(chunk, {})[node] = pieces
                except ClientError as error:
                    self._roster.failed(target, error)
                    found.silent.add(node)
            if scope.cancelled_caught:
                self._roster.avoid(target, AVOID_SILENT)
                found.silent.add(node)
            elif enough(found.held):
                until = anyio.current_time() + LEEWAY
                tasks.cancel_scope.deadline = min(tasks.cancel_scope.deadline, until)

        async with anyio.create_task_group() as tasks:
            for node, chunks in asked.items():
                tasks.start_soon(ask, node, chunks)
        return found

    # Reading

    async def read(
        self, place: Place, ids: Sequence[ChunkId], *, deadline: float | None = None
    ) -> list[tuple[ChunkId, Buffer]]:
        """Chunks in their stored form, verified by their checksums. Raises as :meth:`open`."""
        return await self._read(place, ids, _verified, deadline)

    async def open(
        self, place: Place, chunk_key: bytes, ids: Sequence[ChunkId], *, deadline: float | None = None
    ) -> list[tuple[ChunkId, Buffer]]:
        """The plaintexts of chunks, proven by their ids.

        Raises ``Refused`` with ``Code.NO_CHUNK`` or ``Code.CORRUPT`` when no good form is to be had, QuorumLost when
        nodes that may have one do not answer.
        """
        return await self._read(place, ids, partial(open_chunk, chunk_key), deadline)

    async def _read(
        self, place: Place, ids: Sequence[ChunkId], opened: Opened[T], deadline: float | None
    ) -> list[tuple[ChunkId, T]]:
        seconds = DEADLINE if deadline is None else deadline
        with anyio.move_on_after(seconds):
            found = await self._from_homes(place, ids, opened)
            if rest := [chunk for chunk in ids if chunk not in found]:
                found |= await self._from_anywhere(place.bucket, rest, opened)
            return [(chunk, found[chunk]) for chunk in ids]
        raise DeadlineExceeded(f"the nodes did not give {len(ids)} chunks within {seconds:g} s")

    async def _from_homes(self, place: Place, ids: Sequence[ChunkId], opened: Opened[T]) -> dict[ChunkId, T]:
        """Whole copies from where they should be; of erasure-coded chunks, those that may be small ones."""
        scheme = self._roster.scheme(place.redundancy)
        coded = isinstance(scheme, Erasure)
        if isinstance(scheme, Erasure):
            if len(ids) < MANY:
                return {}
            scheme = copies_instead(scheme)
        placement = self._roster.placement(scheme.pieces)
        race = Race(self._roster, place.bucket, opened)
        await race.run({chunk: self._roster.nearest(placement.home(chunk)) for chunk in ids})
        if race.bad and not coded:
            self._repair(place.bucket, list(race.bad))
        return race.found

    async def gather(
        self, bucket: bytes, held: Mapping[ChunkId, Mapping[NodeId, Sequence[Held]]]
    ) -> dict[ChunkId, Buffer]:
        """The stored forms of chunks, verified, from the pieces that nodes are known to have.

        Those that cannot be had are not among them.
        """
        found, _ = await self._assemble(bucket, held, _verified)
        return found

    async def pieces(self, bucket: bytes, sources: Mapping[PieceId, Collection[NodeId]]) -> dict[PieceId, Buffer]:
        """Pieces as they are stored, verified, from nodes that are known to have them.

        Those that cannot be had are not among them.
        """
        race = Race(self._roster, bucket, _verified_piece)
        nodes = {piece: self._roster.nearest(map(self.map.node, holders)) for piece, holders in sources.items()}
        await race.run(nodes)
        return race.found

    async def _from_anywhere(self, bucket: bytes, ids: Sequence[ChunkId], opened: Opened[T]) -> dict[ChunkId, T]:
        """From the first nodes that say that they have enough; if that does not do, from all."""
        found, bad = await self._assemble(bucket, (await self.locate_readable(bucket, ids)).held, opened)
        if rest := [chunk for chunk in ids if chunk not in found]:
            located = await self.locate(bucket, rest)
            more, worse = await self._assemble(bucket, located.held, opened)
            found, bad = found | more, bad | worse
        if bad:
            self._repair(bucket, list(bad))
        if lost := [chunk for chunk in rest if chunk not in found]:
            raise _unreadable(lost, located)
        return found

    async def _assemble(
        self, bucket: bytes, held: Mapping[ChunkId, Mapping[NodeId, Sequence[Held]]], opened: Opened[T]
    ) -> tuple[dict[ChunkId, T], set[ChunkId]]:
        """Chunks from whatever pieces there are, copies first; and those with a piece that was bad or not to be had."""
        pieces = {
            chunk: [(self.map.node(node), piece) for node, some in holders.items() for piece in some]
            for chunk, holders in held.items()
        }
        copies = {
            chunk: self._roster.nearest(node for node, piece in some if fragment_of(piece.piece) is None)
            for chunk, some in pieces.items()
        }
        race = Race(self._roster, bucket, opened)
        await race.run({chunk: nodes for chunk, nodes in copies.items() if nodes})
        found, bad = race.found, race.bad
        slots = anyio.CapacityLimiter(ASSEMBLED)

        async def join(chunk: ChunkId) -> None:
            async with slots:
                result, worse = await joined(self._roster, bucket, chunk, pieces[chunk], opened)
            if worse:
                bad.add(chunk)
            if result is not None:
                found[chunk] = result

        async with anyio.create_task_group() as tasks:
            for chunk in pieces.keys() - found.keys():
                tasks.start_soon(join, chunk)
        return found, bad


def _pieces(holders: dict[NodeId, list[Held]]) -> list[Held]:
    return [piece for pieces in holders.values() for piece in pieces]


def _acknowledged(scheme: Scheme, pieces: Collection[Held]) -> bool:
    """Whether a write that left these pieces would have been acknowledged."""
    wholes = [piece for piece in pieces if fragment_of(piece.piece) is None]
    if wholes:
        wanted = chunk_scheme(scheme, wholes[0].size)
        if len(wholes) >= (wanted.quorum if isinstance(wanted, Replicate) else wanted.parity + 1):
            return True
    codes: dict[tuple[int, int], set[int]] = {}
    for piece in pieces:
        if fragment := fragment_of(piece.piece):
            codes.setdefault(fragment[:2], set()).add(fragment.number)
    return any(len(numbers) > data for (data, _), numbers in codes.items())


def _all_readable(chunks: Sequence[ChunkId], held: Holdings) -> bool:
    return all(readable(piece.piece for piece in _pieces(held.get(chunk, {}))) for chunk in chunks)


def _unreadable(lost: Sequence[ChunkId], located: Located) -> ClientError:
    if located.silent:
        names = ", ".join(sorted(node.hex()[-8:] for node in located.silent))
        return QuorumLost(f"chunk {lost[0].hex()}: no good piece on the nodes that answer; {names} did not")
    damaged = [chunk for chunk in lost if chunk in located.held]
    if damaged:
        return refused(Code.CORRUPT, f"{len(damaged)} chunks have too few good pieces", damaged)
    return refused(Code.NO_CHUNK, f"{len(lost)} chunks are on no node", lost)


def _verified(_chunk: ChunkId, stored: Buffer) -> Buffer:
    verify(stored)
    return stored


def _verified_piece(piece: PieceId, stored: Buffer) -> Buffer:
    if fragment_of(piece):
        verify_fragment(stored)
    else:
        verify(stored)
    return stored


def _ignore(bucket: bytes, chunks: Iterable[ChunkId]) -> None:
    """Nobody wants to know of chunks to be repaired."""
