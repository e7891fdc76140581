"""The parts of a server, put together: with metadata, or for chunks alone."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from nodeserver import __version__
from nodeserver.access.tokens import Keys, node_subject
from nodeserver.chunks import ChunkStore
from nodeserver.chunks.distributed import DistributedStore
from nodeserver.chunks.engine import Space
from nodeserver.chunks.local_peer import LocalPeer
from nodeserver.chunks.s3.store import S3Store
from nodeserver.chunks.store import DiskStore
from nodeserver.client import Client, connect
from nodeserver.client.cluster import Cluster, ClusterMap, Node
from nodeserver.client.peer import Peer
from nodeserver.content.manifest import MAX_SIZE
from nodeserver.datadir import DataDir, Joined
from nodeserver.http.services import NodeServices, Services
from nodeserver.metadata import buckets, members, repairs
from nodeserver.metadata.store import Metadata
from nodeserver.placement.map import NodeId, unpack
from nodeserver.placement.scheme import AUTOMATIC_COPIES
from nodeserver.protocol.cluster import CHUNKS, METADATA, Member
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers import leader
from nodeserver.workers.membership import ChunkMember, MetadataMember
from nodeserver.workers.registry import Workers
from nodeserver.workers.schedule import Times, Upkeep, compacting, scrubbing, upkeep
from nodeserver.workers.scrub import Scrub, StoreScrub

SCRUB = "scrub.json"
LATER = 5.0
"""Seconds after a change of the map until pieces are moved: what is missing is made first."""
PEER_TOKEN = 3600.0
"""Seconds that a token for another node is valid."""
TOTALS = 30.0
"""Seconds for which the number of pieces is believed."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What an operator says of a node."""

    url: str
    zone: str = ""
    region: str = ""
    weight: float = 1.0
    roles: Sequence[str] = (METADATA, CHUNKS)


class _Say:
    """What a node says of itself."""

    def __init__(self, node: NodeId, standing: Standing, disk: DiskStore | None) -> None:
        self._node = node
        self._standing = standing
        self._disk = disk
        self._totals = (0, 0)
        self._until = 0.0

    async def __call__(self) -> Member:
        standing = self._standing
        roles = list(standing.roles)
        member = Member(self._node, standing.url, __version__, standing.zone, standing.region, standing.weight, roles)
        if self._disk is not None and CHUNKS in roles:
            if time.monotonic() >= self._until:
                self._totals = await self._disk.totals()
                self._until = time.monotonic() + (TOTALS if self._totals[0] > 10_000 else 0)
            space = self._disk.usage()
            member.capacity_bytes, member.free_bytes = space
            member.pieces, member.used_bytes = self._totals
        return member


@asynccontextmanager
async def with_metadata(
    directory: DataDir, keys: Keys, metadata: Metadata, chunks: ChunkStore, standing: Standing, times: Times
) -> AsyncIterator[Services]:
    """A server with metadata, a member of its cluster inside the block.

    Raises ``RemovedNode``, ``SQLAlchemyError``, ``OSError``.
    """
    node = directory.node
    disk = chunks if isinstance(chunks, DiskStore) else None
    if disk is None:
        standing = dataclasses.replace(standing, roles=(METADATA,))

    async def note(damaged: Collection[tuple[bytes, ChunkId]]) -> None:
        await metadata.write_across(repairs.note_by_id, damaged, time.time_ns())
        care.workers["repair"].wake()

    membership = MetadataMember(
        _Say(node, standing, disk),
        metadata,
        note,
        down_after=times.down_after,
        beat=times.beat,
        damaged=disk.take_met if disk else list,
    )
    membership.follow(await metadata.write_across(members.heard, await membership.say(), time.time_ns()))
    async with connect(standing.url, _own_token(keys, node)) as client:
        if disk is None:
            assert isinstance(chunks, S3Store)
            scrub = StoreScrub(metadata, chunks, directory.path / SCRUB, times.scrub_period)
            care = upkeep(
                metadata, chunks, node, times, scrubbing(scrub, leader.led(scrub.work, "scrub", metadata, node))
            )
            await care.collector.recover()
            yield _services(directory, keys, metadata, chunks, membership, care, None)
            return

        def met(bucket: bytes, ids: list[ChunkId]) -> None:
            healer.met(bucket, ids)
            care.workers["repair"].wake()

        cluster = Cluster(_peers(client, keys, node, disk), membership.map, repair=met)
        membership.on_change(cluster.follow)
        store = DistributedStore(node, disk, cluster, functools.partial(_setting, metadata))
        store.space = lambda: _space(membership.nodes, cluster.map)
        care = upkeep(metadata, store, node, times, scrubbing(_scrub(disk, directory, times)))
        assert care.healer is not None
        healer = care.healer

        def changed(_: ClusterMap) -> None:
            metadata.nudge()
            care.workers["repair"].wake()
            care.workers["rebalance"].wake(LATER)

        membership.on_change(changed)
        async with cluster:
            await care.collector.recover()
            yield _services(directory, keys, metadata, store, membership, care, disk)


def _services(
    directory: DataDir,
    keys: Keys,
    metadata: Metadata,
    chunks: ChunkStore,
    membership: MetadataMember,
    care: Upkeep,
    disk: DiskStore | None,
) -> Services:
    return Services(
        node=directory.node,
        keys=keys,
        membership=membership,
        workers=care.workers,
        pieces=disk,
        space=chunks.usage,
        metadata=metadata,
        chunks=chunks,
        retention=care.retention,
        healer=care.healer,
    )


@asynccontextmanager
async def for_chunks(
    directory: DataDir, joined: Joined, disk: DiskStore, standing: Standing, times: Times
) -> AsyncIterator[NodeServices]:
    """A server that keeps chunks alone. Raises ``ValueError`` for a damaged ``cluster.json``, ``OSError``."""
    keys = Keys(joined.public_key.encode(), joined.audience)
    known = unpack(joined.map)
    scrub = _scrub(disk, directory, times)

    def keep(found: ClusterMap) -> None:
        joined.map = found.pack()
        directory.join(joined)

    def renewed(token: str) -> None:
        joined.token = token
        directory.join(joined)

    servers = [node.url for node in known.serving(METADATA)] or [standing.url]
    async with connect(servers[0], joined.token) as client:
        membership = ChunkMember(
            _Say(directory.node, standing, disk), client, known, keep, renewed, beat=times.beat, damaged=disk.take_met
        )
        workers = Workers([scrubbing(scrub), compacting(disk, times)])
        yield NodeServices(
            node=directory.node, keys=keys, membership=membership, workers=workers, pieces=disk, space=disk.usage
        )


def _scrub(disk: DiskStore, directory: DataDir, times: Times) -> Scrub:
    scrub = Scrub(disk, directory.path / SCRUB, times.scrub_period)
    disk.verified = scrub.verified
    return scrub


def _peers(client: Client, keys: Keys, own: NodeId, disk: DiskStore) -> Callable[[Node], Peer]:
    """The ways to nodes. One that keeps chunks alone gets a token that is good there and nowhere else."""
    local = LocalPeer(disk)
    return lambda node: local if node.id == own else client.peer(node.url, _Minted(keys, own, node))


class _Minted:
    """What this server shows another node."""

    def __init__(self, keys: Keys, own: NodeId, node: Node) -> None:
        self._keys = keys
        self._own = own
        self._node = node
        self._token = ""
        self._until = 0.0

    async def __call__(self) -> str:
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + PEER_TOKEN / 2
            if METADATA in self._node.roles:
                self._token = _own_token(self._keys, self._own)
            else:
                self._token = self._keys.mint(node_subject(self._own), "keep", PEER_TOKEN, only=self._node.id)
        return self._token

    def refused(self) -> None:
        self._until = 0.0


def _own_token(keys: Keys, own: NodeId) -> str:
    """For servers with metadata: those of an earlier release take it for one that may do everything."""
    return keys.mint(node_subject(own), "admin", PEER_TOKEN)


async def _setting(metadata: Metadata, bucket: bytes) -> str:
    return await metadata.read(buckets.redundancy, bucket)


def _space(nodes: Sequence[Member], cluster: ClusterMap) -> Space:
    """The room for chunks of buckets without a setting, on all nodes that have a share."""
    sharing = {node.id for node in cluster.sharing}
    copies = max(1, min(AUTOMATIC_COPIES, len(sharing)))
    there = [node for node in nodes if node.id in sharing]
    capacity = sum(min(one.capacity_bytes, MAX_SIZE) for one in there) // copies
    return Space(min(capacity, MAX_SIZE), min(sum(one.free_bytes for one in there) // copies, capacity, MAX_SIZE))
