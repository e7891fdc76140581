"""Brings chunks to the pieces they should have: repair of what is missing, moves to where it belongs.

Two workers share this. ``repair`` takes the chunks that somebody met a bad piece of, and all of them when a node is
gone. ``rebalance`` looks at all chunks when the map or a bucket's setting has changed, and once a day: it makes
pieces where they should be, re-encodes, and deletes what is left over. Nothing is deleted before the nodes that
should have the chunk confirm that they do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from nodeserver.chunks.distributed import DistributedStore, readable, stored_size
from nodeserver.client.errors import ClientError
from nodeserver.content.erasure import split
from nodeserver.metadata import members, repairs
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.store import Metadata
from nodeserver.placement.healing import Plan, plan
from nodeserver.placement.map import ClusterMap, Node, NodeId, State
from nodeserver.placement.rendezvous import Placement
from nodeserver.placement.scheme import Scheme, bucket_scheme, chunk_scheme
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import PieceId, fragment_of
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers.references import References, ranges
from nodeserver.workers.registry import Outcome, Run

HINTS = 500
"""Chunks repaired between two looks at what waits."""
ENDANGERED = 100_000
"""Chunks remembered of one look at all of them, to be repaired in the order of their danger."""
TOGETHER = 8
"""Chunks healed at the same time."""
AGAIN = 60.0
"""Seconds until what could not be repaired is tried again."""
DAY = 86_400.0

log = logging.getLogger(__name__)

Holders = dict[NodeId, list[Held]]


@dataclass
class Survey:
    """What the last look at all chunks found."""

    time_ns: int = 0
    chunks: int = 0
    below: int = 0
    lost: int = 0
    silent: set[NodeId] = field(default_factory=set)


class Healer:
    """Of one cluster. ``grace`` is how long, in seconds, a node may be down until its pieces are made anew."""

    def __init__(self, metadata: Metadata, store: DistributedStore, grace: float) -> None:
        self._metadata = metadata
        self._store = store
        self._grace = grace
        self._met: defaultdict[bytes, set[ChunkId]] = defaultdict(set)
        self._healed: tuple[object, ...] = ()
        """The epoch and day at which nothing was left to repair."""
        self._balanced: tuple[object, ...] = ()
        """The map and settings with which nothing was left to move."""
        self._placements: dict[int, tuple[tuple[Node, ...], Placement]] = {}
        self.survey = Survey()

    def met(self, bucket: bytes, chunks: Collection[ChunkId]) -> None:
        """A reader or writer on this server met bad or missing pieces."""
        self._met[bucket].update(chunks)

    # The two workers

    async def repair(self, run: Run) -> Outcome:
        """Mend what was met, then, when nodes are gone, all that they had. Raises ``SQLAlchemyError``."""
        if self._store.alone:
            return Outcome("one node: there is nothing to repair from")
        while self._met:
            id_, chunks = self._met.popitem()
            await self._metadata.write_across(repairs.note_by_id, [(id_, chunk) for chunk in chunks], time.time_ns())
        made = failed = 0
        for bucket in await self._metadata.buckets():
            more = await self._mend_met(bucket, run)
            made, failed = made + more[0], failed + more[1]
        cluster, away, again = await self._present()
        now = (cluster.epoch, time.time() // DAY)
        if now != self._healed or self.survey.below or run.ordered:
            more = await self._mend_all(cluster, away, run)
            made, failed = made + more[0], failed + more[1]
            if not more[1] and not self.survey.silent:
                self._healed = now
        if failed or self.survey.below:
            again = min(again, AGAIN)
        return Outcome(f"made {made} pieces, {failed} chunks could not be mended", again)

    async def rebalance(self, run: Run) -> Outcome:
        """Move what is not where it should be. Raises ``SQLAlchemyError``."""
        if self._store.alone:
            return Outcome("one node: there is nowhere to move to")
        cluster, away, again = await self._present()
        buckets = await self._metadata.buckets()
        now = (time.time() // DAY, cluster.nodes, *((bucket.id, bucket.redundancy) for bucket in buckets))
        if now == self._balanced and not run.ordered:
            return Outcome("all is where it should be", again)
        made = dropped = failed = 0
        whole = True
        for bucket in buckets:
            group: list[Awaitable[tuple[int, int, int]]] = []
            for first, beyond in ranges(await self._store.count(bucket.id)):
                async for chunk, holders, silent in self._chunks(bucket, cluster, first, beyond, run):
                    whole = whole and not silent
                    if not readable(holders):
                        continue  # of no use, or what repair tells of
                    group.append(self._heal(bucket, cluster, away | silent, chunk, holders, run, drop=not silent))
                    if len(group) == TOGETHER:
                        done = await _all(group)
                        made, dropped, failed = made + done[0], dropped + done[1], failed + done[2]
            done = await _all(group)
            made, dropped, failed = made + done[0], dropped + done[1], failed + done[2]
        if whole and not failed and not away:
            self._balanced = now
            return Outcome(f"made {made} pieces, deleted {dropped} left over", again)
        return Outcome(f"made {made} pieces, deleted {dropped} left over, {failed} chunks wait", min(again, AGAIN))

    async def _mend_met(self, bucket: BucketRow, run: Run) -> tuple[int, int]:
        made = failed = 0
        tried: set[ChunkId] = set()
        while chunks := [
            chunk
            for chunk in await self._metadata.read(repairs.waiting, bucket.bucket, HINTS + len(tried))
            if chunk not in tried
        ]:
            tried.update(chunks)
            cluster, away, _ = await self._present()
            found = await self._store.locate(bucket.id, chunks)
            silent = found.silent - _gone(cluster)
            healed = []
            for chunk in chunks:
                holders = await self._good(bucket.id, chunk, found.held.get(chunk, {}), silent)
                if not readable(holders) and not silent and not await self._needed(bucket, chunk, run):
                    healed.append(chunk)  # it is garbage
                    continue
                done = await self._heal(bucket, cluster, away | silent, chunk, holders, run, drop=False)
                made += done[0]
                failed += done[2]
                if not done[2] and not silent:
                    healed.append(chunk)
            await self._metadata.write(repairs.done, bucket.bucket, healed)
        return made, failed

    async def _needed(self, bucket: BucketRow, chunk: ChunkId, run: Run) -> bool:
        async for needed in References(self._metadata, self._store, bucket).known(run):
            if chunk in needed:
                return True
        return False

    async def _lost(self, bucket: BucketRow, there: set[ChunkId], first: int, beyond: int, run: Run) -> int:
        """How many chunks versions refer to that are not ``there`` and cannot be read, of the ids that begin with a
        byte from ``first`` on and below ``beyond``."""
        lacking: set[ChunkId] = set()
        async for needed in References(self._metadata, self._store, bucket).known(run):
            lacking.update(chunk for chunk in needed if first <= chunk[0] < beyond and chunk not in there)
        # Commits that were made meanwhile are no loss.
        found = await self._store.locate(bucket.id, list(lacking))
        return sum(not readable(found.held.get(chunk, {})) for chunk in lacking)

    async def _good(self, bucket: bytes, chunk: ChunkId, holders: Holders, silent: set[NodeId]) -> Holders:
        """The pieces whose checksums their nodes find right: what is listed may be the very one that was bad."""
        good: Holders = {}
        for node, pieces in holders.items():
            try:
                whole = await self._store.cluster.peer(node).read(bucket, [held.piece for held in pieces])
            except ClientError as error:
                log.info("node %s: %s", node.hex(), error)
                silent.add(node)
                continue
            there = {piece for piece, _ in whole}
            if kept := [held for held in pieces if held.piece in there]:
                good[node] = kept
        return good

    async def _mend_all(self, cluster: ClusterMap, away: set[NodeId], run: Run) -> tuple[int, int]:
        """Look at all chunks, then mend those with too few pieces, the most endangered first."""
        survey = Survey(time.time_ns())
        endangered: list[tuple[int, BucketRow, ChunkId, Holders]] = []
        for bucket in await self._metadata.buckets():
            for first, beyond in ranges(await self._store.count(bucket.id)):
                there: set[ChunkId] = set()
                async for chunk, holders, silent in self._chunks(bucket, cluster, first, beyond, run):
                    survey.silent |= silent
                    survey.chunks += 1
                    if not readable(holders):
                        continue
                    there.add(chunk)
                    found = self._plan(bucket, cluster, away | silent, chunk, holders)
                    if found.lacking:
                        survey.below += 1
                        if len(endangered) < ENDANGERED:
                            endangered.append((found.spare, bucket, chunk, holders))
                survey.lost += await self._lost(bucket, there, first, beyond, run)
        self.survey = survey
        made = failed = 0
        run.total = run.done + len(endangered)
        endangered.sort(key=lambda one: one[0])
        for start in range(0, len(endangered), TOGETHER):
            group: list[Awaitable[tuple[int, int, int]]] = [
                self._heal(bucket, cluster, away | survey.silent, chunk, holders, run, drop=False)
                for _, bucket, chunk, holders in endangered[start : start + TOGETHER]
            ]
            survey.below -= len(group)
            done = await _all(group)
            survey.below += done[2]
            made, failed = made + done[0], failed + done[2]
        return made, failed

    # One chunk

    def _plan(
        self, bucket: BucketRow, cluster: ClusterMap, away: Collection[NodeId], chunk: ChunkId, holders: Holders
    ) -> Plan:
        scheme = chunk_scheme(self._scheme(bucket, cluster), stored_size(holders))
        home = [node.id for node in self._placement(cluster, scheme).home(chunk)]
        return plan(chunk, scheme, home, _ids(holders), away)

    async def _heal(
        self,
        bucket: BucketRow,
        cluster: ClusterMap,
        away: Collection[NodeId],
        chunk: ChunkId,
        holders: Holders,
        run: Run,
        *,
        drop: bool,
    ) -> tuple[int, int, int]:
        """Make what is missing of a chunk and, with ``drop``, delete what is left over.

        How many pieces were made and deleted, and 1 when the chunk could not be mended.
        """
        if not readable(holders):
            return 0, 0, 1
        found = self._plan(bucket, cluster, away, chunk, holders)
        dropped = 0
        try:
            if found.make:
                await self._make(bucket, chunk, holders, found.make, run)
            if drop and (found.make or found.drop):
                dropped = await self._drop(bucket, cluster, chunk)
                await run.step(1)
        except (ClientError, OSError) as error:
            log.warning("chunk %s of bucket %s: %s", chunk.hex(), bucket.name, error)
            await run.step()
            return 0, 0, 1
        return len(found.make), dropped, 0

    async def _drop(self, bucket: BucketRow, cluster: ClusterMap, chunk: ChunkId) -> int:
        """Delete what is left over of a chunk, if its home has it now; how many pieces."""
        now = await self._store.locate(bucket.id, [chunk])
        sure = self._plan(bucket, cluster, now.silent - _gone(cluster), chunk, now.held.get(chunk, {}))
        for node, piece in sure.drop:
            await self._store.cluster.peer(node).delete(bucket.id, [piece])
        return len(sure.drop)

    async def _make(
        self,
        bucket: BucketRow,
        chunk: ChunkId,
        holders: Holders,
        make: Sequence[tuple[NodeId, PieceId]],
        run: Run,
    ) -> None:
        stored = await self._store.cluster.gather(bucket.id, chunk, holders)
        pieces: dict[PieceId, bytes] = {chunk: bytes(stored)}
        if fragment := fragment_of(make[0][1]):
            fragments = await asyncio.to_thread(partial(split, stored, fragment.data, fragment.parity))
            for _, piece in make:
                if one := fragment_of(piece):
                    pieces[piece] = fragments[one.number]
        for node, piece in make:
            await self._store.cluster.peer(node).put(bucket.id, [(piece, pieces[piece])])
            await run.spend(len(pieces[piece]))
        await run.step(1)

    # What there is

    async def _chunks(
        self, bucket: BucketRow, cluster: ClusterMap, first: int, beyond: int, run: Run
    ) -> AsyncIterator[tuple[ChunkId, Holders, set[NodeId]]]:
        """The chunks of a bucket whose ids begin with a byte from ``first`` on and below ``beyond``, with who has what
        of them and who was silent, but for nodes that are gone."""
        silent: set[NodeId] = set()
        found = await self._store.survey(bucket.id, first, beyond, silent)
        await run.step()
        silent -= _gone(cluster)
        for chunk in sorted(found):
            yield chunk, found[chunk], silent

    async def _present(self) -> tuple[ClusterMap, set[NodeId], float]:
        """The map, with nodes that are down for a short time as if they were up; these nodes; and in how many seconds
        the first of them is down for long."""
        cluster, now = self._store.cluster.map, time.time_ns()
        away: set[NodeId] = set()
        again = DAY
        _, statuses = await self._metadata.read(members.statuses)
        for status in statuses:
            left = self._grace - (now - status.last_seen_ns) / 1e9
            if status.state == State.DOWN.value and left > 0:
                away.add(status.member.id)
                again = min(again, max(left, 1.0))
        nodes = [node for node in cluster.nodes if node.id in away]
        for node in nodes:
            cluster = ClusterMap(cluster.epoch, cluster.with_state(node.id, State.UP).nodes)
        return cluster, away, again

    def _scheme(self, bucket: BucketRow, cluster: ClusterMap) -> Scheme:
        return bucket_scheme(bucket.redundancy, len(cluster.sharing))

    def _placement(self, cluster: ClusterMap, scheme: Scheme) -> Placement:
        known = self._placements.get(scheme.pieces)
        if known is None or known[0] != cluster.nodes:
            known = self._placements[scheme.pieces] = cluster.nodes, Placement(cluster, scheme.pieces)
        return known[1]


async def _all(group: list[Awaitable[tuple[int, int, int]]]) -> tuple[int, int, int]:
    """The sums of what these come to, at the same time; empties the list."""
    results = await asyncio.gather(*group)
    group.clear()
    made, dropped, failed = (sum(column) for column in zip(*results, strict=True)) if results else (0, 0, 0)
    return made, dropped, failed


def _gone(cluster: ClusterMap) -> set[NodeId]:
    """The nodes that are down for so long that others have taken their place."""
    return {node.id for node in cluster.nodes if node.state is State.DOWN}


def _ids(holders: Holders) -> dict[NodeId, list[PieceId]]:
    return {node: [held.piece for held in pieces] for node, pieces in holders.items()}
