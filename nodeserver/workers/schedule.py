"""The workers of a server, with the times they keep."""

from __future__ import annotations

import dataclasses

from nodeserver.chunks import ChunkStore
from nodeserver.metadata.store import Metadata
from nodeserver.workers.collector import Collector
from nodeserver.workers.purge import Purge
from nodeserver.workers.registry import Worker, Workers
from nodeserver.workers.retention import Retention


@dataclasses.dataclass(frozen=True)
class Times:
    """How often workers run, and how long garbage stays, in seconds."""

    gc_grace: float = 24 * 3600.0
    """How long a chunk must have been there, and then unneeded, until it goes: longer than any upload takes."""
    gc_interval: float = 6 * 3600.0
    retention_interval: float = 3600.0


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What looks after a data directory."""

    retention: Retention
    collector: Collector
    workers: Workers


def upkeep(metadata: Metadata, chunks: ChunkStore, times: Times) -> Upkeep:
    """The workers of a server; they begin inside ``Workers.running``."""
    collector = Collector(metadata, chunks, times.gc_grace)
    collecting = Worker("gc", collector.work, interval=times.gc_interval)
    # What came free may have been stored just now: it can be condemned when it has been there for the grace period.
    retention = Retention(metadata, chunks, lambda: collecting.wake(times.gc_grace))
    workers = [
        Worker("purge-buckets", Purge(metadata, chunks).work),
        Worker("retention", retention.work, interval=times.retention_interval),
        collecting,
    ]
    return Upkeep(retention, collector, Workers(workers))
