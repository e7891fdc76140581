"""The workers of a server, with the times they keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from nodeserver.chunks import ChunkStore
from nodeserver.chunks.distributed import DistributedStore
from nodeserver.chunks.store import DiskStore
from nodeserver.metadata.store import Metadata
from nodeserver.placement.map import NodeId
from nodeserver.workers import leader
from nodeserver.workers.collector import Collector
from nodeserver.workers.healer import Healer
from nodeserver.workers.purge import Purge
from nodeserver.workers.registry import Outcome, Run, Worker, Workers
from nodeserver.workers.retention import Retention
from nodeserver.workers.scrub import Scrub


@dataclasses.dataclass(frozen=True)
class Times:
    """How often workers run, and how long garbage stays, in seconds."""

    gc_grace: float = 24 * 3600.0
    """How long a chunk must have been there, and then unneeded, until it goes: longer than any upload takes."""
    gc_interval: float = 6 * 3600.0
    retention_interval: float = 3600.0
    scrub_period: float = 30 * 86_400.0
    """In which the checksum of every piece is looked at."""
    repair_after: float = 900.0
    """How long a node may be down until what it has is made anew on others."""
    down_after: float = 15.0
    """How long a node may be silent until it is taken for down."""
    beat: float = 3.0
    """Between two signs of life."""


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What looks after a data directory."""

    retention: Retention
    collector: Collector
    healer: Healer | None
    workers: Workers


def upkeep(metadata: Metadata, chunks: ChunkStore, own: NodeId, times: Times, *scrub: Worker) -> Upkeep:
    """The workers of a server with metadata; they begin inside ``Workers.running``."""

    def led(name: str, work: Callable[[Run], Awaitable[Outcome]], interval: float | None = None) -> Worker:
        return Worker(name, leader.led(work, name, metadata, own), interval=interval)

    collector = Collector(metadata, chunks, times.gc_grace)
    collecting = led("gc", collector.work, times.gc_interval)
    # What came free may have been stored just now: it can be condemned when it has been there for the grace period.
    retention = Retention(metadata, chunks, lambda: collecting.wake(times.gc_grace))
    workers = [
        led("purge-buckets", Purge(metadata, chunks).work),
        led("retention", retention.work, times.retention_interval),
        collecting,
    ]
    healer = None
    if isinstance(chunks, DistributedStore):
        healer = Healer(metadata, chunks, times.repair_after)
        workers += [led("repair", healer.repair), led("rebalance", healer.rebalance)]
    return Upkeep(retention, collector, healer, Workers([*workers, *scrub]))


def scrubbing(scrub: Scrub, work: Callable[[Run], Awaitable[Outcome]] | None = None) -> Worker:
    """The worker that looks at all checksums; ``work`` instead of the scrub's own."""
    worker = Worker("scrub", work or scrub.work)
    worker.throttle(scrub.RATE)
    return worker


def compacting(disk: DiskStore, times: Times) -> Worker:
    """On a node without metadata: packs that are mostly dead are copied; elsewhere ``gc`` does so."""

    async def work(run: Run) -> Outcome:
        freed = 0
        for bucket in await disk.buckets():
            freed += await disk.compact(bucket, run.step)
        return Outcome(f"compacting freed {freed} bytes")

    return Worker("compact", work, interval=times.gc_interval)
