"""The cluster behind a mount: its map, kept over restarts; where chunks go and come from; bad ones told on."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from mountfs.local.buckets import BucketState
from mountfs.local.database import Database
from nodeserver.client import Client, ClientError, Refused, Unreachable, refused
from nodeserver.client.capabilities import Capabilities
from nodeserver.client.cluster import Cluster, ClusterMap, Node, Place, State, unpack_map
from nodeserver.client.http_peer import HttpPeer
from nodeserver.client.maps import told
from nodeserver.content.codec import CorruptChunk, open_chunk
from nodeserver.protocol.cluster import CHUNKS, MAX_FIND, METADATA
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import ChunkId

log = logging.getLogger(__name__)

MAP = "cluster map"
"""The fact in the local database that holds the map, packed."""
TOKENS = "piece tokens"
"""That which holds what nodes that keep chunks alone are shown."""
RESTART = 5.0
"""Seconds for which a reader waits for nodes that went away."""
AGAIN = 0.25
"""Seconds between two tries of it."""
RETRY = 15.0
"""Seconds until the next try to learn a map, or to tell of bad chunks."""

Plaintext = bytes | bytearray | memoryview


class Nodes:
    """The nodes as a mount sees them."""

    def __init__(self, db: Database, client: Client, url: str) -> None:
        self._db = db
        self._client = client
        self._url = url
        self._epoch = 0
        """The newest that was heard of."""
        self._news = trio.Event()
        self._bad: defaultdict[bytes, set[ChunkId]] = defaultdict(set)
        self._peers: dict[tuple[bytes, str], HttpPeer] = {}
        keep = partial(db.set_meta, TOKENS)
        self._tokens = Capabilities(client.piece_tokens, lambda: client.token, db.get_meta(TOKENS), keep)
        packed = db.get_meta(MAP)
        known = unpack_map(packed) if packed else ClusterMap()
        self.cluster = Cluster(self._peer, self._reachable(known), repair=self._met_bad)
        self._follow(known)

    @property
    def map(self) -> ClusterMap:
        """The cluster map, with the addresses in use."""
        return self.cluster.map

    def states(self) -> list[dict[str, str]]:
        """The nodes, with what they are for, as far as the map tells."""
        return [
            {"id": node.id.hex(), "url": node.url, "zone": node.zone, "state": node.state.value}
            for node in self.map.nodes
            if node.state is not State.REMOVED
        ]

    @property
    def requests(self) -> int:
        """How many were sent to nodes that keep chunks."""
        return sum(peer.requests for peer in self._peers.values())

    def hope(self) -> None:
        """A server answers again: nodes that were left alone may be back too."""
        for peer in self._peers.values():
            peer.hope()

    # Following the map

    def heard(self, epoch: int) -> None:
        """Somebody knows the map of this epoch."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._news.set()

    async def learn(self) -> None:
        """Get the newest map. Raises ClientError; a server of an earlier release has none, which is no error."""
        try:
            answer = await self._client.cluster(self.map.epoch)
        except Refused as refusal:
            if refusal.code is Code.NO_ROUTE:
                return
            raise
        found = told(answer)
        if found is None:
            return
        with self._db.transaction():
            self._db.set_meta(MAP, answer.map)
        self._follow(found)

    def _follow(self, cluster_map: ClusterMap) -> None:
        self._epoch = max(self._epoch, cluster_map.epoch)
        cluster_map = self._reachable(cluster_map)
        self.cluster.follow(cluster_map)
        self._client.follow([node.url for node in cluster_map.serving(METADATA)])

    def _reachable(self, cluster_map: ClusterMap) -> ClusterMap:
        """A server alone is where it was reached, whatever it says: there may be a proxy before it."""
        nodes = [*cluster_map.serving(METADATA), *cluster_map.serving(CHUNKS)]
        if len({node.id for node in nodes}) != 1:
            return cluster_map
        return msgspec.structs.replace(
            cluster_map, nodes=tuple(msgspec.structs.replace(node, url=self._url) for node in cluster_map.nodes)
        )

    def _peer(self, node: Node) -> HttpPeer:
        if (node.id, node.url) not in self._peers:
            trusted = METADATA in node.roles or node.url == self._url
            token = None if trusted else self._tokens.of(node.id)
            self._peers[node.id, node.url] = self._client.peer(node.url, token)
        return self._peers[node.id, node.url]

    async def run(self) -> None:
        """Follow the map, and tell of bad chunks, for ever."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            try:
                if self._epoch > self.map.epoch:
                    await self.learn()
                await self._report()
            except (ClientError, OSError) as error:
                log.info("%s", error)
                self._news.set()
                await trio.sleep(RETRY)

    # Chunks

    async def missing(self, bucket: BucketState, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of ``ids`` that have to be stored. Raises ClientError."""
        if self._through_server:
            return await self._client.missing(bucket.name, ids)
        return await self.cluster.missing(_place(bucket), ids)

    async def put(self, bucket: BucketState, chunks: Sequence[tuple[ChunkId, bytes]]) -> None:
        """Store chunks, durably. Raises ClientError."""
        if not self._through_server:
            await self.cluster.put(_place(bucket), chunks)
        elif len(chunks) == 1:
            await self._client.put_chunk(bucket.name, *chunks[0])
        else:
            await self._client.put_chunks(bucket.name, chunks)

    async def open(self, bucket: BucketState, ids: Sequence[ChunkId]) -> list[Plaintext]:
        """The plaintexts of chunks, proven. Raises ClientError.

        Nodes that went away a moment ago may be starting anew: they are asked again for ``RESTART`` seconds.
        """
        began = time.time()
        while True:
            try:
                return await self._open(bucket, ids)
            except Unreachable:
                state = self._client.state
                if time.time() - (began if state.connected else min(began, state.since)) > RESTART:
                    raise
            await trio.sleep(AGAIN)
            self.hope()

    async def _open(self, bucket: BucketState, ids: Sequence[ChunkId]) -> list[Plaintext]:
        if not self._through_server:
            return [plain for _, plain in await self.cluster.open(_place(bucket), bucket.chunk_key, ids)]
        if len(ids) == 1:
            answer = [(ids[0], await self._client.get_chunk(bucket.name, ids[0]))]
        else:
            answer = await self._client.read_chunks(bucket.name, ids)
        try:
            return await trio.to_thread.run_sync(partial(_open_all, bucket.chunk_key, answer))
        except CorruptChunk as error:
            raise refused(Code.CORRUPT, str(error), [error.chunk] if error.chunk else []) from error

    @property
    def _through_server(self) -> bool:
        """Whether no node keeps chunks: a store behind the servers does."""
        return not self.map.serving(CHUNKS)

    # Bad chunks

    def _met_bad(self, bucket: bytes, chunks: Sequence[ChunkId]) -> None:
        log.warning("%d chunks lack good pieces, %s first", len(chunks), chunks[0].hex())
        self._bad[bucket].update(chunks)
        self._news.set()

    async def _report(self) -> None:
        while self._bad:
            bucket, chunks = next(iter(self._bad.items()))
            some = sorted(chunks)[:MAX_FIND]
            row = self._db.execute("SELECT name FROM bucket WHERE uuid = ?", (bucket,)).fetchone()
            if row is not None:
                await self._client.report(row[0], some)
            chunks.difference_update(some)
            if not chunks:
                self._bad.pop(bucket, None)


def _place(bucket: BucketState) -> Place:
    return Place(bucket.uuid, bucket.redundancy)


def _open_all(key: bytes, answer: Sequence[tuple[ChunkId, bytes | bytearray | memoryview]]) -> list[Plaintext]:
    return [open_chunk(key, chunk, stored) for chunk, stored in answer]
