"""Content small enough to travel inside the commit that refers to it: one request instead of three."""

from __future__ import annotations

from collections.abc import Sequence

from mountfs.local.buckets import BucketState
from mountfs.local.staging import Content, Snapshot
from mountfs.sync.chunking import Keep, Plan
from mountfs.sync.downloads import Downloads
from mountfs.sync.uploads import Upload
from nodeserver.content.codec import HEADER, chunk_id, encode
from nodeserver.content.manifest import MAX_INLINE, content_hash
from nodeserver.protocol import wire
from nodeserver.protocol.ids import new_id

FILES = 16
"""Files looked at; with more, sending their content first is as quick."""

Chunks = list[tuple[bytes, bytes]]


async def carry(
    bucket: BucketState, downloads: Downloads, work: Sequence[tuple[Content, Snapshot]]
) -> tuple[list[Upload], Chunks] | None:
    """The content of these files as chunks for the commit; None when it is too much. Raises OSError."""
    if len(work) > FILES or any(snapshot.layers.pieces > MAX_INLINE for _, snapshot in work):
        return None
    plans = [list(Plan(snapshot.layers, still_open=snapshot.open)) for _, snapshot in work]
    cuts = [step for plan in plans for step in plan if not isinstance(step, Keep)]
    size = sum(step.limit - step.start + HEADER for step in cuts)
    if size > wire.MAX_COMMIT_CHUNKS or any(len(plan) > MAX_INLINE for plan in plans):
        return None
    uploads: list[Upload] = []
    chunks: dict[bytes, bytes] = {}
    for (content, snapshot), plan in zip(work, plans, strict=True):
        slices: list[wire.Slice] = []
        for step in plan:
            if isinstance(step, Keep):
                slices.append(step.slice)
                continue
            # No larger than the smallest chunk: nothing to cut, and nothing worth a thread.
            plaintext = await downloads.read(bucket.id, snapshot.layers, step.start, step.limit, verify=True)
            key = chunk_id(bucket.chunk_key, plaintext)
            chunks[key] = encode(plaintext)
            slices.append(wire.Slice(key, 0, len(plaintext)))
        digest = content_hash(bucket.chunk_key, slices)
        uploads.append(Upload(content, snapshot, slices, wire.Manifest(slices), digest, new_id()))
    return uploads, list(chunks.items())
