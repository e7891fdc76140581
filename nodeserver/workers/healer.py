"""Brings chunks to the pieces they should have: repair of what is missing, moves to where it belongs.

Two workers share this. ``repair`` takes the chunks that somebody met a bad piece of, and all of them when the map
has changed, and once a day; it counts those that cannot be read any more. ``rebalance`` looks at all chunks when the
map or a bucket's setting has changed, and once a day: it makes pieces where they should be, re-encodes, and deletes
what is left over. Nothing is deleted before the nodes that should have the chunk confirm that they do.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection
from itertools import groupby

from nodeserver.chunks.distributed import DistributedStore, readable, stored_size
from nodeserver.client.errors import ClientError
from nodeserver.metadata import members, repairs, surveys
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.store import Metadata
from nodeserver.metadata.surveys import Survey
from nodeserver.placement.healing import Plan, plan
from nodeserver.placement.map import ClusterMap, Node, NodeId, State
from nodeserver.placement.rendezvous import Placement
from nodeserver.placement.scheme import Scheme, bucket_scheme, chunk_scheme
from nodeserver.protocol.pieces import PieceId, chunk_of
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers import making
from nodeserver.workers.making import Done, Group, Holders
from nodeserver.workers.references import References, ranges
from nodeserver.workers.registry import Outcome, Run

HINTS = 500
"""Chunks repaired between two looks at what waits."""
ENDANGERED = 100_000
"""Chunks remembered of one look at all of them, to be repaired in the order of their danger."""
AGAIN = 60.0
"""Seconds until what could not be repaired is tried again."""
LOOK = 3600.0
"""Seconds until what cannot be read is looked for again."""
DAY = 86_400.0

log = logging.getLogger(__name__)


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
        """What this server's last look at all chunks found, and has mended since."""

    def met(self, bucket: bytes, chunks: Collection[ChunkId]) -> None:
        """A reader or writer on this server met bad or missing pieces."""
        self._met[bucket].update(chunks)

    # The two workers

    async def repair(self, run: Run) -> Outcome:
        """Mend what was met, then look whether there is more. Raises ``SQLAlchemyError``."""
        while self._met:
            id_, chunks = self._met.popitem()
            await self._metadata.write_across(repairs.note_by_id, [(id_, chunk) for chunk in chunks], time.time_ns())
        done = Done()
        for bucket in await self._metadata.buckets():
            await self._mend_met(bucket, run, done)
        if self._store.alone:
            return Outcome("one node: there is nothing to repair from", AGAIN if done.failed else DAY)
        cluster, away, again = await self._present()
        now = (cluster.epoch, time.time() // DAY)
        silent: set[NodeId] = set()
        if now != self._healed or self.survey.below or self.survey.lost or run.ordered:
            before = done.failed
            silent = await self._mend_all(cluster, away, run, done)
            if done.failed == before and not silent:
                self._healed = now
        if done.failed or self.survey.below or silent:
            again = min(again, AGAIN)
        elif self.survey.lost:
            again = min(again, LOOK)
        return Outcome(f"made {done.made} pieces, {done.failed} chunks could not be mended", again)

    async def rebalance(self, run: Run) -> Outcome:
        """Move what is not where it should be. Raises ``SQLAlchemyError``."""
        if self._store.alone:
            return Outcome("one node: there is nowhere to move to")
        cluster, away, again = await self._present()
        buckets = await self._metadata.buckets()
        now = (time.time() // DAY, cluster.nodes, *((bucket.id, bucket.redundancy) for bucket in buckets))
        if now == self._balanced and not run.ordered:
            return Outcome("all is where it should be", again)
        done = Done()
        whole = True
        for bucket in buckets:
            for first, beyond in ranges(await self._store.count(bucket.id)):
                found, silent = await self._look(bucket, cluster, first, beyond, run)
                whole = whole and not silent
                # What cannot be read is of no use, or repair tells of it.
                sound = ((chunk, holders) for chunk, holders in found if readable(holders))
                for group in making.groups(sound):
                    await self._heal(bucket, cluster, away | silent, group, run, done, drop=not silent)
        said = f"made {done.made} pieces, deleted {done.dropped} left over"
        if whole and not done.failed and not away:
            self._balanced = now
            return Outcome(said, again)
        return Outcome(f"{said}, {done.failed} chunks wait", min(again, AGAIN))

    async def _mend_met(self, bucket: BucketRow, run: Run, done: Done) -> None:
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
            for group in making.groups((chunk, found.held.get(chunk, {})) for chunk in chunks):
                good = await making.good(self._store, bucket, group, silent)
                failed = await self._heal(bucket, cluster, away | silent, good, run, done, drop=False)
                if not silent:
                    garbage = failed - await self._needed(bucket, failed, run)
                    done.failed -= len(garbage)
                    healed = good.keys() - failed | garbage
                    await self._metadata.write(repairs.done, bucket.bucket, healed)

    async def _needed(self, bucket: BucketRow, chunks: set[ChunkId], run: Run) -> set[ChunkId]:
        """Those of some chunks that a version refers to."""
        found: set[ChunkId] = set()
        if chunks:
            async for needed in References(self._metadata, self._store, bucket).known(run):
                found |= chunks & needed
        return found

    async def _lost(self, bucket: BucketRow, there: set[ChunkId], first: int, beyond: int, run: Run) -> int:
        """How many chunks versions refer to that are not ``there`` and cannot be read, of the ids that begin with a
        byte from ``first`` on and below ``beyond``."""
        lacking: set[ChunkId] = set()
        async for needed in References(self._metadata, self._store, bucket).known(run):
            lacking.update(chunk for chunk in needed if first <= chunk[0] < beyond and chunk not in there)
        # Commits that were made meanwhile are no loss.
        found = await self._store.locate(bucket.id, list(lacking))
        return sum(not readable(found.held.get(chunk, {})) for chunk in lacking)

    async def _mend_all(self, cluster: ClusterMap, away: set[NodeId], run: Run, done: Done) -> set[NodeId]:
        """Look at all chunks, then mend those with too few pieces, the most endangered first.

        Returns the nodes that did not answer.
        """
        survey, unheard = Survey(time.time_ns()), set[NodeId]()
        endangered: list[tuple[int, BucketRow, ChunkId, Holders]] = []
        for bucket in await self._metadata.buckets():
            for first, beyond in ranges(await self._store.count(bucket.id)):
                there: set[ChunkId] = set()
                found, silent = await self._look(bucket, cluster, first, beyond, run)
                unheard |= silent
                survey.chunks += len(found)
                for chunk, holders in found:
                    if not readable(holders):
                        continue
                    there.add(chunk)
                    planned = self._plan(bucket, cluster, away | silent, chunk, holders)
                    if planned.lacking:
                        survey.below += 1
                        if len(endangered) < ENDANGERED:
                            endangered.append((planned.spare, bucket, chunk, holders))
                survey.lost += await self._lost(bucket, there, first, beyond, run)
        self.survey = survey
        await self._metadata.write_across(surveys.note, survey)
        run.total = run.done + len(endangered)
        endangered.sort(key=lambda one: (one[0], one[1].bucket))
        for _, alike in groupby(endangered, key=lambda one: (one[0], one[1].bucket)):
            some = list(alike)
            bucket = some[0][1]
            for group in making.groups((chunk, holders) for _, _, chunk, holders in some):
                failed = await self._heal(bucket, cluster, away | unheard, group, run, done, drop=False)
                survey.below -= len(group) - len(failed)
                await self._metadata.write_across(surveys.note, survey)
        return unheard

    # Some chunks

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
        chunks: Group,
        run: Run,
        done: Done,
        *,
        drop: bool,
    ) -> set[ChunkId]:
        """Make what is missing of some chunks and, with ``drop``, delete what is left over.

        Returns the chunks that could not be mended.
        """
        plans = {chunk: self._plan(bucket, cluster, away, chunk, holders) for chunk, holders in chunks.items()}
        failed = {chunk for chunk, holders in chunks.items() if not readable(holders)}
        make = {chunk: found.make for chunk, found in plans.items() if found.make and chunk not in failed}
        if make:
            failed |= await making.make(self._store, bucket, {chunk: chunks[chunk] for chunk in make}, make, run, done)
        over = [chunk for chunk, found in plans.items() if (found.make or found.drop) and chunk not in failed]
        if drop and over:
            failed |= await self._drop(bucket, cluster, over, done)
            await run.step(len(over))
        done.failed += len(failed)
        return failed

    async def _drop(self, bucket: BucketRow, cluster: ClusterMap, chunks: list[ChunkId], done: Done) -> set[ChunkId]:
        """Delete what is left over of chunks whose home has them now; the chunks of which something stays."""
        now = await self._store.locate(bucket.id, chunks)
        away = now.silent - _gone(cluster)
        over: defaultdict[NodeId, list[PieceId]] = defaultdict(list)
        for chunk in chunks:
            for node, piece in self._plan(bucket, cluster, away, chunk, now.held.get(chunk, {})).drop:
                over[node].append(piece)
        failed: set[ChunkId] = set()
        for node, pieces in over.items():
            try:
                await self._store.cluster.peer(node).delete(bucket.id, pieces)
            except ClientError as error:
                log.warning("node %s deletes no pieces of bucket %s: %s", node.hex(), bucket.name, error)
                failed.update(chunk_of(piece) for piece in pieces)
            else:
                done.dropped += len(pieces)
        return failed

    # What there is

    async def _look(
        self, bucket: BucketRow, cluster: ClusterMap, first: int, beyond: int, run: Run
    ) -> tuple[list[tuple[ChunkId, Holders]], set[NodeId]]:
        """The chunks of a bucket whose ids begin with a byte from ``first`` on and below ``beyond``, with who has what
        of them; and who was silent, but for nodes that are gone."""
        silent: set[NodeId] = set()
        found = await self._store.survey(bucket.id, first, beyond, silent)
        await run.step()
        return sorted(found.items()), silent - _gone(cluster)

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


def _gone(cluster: ClusterMap) -> set[NodeId]:
    """The nodes that are down for so long that others have taken their place."""
    return {node.id for node in cluster.nodes if node.state is State.DOWN}


def _ids(holders: Holders) -> dict[NodeId, list[PieceId]]:
    return {node: [held.piece for held in pieces] for node, pieces in holders.items()}
