"""A server as a node: it says that it is there, follows the map, and with metadata finds out who is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from nodeserver.client import Client, ClientError, Refused
from nodeserver.client.maps import told
from nodeserver.metadata import members
from nodeserver.metadata.errors import RemovedNode, Unavailable
from nodeserver.metadata.store import Metadata
from nodeserver.placement.map import ClusterMap, NodeId
from nodeserver.protocol.cluster import MAX_FIND, METADATA, Beat, Member
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import ChunkId

BEAT = 3.0
"""Seconds between two signs of life."""

log = logging.getLogger(__name__)


class Membership:
    """Of one server. ``say`` tells how it is now, ``damaged`` what was found bad since it was asked last."""

    def __init__(
        self,
        say: Callable[[], Awaitable[Member]],
        known: ClusterMap,
        *,
        beat: float = BEAT,
        damaged: Callable[[], list[tuple[bytes, ChunkId]]] = list,
    ) -> None:
        self.say = say
        self._beat = beat
        self._damaged = damaged
        self._unsaid: list[tuple[bytes, ChunkId]] = []
        self._followers: list[Callable[[ClusterMap], None]] = []
        self.map = known
        self.removed = False

    def follow(self, found: ClusterMap) -> None:
        """Take a newer map; an older one is ignored."""
        if found.epoch > self.map.epoch:
            self.map = found
            for follower in self._followers:
                follower(found)

    def on_change(self, follower: Callable[[ClusterMap], None]) -> None:
        """Call ``follower`` with every newer map, in the event loop."""
        self._followers.append(follower)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The node gives signs of life inside the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            try:
                await self.beat()
            except (RemovedNode, Refused) as error:
                self._refused(error)
            except (ClientError, Unavailable, SQLAlchemyError, OSError) as error:
                log.warning("no sign of life could be given: %s", error)
            await asyncio.sleep(self._beat)

    async def beat(self) -> None:
        """Give a sign of life. Raises what the way to do so does."""
        self._unsaid += self._damaged()
        some = self._unsaid[:MAX_FIND]
        await self._give(Beat(await self.say(), self.map.epoch, some))
        del self._unsaid[: len(some)]
        self.removed = False

    async def _give(self, beat: Beat) -> None:
        raise NotImplementedError

    def _refused(self, error: Exception) -> None:
        if isinstance(error, RemovedNode) or (isinstance(error, Refused) and error.code is Code.FORBIDDEN):
            if not self.removed:
                log.error("this node was removed from the cluster: what it keeps is not used any more")
            self.removed = True
        else:
            log.warning("no sign of life could be given: %s", error)


class MetadataMember(Membership):
    """A node with metadata: it writes into the database, and looks who else has."""

    def __init__(
        self,
        say: Callable[[], Awaitable[Member]],
        metadata: Metadata,
        note_damaged: Callable[[Collection[tuple[bytes, ChunkId]]], Awaitable[None]],
        *,
        down_after: float,
        beat: float = BEAT,
        damaged: Callable[[], list[tuple[bytes, ChunkId]]] = list,
    ) -> None:
        super().__init__(say, ClusterMap(), beat=beat, damaged=damaged)
        self._metadata = metadata
        self._note_damaged = note_damaged
        self._down_after = down_after
        self.nodes: list[Member] = []
        """What the nodes last said of themselves."""
        self._suspects: set[NodeId] = set()
        self._looked = 0.0

    async def _give(self, beat: Beat) -> None:
        self.follow(await self._metadata.write_across(members.heard, beat.member, time.time_ns()))
        if beat.damaged:
            await self._note_damaged(beat.damaged)
        _, statuses = await self._metadata.read(members.statuses)
        self.nodes = [status.member for status in statuses]
        await self._look(beat.member.id)

    async def _look(self, own: NodeId) -> None:
        """Who was silent at two looks, both in time, is down: when this server itself stood still, nobody is."""
        before = time.time_ns() - int(self._down_after * 1e9)
        late = await self._metadata.read(members.silent, before) - {own}
        now = time.monotonic()
        in_time = now - self._looked < 3 * self._beat + 1
        if down := late & self._suspects if in_time else set():
            log.warning("nodes are down: %s", ", ".join(sorted(node.hex() for node in down)))
            self.follow(await self._metadata.write_across(members.mark_down, down, before))
        self._suspects, self._looked = late, now


class ChunkMember(Membership):
    """A node that keeps chunks alone: it tells a node with metadata, and keeps the map for the next start."""

    def __init__(
        self,
        say: Callable[[], Awaitable[Member]],
        client: Client,
        known: ClusterMap,
        keep: Callable[[ClusterMap], None],
        renewed: Callable[[str], None],
        *,
        beat: float = BEAT,
        damaged: Callable[[], list[tuple[bytes, ChunkId]]] = list,
    ) -> None:
        super().__init__(say, known, beat=beat, damaged=damaged)
        self._client = client
        self.on_change(self._take)
        self._keep = keep
        self._renewed = renewed
        self._take(known)

    def _take(self, found: ClusterMap) -> None:
        self._client.follow([node.url for node in found.serving(METADATA)])
        self._keep(found)

    async def _give(self, beat: Beat) -> None:
        # Soon enough for another server to hear of it before this node is taken for down.
        answer = await self._client.beat(beat, deadline=max(3 * self._beat, 1.0))
        if answer.token:
            self._client.renew(answer.token)
            self._renewed(answer.token)
        if (found := told(answer)) is not None:
            self.follow(found)
