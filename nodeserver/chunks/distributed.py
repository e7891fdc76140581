"""All chunks of a cluster as one store, for servers with metadata."""

from __future__ import annotations

import errno
import logging
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nodeserver.chunks.engine import ChunkStore, Space, StoreUnavailable
from nodeserver.chunks.reading import NoChunk, check
from nodeserver.client.cluster import Place
from nodeserver.client.errors import ClientError, Refused
from nodeserver.content.codec import CorruptChunk
from nodeserver.content.erasure import HEADER
from nodeserver.protocol.cluster import CHUNKS
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import chunk_of, fragment_of
from nodeserver.protocol.pieces import readable as give_back
from nodeserver.protocol.wire import MAX_BATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from nodeserver.chunks.store import DiskStore
    from nodeserver.client.cluster import Cluster, Located
    from nodeserver.placement.map import NodeId
    from nodeserver.protocol.cluster import Held
    from nodeserver.protocol.wire import ChunkId

TOGETHER = 8
"""Chunks read at a time, so that a long list does not take more memory than it may."""
BELIEF = 1.0
"""Seconds that a bucket's setting is believed for."""

log = logging.getLogger(__name__)


class DistributedStore(ChunkStore):
    """The pieces on all nodes that keep some, as whole chunks. While this node is the only one, its disk alone.

    ``local`` is this node's disk; claims are kept there. ``setting`` tells the redundancy of a bucket by its id.
    """

    def __init__(
        self, own: NodeId, local: DiskStore, cluster: Cluster, setting: Callable[[bytes], Awaitable[str]]
    ) -> None:
        self.cluster = cluster
        self._own = own
        self._local = local
        self._setting = setting
        self._settings: dict[bytes, tuple[str, float]] = {}
        self.space: Callable[[], Space] = local.usage
        """The room there is on all nodes."""

    @property
    def alone(self) -> bool:
        """Whether nobody else keeps chunks."""
        return [node.id for node in self.cluster.map.serving(CHUNKS)] in ([], [self._own])

    async def place(self, bucket: bytes) -> Place:
        """A bucket with its setting, as it was a second ago or later."""
        known, until = self._settings.get(bucket, ("", 0.0))
        if time.monotonic() >= until:
            known = await self._setting(bucket)
            self._settings[bucket] = known, time.monotonic() + BELIEF
        return Place(bucket, known)

    async def put(self, bucket: bytes, items: Sequence[tuple[ChunkId, bytes]]) -> None:
        if self.alone:
            await self._local.put(bucket, items)
            return
        check(items)
        async with self.using(bucket, [chunk for chunk, _ in items]):
            with _mapped():
                await self.cluster.put(await self.place(bucket), items)

    async def missing(self, bucket: bytes, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """As ``ChunkStore.missing``; of a chunk on other nodes it is enough that somebody has pieces for it.

        Raises ``StoreUnavailable`` when a chunk is not found and so many nodes are silent that it may be there all the
        same.
        """
        if self.alone:
            return await self._local.missing(bucket, ids)
        here = {held.piece for held in await self._local.find(bucket, ids)}
        if not (rest := [chunk for chunk in ids if chunk not in here]):
            return []
        found = await self.cluster.locate_readable(bucket, rest)
        missing = [chunk for chunk in rest if not readable(found.held.get(chunk, {}))]
        if missing and len(found.silent) >= self.cluster.scheme((await self.place(bucket)).redundancy).quorum:
            raise StoreUnavailable(errno.EIO, f"{len(found.silent)} nodes do not answer")
        return missing

    async def sizes(self, bucket: bytes, ids: Collection[ChunkId]) -> dict[ChunkId, int]:
        if self.alone:
            return await self._local.sizes(bucket, ids)
        found = await self.cluster.locate(bucket, list(ids))
        return {chunk: stored_size(holders) for chunk, holders in found.held.items()}

    async def get(self, bucket: bytes, chunk: ChunkId) -> bytes:
        if self.alone:
            return await self._local.get(bucket, chunk)
        with _mapped():
            [(_, stored)] = await self.cluster.read(await self.place(bucket), [chunk])
        return bytes(stored)

    async def read(
        self, bucket: bytes, ids: Sequence[ChunkId], limit: int = MAX_BATCH_BYTES
    ) -> list[tuple[ChunkId, bytes]]:
        if self.alone:
            return await self._local.read(bucket, ids, limit)
        found: list[tuple[ChunkId, bytes]] = []
        for start in range(0, len(ids), TOGETHER):
            with _mapped():
                some = await self.cluster.read(await self.place(bucket), ids[start : start + TOGETHER])
            for chunk, stored in some:
                limit -= len(stored)
                if limit < 0 and found:
                    return found
                found.append((chunk, bytes(stored)))
        return found

    def using(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractAsyncContextManager[None]:
        return self._local.using(bucket, ids)

    def doom(self, bucket: bytes, ids: Collection[ChunkId]) -> AbstractContextManager[list[ChunkId]]:
        return self._local.doom(bucket, ids)

    async def delete(self, bucket: bytes, ids: Sequence[ChunkId]) -> None:
        """As ``ChunkStore.delete``. What nodes have that do not answer stays until garbage is collected again."""
        if self.alone:
            await self._local.delete(bucket, ids)
            return
        found = await self.cluster.locate(bucket, ids)
        pieces: defaultdict[NodeId, list[bytes]] = defaultdict(list)
        for holders in found.held.values():
            for node, held in holders.items():
                pieces[node] += [piece.piece for piece in held]
        for node, some in pieces.items():
            if node == self._own:
                await self._local.delete(bucket, some)
            else:
                with _tolerated(node):
                    await self.cluster.peer(node).delete(bucket, some)

    def forget(self, bucket: bytes, ids: Iterable[ChunkId]) -> None:
        self._local.forget(bucket, ids)

    async def count(self, bucket: bytes) -> int:
        if self.alone:
            return await self._local.count(bucket)
        return 256 * len(await self.survey(bucket, 0, 1))

    async def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> set[ChunkId]:
        if self.alone:
            return await self._local.older(bucket, first, beyond, before_ns)
        found = await self.survey(bucket, first, beyond)
        return {
            chunk
            for chunk, holders in found.items()
            if any(held.stored_ns < before_ns for pieces in holders.values() for held in pieces)
        }

    async def compact(self, bucket: bytes, step: Callable[[], Awaitable[None]]) -> int:
        """As ``ChunkStore.compact``, of this node; the others do so themselves."""
        return await self._local.compact(bucket, step)

    async def drop_bucket(self, bucket: bytes) -> None:
        """As ``ChunkStore.drop_bucket``. Raises ``StoreUnavailable`` when nodes do not answer, after all that do."""
        await self._local.drop_bucket(bucket)
        silent = []
        for node in self.cluster.map.serving(CHUNKS):
            if node.id == self._own:
                continue
            try:
                await self.cluster.peer(node.id).drop(bucket)
            except ClientError:
                silent.append(node.url)
        if silent:
            raise StoreUnavailable(errno.EHOSTDOWN, f"no answer from {', '.join(silent)}")

    def usage(self) -> Space:
        return self._local.usage() if self.alone else self.space()

    async def close(self) -> None:
        await self._local.close()

    # For workers.

    async def survey(
        self, bucket: bytes, first: int, beyond: int, silent: set[NodeId] | None = None
    ) -> dict[ChunkId, dict[NodeId, list[Held]]]:
        """All pieces of chunks whose ids begin with a byte from ``first`` on and below ``beyond``, with their nodes.

        Nodes that do not answer are added to ``silent``.
        """
        found: dict[ChunkId, dict[NodeId, list[Held]]] = {}
        for node in self.cluster.map.serving(CHUNKS):
            try:
                listing = await self.cluster.peer(node.id).listing(bucket, first, beyond)
            except ClientError:
                if silent is not None:
                    silent.add(node.id)
                continue
            for held in listing:
                found.setdefault(chunk_of(held.piece), {}).setdefault(node.id, []).append(held)
        return found

    async def locate(self, bucket: bytes, ids: Sequence[ChunkId]) -> Located:
        """Who has what of some chunks."""
        return await self.cluster.locate(bucket, ids)


def readable(holders: dict[NodeId, list[Held]]) -> bool:
    """Whether what nodes have of a chunk gives it back, if it is good."""
    return give_back(held.piece for kept in holders.values() for held in kept)


def stored_size(holders: dict[NodeId, list[Held]]) -> int:
    """Bytes of a chunk's stored form; less than ``data`` more when there are fragments alone."""
    sizes = [0]
    for pieces in holders.values():
        for held in pieces:
            fragment = fragment_of(held.piece)
            if fragment is None:
                return held.size
            sizes.append(fragment.data * (held.size - HEADER))
    return max(sizes)


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn the errors of a client into those of a store."""
    try:
        yield
    except Refused as error:
        ids = [bytes.fromhex(one) for one in error.problem.ids]
        if error.code is Code.NO_CHUNK:
            raise NoChunk(ids) from error
        if error.code is Code.CORRUPT:
            raise CorruptChunk(str(error), ids[0] if ids else b"") from error
        raise StoreUnavailable(errno.ENOSPC if error.code is Code.FULL else errno.EIO, str(error)) from error
    except ClientError as error:
        raise StoreUnavailable(errno.EIO, str(error)) from error


@contextmanager
def _tolerated(node: NodeId) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        log.warning("node %s: %s", node.hex(), error)
