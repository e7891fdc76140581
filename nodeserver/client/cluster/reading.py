"""Getting chunks: the nearest good node first, another when that one is slow or its piece is bad, fragments at last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from nodeserver.client.cluster.roster import AVOID_SLOW, Roster
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import ClientError
from nodeserver.content.codec import CorruptChunk
from nodeserver.content.erasure import CorruptFragment, TooFewFragments, join, verify
from nodeserver.placement.map import Node
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import PieceId, fragment_of
from nodeserver.protocol.wire import ChunkId

T = TypeVar("T")

Opened = Callable[[ChunkId, Buffer], T]
"""Proves a stored form and gives what the caller wants of it. Runs on a thread; raises ``CorruptChunk``."""


@dataclass(eq=False)
class Race(Generic[T]):
    """Pieces that any of several nodes may give; the first good one of each counts."""

    roster: Roster
    bucket: bytes
    opened: Callable[[PieceId, Buffer], T]
    found: dict[PieceId, T] = field(default_factory=dict)
    bad: set[ChunkId] = field(default_factory=set)
    """Pieces that a node gave damaged, or lacked."""
    error: ClientError | None = None
    """The last that a node failed with."""

    def __post_init__(self) -> None:
        self._changed = anyio.Event()
        self._running: dict[int, tuple[Node, list[PieceId]]] = {}
        self._started = 0

    async def run(self, sources: dict[PieceId, list[Node]], enough: int | None = None) -> None:
        """Ask the nodes of each piece in order, the next when one fails or takes longer than most answers do.

        With ``enough``, that many of the pieces are; the others are asked for as the first fail or are slow.
        """
        enough = len(sources) if enough is None else enough
        orders = {piece: iter(nodes) for piece, nodes in sources.items()}
        active, reserve = list(sources)[:enough], list(sources)[enough:]
        async with anyio.create_task_group() as tasks:
            self._ask(tasks, orders, active)
            while len(self.found) < enough and (self._running or reserve):
                self._changed = anyio.Event()
                with anyio.move_on_after(self.roster.hedge()) as wait:
                    await self._changed.wait()
                waiting = {piece for _, pieces in self._running.values() for piece in pieces}
                left = [
                    piece
                    for piece in active
                    if piece not in self.found and (wait.cancelled_caught or piece not in waiting)
                ]
                for _ in range(len(left) - self._ask(tasks, orders, left)):
                    if reserve:
                        active.append(reserve.pop(0))
                        self._ask(tasks, orders, active[-1:])
            for node, pieces in self._running.values():
                if enough < len(sources) or all(piece in self.found for piece in pieces):
                    self.roster.avoid(node, AVOID_SLOW)
            tasks.cancel_scope.cancel()

    def _ask(self, tasks: anyio.abc.TaskGroup, orders: dict[PieceId, Iterator[Node]], pieces: Iterable[PieceId]) -> int:
        """Ask the next node of each piece; how many pieces had one."""
        groups: dict[bytes, tuple[Node, list[PieceId]]] = {}
        for piece in pieces:
            node = next(orders[piece], None)
            if node is not None:
                groups.setdefault(node.id, (node, []))[1].append(piece)
        for node, some in groups.values():
            self._started += 1
            self._running[self._started] = node, some
            tasks.start_soon(self._attempt, self._started, node, some)
        return sum(len(some) for _, some in groups.values())

    async def _attempt(self, number: int, node: Node, pieces: list[PieceId]) -> None:
        began = anyio.current_time()
        peer = self.roster.peer(node)
        try:
            if len(pieces) == 1:
                data = await peer.get(self.bucket, pieces[0])
                answer = [] if data is None else [(pieces[0], data)]
            else:
                answer = await peer.read(self.bucket, pieces)
        except ClientError as error:
            self.roster.failed(node, error)
            self.error = error
        else:
            self.roster.answered(node, anyio.current_time() - began)
            good, bad = await anyio.to_thread.run_sync(partial(_open, self.opened, answer))
            self.found.update((piece, one) for piece, one in good.items() if piece not in self.found)
            self.bad.update(bad, set(pieces) - good.keys())
        finally:
            del self._running[number]
            self._changed.set()


def _open(
    opened: Callable[[PieceId, Buffer], T], answer: Iterable[tuple[PieceId, Buffer]]
) -> tuple[dict[PieceId, T], list[PieceId]]:
    good: dict[PieceId, T] = {}
    bad = []
    for piece, data in answer:
        try:
            good[piece] = opened(piece, data)
        except (CorruptChunk, CorruptFragment):
            bad.append(piece)
    return good, bad


async def joined(
    roster: Roster, bucket: bytes, chunk: ChunkId, held: Sequence[tuple[Node, Held]], opened: Opened[T]
) -> tuple[T | None, bool]:
    """A chunk from the fragments there are, and whether one of them was bad or could not be had."""
    bad = False
    for sources in _codes(held):
        fragments = Race(roster, bucket, _checked)
        await fragments.run({piece: roster.nearest(nodes) for piece, nodes in sources.items()}, sources.needed)
        bad = bad or bool(fragments.bad)
        try:
            whole = await anyio.to_thread.run_sync(join, list(fragments.found.values()))
            return await anyio.to_thread.run_sync(opened, chunk, whole), bad
        except (TooFewFragments, CorruptFragment, CorruptChunk):
            bad = True
    return None, bad


class _Sources(dict[PieceId, list[Node]]):
    """The nodes of each fragment of one code, data before parity."""

    needed = 0


def _codes(held: Sequence[tuple[Node, Held]]) -> list[_Sources]:
    """The codes of which there are enough fragments."""
    found: dict[tuple[int, int], _Sources] = {}
    for node, piece in sorted(held, key=lambda one: one[1].piece):
        fragment = fragment_of(piece.piece)
        if fragment is not None:
            sources = found.setdefault(fragment[:2], _Sources())
            sources.needed = fragment.data
            sources.setdefault(piece.piece, []).append(node)
    return [sources for sources in found.values() if len(sources) >= sources.needed]


def _checked(_piece: PieceId, data: Buffer) -> Buffer:
    verify(data)
    return data
