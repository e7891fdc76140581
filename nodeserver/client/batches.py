"""Chunks or pieces in groups that a request can carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodeserver.client.connection import Buffer
from nodeserver.protocol.wire import MAX_BATCH_BYTES, MAX_BATCH_CHUNKS


def batches(chunks: Iterable[tuple[bytes, Buffer]]) -> Iterator[list[tuple[bytes, Buffer]]]:
    """``chunks``, pairs of id and stored form, in groups that a request can carry."""
    batch: list[tuple[bytes, Buffer]] = []
    size = 0
    for chunk, stored in chunks:
        if batch and (len(batch) == MAX_BATCH_CHUNKS or size + len(stored) > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((chunk, stored))
        size += len(stored)
    if batch:
        yield batch
