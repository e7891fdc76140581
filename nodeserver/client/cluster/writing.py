"""Storing chunks: all pieces at once, done at the quorum; who fails is stood in for, who is slow finishes later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.abc

from nodeserver.client.cluster.roster import AVOID_SILENT, Roster
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import ClientError, DeadlineExceeded, QuorumLost, Refused
from nodeserver.content.erasure import split
from nodeserver.placement.map import Node, NodeId
from nodeserver.placement.scheme import Erasure, Scheme, chunk_scheme, copies_instead
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import Fragment, PieceId, fragment_id, fragment_of
from nodeserver.protocol.wire import ChunkId

LINGER = 10.0
"""Seconds that nodes get to finish after the quorum was reached; what they do not take is repaired later."""
SLOW = 3.0
"""Seconds without a quorum after which others are asked to stand in."""


@dataclass(eq=False)
class _Job:
    """A chunk on its way to its nodes."""

    chunk: ChunkId
    pieces: list[tuple[PieceId, Buffer]]
    quorum: int
    expected: int
    """Pieces that there are nodes for."""
    targets: Iterator[Node]
    stored: set[bytes] = field(default_factory=set)
    """Nodes that have a copy, or fragments that some node has."""
    pending: int = 0


_Group = list[tuple[_Job, tuple[PieceId, Buffer]]]


@dataclass(eq=False)
class Writing:
    """One group of chunks; ``run`` goes on after ``settled`` until all pieces are stored or given up."""

    roster: Roster
    bucket: bytes
    jobs: list[_Job]
    incomplete: Callable[[bytes, list[ChunkId]], None]
    """Called with the chunks that reached their quorum and not all their nodes."""
    settled: anyio.Event = field(default_factory=anyio.Event)
    """At the quorum of each chunk, or when one cannot reach it any more: then there is an ``error``."""
    error: ClientError | None = None
    size: int = 0

    def __post_init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._sending: dict[int, tuple[Node, _Group]] = {}
        self._started = 0
        self._last: ClientError | None = None
        self.size = sum(len(data) for job in self.jobs for _, data in job.pieces)

    async def run(self) -> None:
        """Bring every piece to a node."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    self._assign(tasks, [(job, piece) for job in self.jobs for piece in job.pieces])
                    tasks.start_soon(self._hurry, tasks)
        finally:
            for node, _ in self._sending.values():
                self.roster.avoid(node, AVOID_SILENT)
            if not self.settled.is_set():
                self._fail()
            short = [job.chunk for job in self.jobs if job.quorum <= len(job.stored) < job.expected]
            if short:
                self.incomplete(self.bucket, short)

    def give_up(self, seconds: float) -> ClientError:
        """End what is under way; the error that tells why it did not get there within ``seconds``."""
        self._scope.cancel()
        return self._last or DeadlineExceeded(f"too few nodes took the chunk within {seconds:g} s")

    async def _hurry(self, tasks: anyio.abc.TaskGroup) -> None:
        """When the quorum takes long, let others stand in for those that are waited for."""
        with anyio.move_on_after(SLOW):
            await self.settled.wait()
        if not self.settled.is_set():
            for node, group in list(self._sending.values()):
                self.roster.avoid(node, AVOID_SILENT)
                self._assign(tasks, [(job, piece) for job, piece in group if len(job.stored) < job.quorum])

    def _assign(self, tasks: anyio.abc.TaskGroup, items: _Group) -> None:
        """Give each piece to the next node of its chunk's."""
        groups: dict[NodeId, tuple[Node, _Group]] = {}
        for job, piece in items:
            node = next(job.targets, None)
            if node is not None:
                job.pending += 1
                groups.setdefault(node.id, (node, []))[1].append((job, piece))
            elif len(job.stored) + job.pending < job.quorum:
                self._fail(job)
                return
        for node, group in groups.values():
            tasks.start_soon(self._send, tasks, node, group)

    async def _send(self, tasks: anyio.abc.TaskGroup, node: Node, group: _Group) -> None:
        self._started += 1
        number = self._started
        self._sending[number] = node, group
        try:
            await self.roster.peer(node).put(self.bucket, [piece for _, piece in group])
        except ClientError as error:
            del self._sending[number]
            self.roster.failed(node, error)
            if not (isinstance(self._last, Refused) and self._last.code is Code.FULL):
                self._last = error  # that there is no room says more than that somebody is away
            for job, _ in group:
                job.pending -= 1
            self._assign(tasks, group)
            return
        del self._sending[number]  # not in a ``finally``: what was cancelled counts as still being sent
        self.roster.answered(node)
        for job, (piece, _) in group:
            job.pending -= 1
            job.stored.add(piece if fragment_of(piece) else node.id)
        if all(len(job.stored) >= job.quorum for job in self.jobs) and not self.settled.is_set():
            self.settled.set()
            self._scope.deadline = anyio.current_time() + LINGER

    def _fail(self, job: _Job | None = None) -> None:
        if isinstance(self._last, Refused):
            self.error = self._last
        else:
            got = f"{len(job.stored)} of {job.quorum} nodes" if job else "too few nodes"
            self.error = QuorumLost(f"{got} took the chunk: {self._last or 'there are no more'}")
        self.settled.set()
        self._scope.cancel()


def prepared(roster: Roster, scheme: Scheme, chunks: Sequence[tuple[ChunkId, Buffer]]) -> list[_Job]:
    """The jobs of chunks in a bucket with ``scheme``, with their pieces made; by copying where too few nodes are up
    for fragments. Takes processor time where there are fragments to make."""
    up = len(roster.keepers)
    made = []
    for chunk, stored in chunks:
        wanted = chunk_scheme(scheme, len(stored))
        if isinstance(wanted, Erasure) and up < wanted.quorum:
            wanted = copies_instead(wanted)
        targets = roster.willing(roster.placement(wanted.pieces).targets(chunk))
        if isinstance(wanted, Erasure):
            fragments = split(stored, wanted.data, wanted.parity)
            pieces: list[tuple[PieceId, Buffer]] = [
                (fragment_id(chunk, Fragment(wanted.data, wanted.parity, number)), fragment)
                for number, fragment in enumerate(fragments)
            ]
        else:
            pieces = [(chunk, stored)] * wanted.pieces
        made.append(_Job(chunk, pieces, wanted.quorum, min(len(pieces), len(targets)), iter(targets)))
    return made
