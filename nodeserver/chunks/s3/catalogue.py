"""Which packs and notes a bucket has: those that other servers wrote are found by listing.

Names are in the order of their times. A **short** look lists what is newer than ``SLACK``; a **full** one lists
all, and so finds what came late, from a clock that is wrong, and what other servers deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from nodeserver.chunks.record import BadPack
from nodeserver.chunks.s3.format import NOTE, PACK, decode_note, decode_pack, name_at, pack_head
from nodeserver.chunks.s3.index import Index, gone_from
from nodeserver.chunks.s3.keys import packs_of
from nodeserver.chunks.s3.objects import BadRange, Entry, NoObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from nodeserver.chunks.record import Record
    from nodeserver.chunks.s3.objects import Objects
    from nodeserver.protocol.wire import ChunkId

SLACK = 60.0
"""Seconds by which clocks of servers may differ, uploads included, for a short look to find everything."""
GUESS = 16 * 1024
"""Bytes read of a pack to begin with: what is in it, if that is up to some 450 chunks."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """When a bucket was last looked at, in seconds of the monotonic clock."""

    short: float = float("-inf")
    full: float = float("-inf")
    doubted: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Catalogue:
    """The index of one server, and what keeps it up to date."""

    def __init__(self, objects: Objects, path: Path, address: str, forget: Callable[[bytes, Iterable[ChunkId]], None]):
        """``forget`` is told of the chunks that another server deleted. Raises ``OSError``."""
        self._objects = objects
        self._forget = forget
        self._seen: defaultdict[bytes, _Seen] = defaultdict(_Seen)
        self._index = Index.open(path)
        self._index.belongs_to(address)
        self._upkeep_index = Index(path)
        self._thread = ThreadPoolExecutor(1, "chunk-index")
        self._upkeep_thread = ThreadPoolExecutor(1, "chunk-upkeep")

    async def ask(self, question: Callable[[Index], T]) -> T:
        """Ask the index something, or change it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(question, self._index))

    async def ask_slowly(self, question: Callable[[Index], T]) -> T:
        """Ask what takes its time, and leave the others theirs."""
        return await asyncio.get_running_loop().run_in_executor(
            self._upkeep_thread, partial(question, self._upkeep_index)
        )

    async def refresh(self, bucket: bytes, age: float, full_age: float) -> None:
        """Look what there is, unless the last look is at most ``age`` seconds old, the last full one ``full_age``.

        Raises ``StoreUnavailable``.
        """
        asked = time.monotonic()
        seen = self._seen[bucket]
        async with seen.lock:
            full = asked - seen.full > full_age
            if not full and asked - seen.short <= age and seen.short > seen.doubted:
                return
            begun = time.monotonic()
            await self._look(bucket, full=full)
            seen.short = begun
            if full:
                seen.full = begun

    def distrust(self, bucket: bytes) -> None:
        """Have the next ``refresh`` of a bucket look, however short the last look is ago."""
        self._seen[bucket].doubted = time.monotonic()

    def close(self) -> None:
        """Close the index."""
        for pool in (self._upkeep_thread, self._thread):
            pool.shutdown()
        self._upkeep_index.close()
        self._index.close()

    async def _look(self, bucket: bytes, *, full: bool) -> None:
        after = "" if full else name_at(time.time_ns() - int(SLACK * 1e9))
        known = await self.ask(lambda index: index.names(bucket, after))
        listed: dict[str, Entry] = {}
        async for page in self._objects.list(packs_of(bucket), f"{packs_of(bucket)}/{after}" if after else ""):
            listed |= {entry.key.rpartition("/")[2]: entry for entry in page}
        if full and (gone := known - listed.keys()):
            await self.ask(lambda index: index.forget(bucket, gone))
        new = sorted(listed.keys() - known)
        async with asyncio.TaskGroup() as tasks:
            heads = {name: tasks.create_task(self._head(listed[name].key)) for name in new if name.endswith(PACK)}
        for name, head in heads.items():
            await self._add(bucket, name, listed[name], head.result())
        for name in new:
            if name.endswith(NOTE):
                await self._note(bucket, name, listed, full=full)

    async def _head(self, key: str) -> list[Record] | BadPack | None:
        """What is in a pack; None when it is gone by now."""
        try:
            start = await self._objects.start(key, GUESS)
            if (size := pack_head(start)) > len(start):
                start = await self._objects.start(key, size)
            return decode_pack(start)
        except NoObject:
            return None
        except (BadPack, BadRange) as error:
            return BadPack(str(error))

    async def _add(self, bucket: bytes, name: str, entry: Entry, head: list[Record] | BadPack | None) -> None:
        if isinstance(head, BadPack):
            log.error("pack %s is left alone: %s", entry.key, head)
            await self.ask(lambda index: index.add_unreadable(bucket, name, entry.size))
        elif head is not None:
            await self.ask(lambda index: index.add(bucket, name, entry.size, entry.time_ns, head))

    async def _note(self, bucket: bytes, name: str, listed: dict[str, Entry], *, full: bool) -> None:
        try:
            gone = gone_from(decode_note(await self._objects.get(listed[name].key)))
        except NoObject:
            return
        except BadPack as error:
            log.error("note %s cannot be read: %s", listed[name].key, error)
            return
        packs = {pack for pack, _ in gone if pack}
        if not full and not packs <= await self.ask(lambda index: index.names(bucket)):
            return  # it came before what it is about, and is looked at again
        await self.ask(lambda index: index.note(bucket, name, gone))
        self._forget(bucket, [chunk for _, chunk in gone])
