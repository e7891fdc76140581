"""Pieces of chunks, made from those that nodes have."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nodeserver.chunks.distributed import DistributedStore, stored_size
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import ClientError
from nodeserver.content.codec import CorruptChunk, open_chunk
from nodeserver.content.erasure import split
from nodeserver.metadata.buckets import BucketRow
from nodeserver.placement.map import NodeId
from nodeserver.protocol.cluster import Held
from nodeserver.protocol.pieces import PieceId, chunk_of, fragment_of
from nodeserver.protocol.wire import ChunkId
from nodeserver.workers.registry import Run

GROUP, GROUP_BYTES = 256, 8 << 20
"""Chunks healed together, at most, and their bytes, but for a single larger one."""

log = logging.getLogger(__name__)

Holders = dict[NodeId, list[Held]]
Group = dict[ChunkId, Holders]


@dataclass
class Done:
    """What a run came to."""

    made: int = 0
    dropped: int = 0
    failed: int = 0


def groups(chunks: Iterable[tuple[ChunkId, Holders]]) -> Iterator[Group]:
    """Chunks that are healed together."""
    group: Group = {}
    size = 0
    for chunk, holders in chunks:
        if group and (len(group) == GROUP or size + stored_size(holders) > GROUP_BYTES):
            yield group
            group, size = {}, 0
        group[chunk] = holders
        size += stored_size(holders)
    if group:
        yield group


async def good(store: DistributedStore, bucket: BucketRow, chunks: Group, silent: set[NodeId]) -> Group:
    """The pieces whose checksums their nodes find right: what is listed may be the very one that was bad.

    A copy of something else is deleted: nobody can use it, and while it is there it keeps the true one out. Nodes that
    do not answer are added to ``silent``.
    """
    pieces: defaultdict[NodeId, list[PieceId]] = defaultdict(list)
    for holders in chunks.values():
        for node, kept in holders.items():
            pieces[node] += [held.piece for held in kept]
    there: dict[NodeId, set[PieceId]] = {}
    for node, listed in pieces.items():
        peer = store.cluster.peer(node)
        try:
            answer = await peer.read(bucket.id, listed)
            if false := await asyncio.to_thread(_false, bucket.chunk_key, answer):
                log.warning("node %s has %d chunks that are not those of their ids", node.hex(), len(false))
                await peer.delete(bucket.id, false)
            there[node] = {piece for piece, _ in answer} - false
        except ClientError as error:
            log.info("node %s: %s", node.hex(), error)
            silent.add(node)
    good: Group = {}
    for chunk, holders in chunks.items():
        sound = {node: [held for held in kept if held.piece in there.get(node, ())] for node, kept in holders.items()}
        good[chunk] = {node: kept for node, kept in sound.items() if kept}
    return good


async def make(
    store: DistributedStore,
    bucket: BucketRow,
    chunks: Group,
    wanted: Mapping[ChunkId, Sequence[tuple[NodeId, PieceId]]],
    run: Run,
    done: Done,
) -> set[ChunkId]:
    """Make pieces of chunks on nodes; the chunks of which one could not be made.

    What some node has is copied. Only what nobody has is made from the whole chunk.
    """
    sources = _sources(chunks)
    kept = {piece: sources[piece] for pieces in wanted.values() for _, piece in pieces if piece in sources}
    copies = await store.cluster.pieces(bucket.id, kept)
    lacking = {chunk for chunk, pieces in wanted.items() if any(piece not in copies for _, piece in pieces)}
    contents = await store.cluster.gather(bucket.id, {chunk: chunks[chunk] for chunk in lacking})
    failed = lacking - contents.keys()
    if failed:
        log.warning("bucket %s: %d chunks cannot be read to be repaired", bucket.name, len(failed))
    made = await asyncio.to_thread(_pieces, contents, copies, wanted)

    async def send(node: NodeId, pieces: list[tuple[PieceId, Buffer]]) -> None:
        try:
            await store.cluster.peer(node).put(bucket.id, pieces)
        except ClientError as error:
            log.warning("node %s takes no pieces of bucket %s: %s", node.hex(), bucket.name, error)
            failed.update(chunk_of(piece) for piece, _ in pieces)
        else:
            done.made += len(pieces)

    await asyncio.gather(*(send(node, pieces) for node, pieces in made.items()))
    await run.spend(sum(len(data) for pieces in made.values() for _, data in pieces))
    await run.step(len(chunks))
    return failed


def _false(chunk_key: bytes, answer: Iterable[tuple[PieceId, Buffer]]) -> set[PieceId]:
    """Whole copies that are not those of their ids."""
    found = set()
    for piece, stored in answer:
        try:
            if fragment_of(piece) is None:
                open_chunk(chunk_key, piece, stored)
        except CorruptChunk:
            found.add(piece)
    return found


def _sources(chunks: Group) -> dict[PieceId, list[NodeId]]:
    """Who has each piece of some chunks."""
    found: defaultdict[PieceId, list[NodeId]] = defaultdict(list)
    for holders in chunks.values():
        for node, pieces in holders.items():
            for held in pieces:
                found[held.piece].append(node)
    return found


def _pieces(
    contents: Mapping[ChunkId, Buffer],
    copies: Mapping[PieceId, Buffer],
    make: Mapping[ChunkId, Sequence[tuple[NodeId, PieceId]]],
) -> dict[NodeId, list[tuple[PieceId, Buffer]]]:
    """What to send to each node. Takes processor time where there are fragments to make."""
    made: defaultdict[NodeId, list[tuple[PieceId, Buffer]]] = defaultdict(list)
    for chunk, pieces in make.items():
        fragments: Sequence[Buffer] = ()
        for node, piece in pieces:
            if (copy := copies.get(piece)) is not None:
                made[node].append((piece, copy))
            elif (stored := contents.get(chunk)) is not None:
                fragment = fragment_of(piece)
                if fragment and not fragments:
                    fragments = split(stored, fragment.data, fragment.parity)
                made[node].append((piece, fragments[fragment.number] if fragment else stored))
    return made
