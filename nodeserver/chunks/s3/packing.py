"""Writing packs, and copying what is needed out of those that are mostly dead or very small."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from nodeserver.chunks.compaction import WASTE
from nodeserver.chunks.reading import check
from nodeserver.chunks.s3.catalogue import SLACK
from nodeserver.chunks.s3.format import PACK, encode_pack, name_at, new_name
from nodeserver.chunks.s3.keys import packs_of
from nodeserver.chunks.s3.objects import NoObject
from nodeserver.content.codec import CorruptChunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from nodeserver.chunks.s3.catalogue import Catalogue
    from nodeserver.chunks.s3.index import Pack
    from nodeserver.chunks.s3.objects import Objects
    from nodeserver.protocol.wire import ChunkId

TINY = 1 << 20
"""Packs of fewer bytes are put together with others."""
FEW = 16
"""Tiny packs that are left alone."""
GROUP = 16 << 20
"""Bytes that are needed of old packs, in one new pack, about."""

log = logging.getLogger(__name__)


async def write_pack(
    objects: Objects, catalogue: Catalogue, bucket: bytes, chunks: dict[ChunkId, bytes], behind: str
) -> int:
    """Store chunks as a pack with a name behind another's, and enter it; how many bytes it has."""
    name = new_name(PACK, behind)
    data, records = encode_pack(chunks)
    await objects.put(f"{packs_of(bucket)}/{name}", data)
    now = time.time_ns()
    await catalogue.ask(lambda index: index.add(bucket, name, len(data), now, records))
    return len(data)


async def compact(objects: Objects, catalogue: Catalogue, bucket: bytes, step: Callable[[], Awaitable[None]]) -> int:
    """Put what is needed of wasteful packs into new ones and delete them; how many bytes came free."""
    await catalogue.refresh(bucket, 0, 0)
    packs = await catalogue.ask_slowly(lambda index: index.packs(bucket))
    freed = 0
    for group in _groups(_victims(packs)):
        freed += await _rewrite(objects, catalogue, bucket, group)
        await step()
    # A pack that a note is about may still be on its way to be listed for as long as clocks differ.
    before = name_at(time.time_ns() - int(2 * SLACK * 1e9))
    if notes := await catalogue.ask_slowly(lambda index: index.spent_notes(bucket, before)):
        await objects.delete([f"{packs_of(bucket)}/{name}" for name in notes])
        await catalogue.ask(lambda index: index.forget(bucket, notes))
    return freed


def _victims(packs: list[Pack]) -> list[Pack]:
    wasteful = [pack for pack in packs if pack.live <= (1 - WASTE) * pack.size]
    tiny = [pack for pack in packs if pack.size < TINY and pack not in wasteful]
    return wasteful + (tiny if len(tiny) > FEW else [])


def _groups(packs: list[Pack]) -> Iterator[list[Pack]]:
    group: list[Pack] = []
    for pack in packs:
        group.append(pack)
        if sum(one.live for one in group) >= GROUP:
            yield group
            group = []
    if group:
        yield group


async def _rewrite(objects: Objects, catalogue: Catalogue, bucket: bytes, group: list[Pack]) -> int:
    """One new pack for a group of old ones; those with damaged chunks stay."""
    chunks: dict[ChunkId, bytes] = {}
    done: list[Pack] = []
    for pack in group:
        live = await catalogue.ask(lambda index, name=pack.name: index.live(bucket, name))  # type: ignore[misc]
        if sum(place.length for _, place in live) != pack.live:
            continue  # it changed meanwhile: the next time
        try:
            data = await objects.get(f"{packs_of(bucket)}/{pack.name}") if live else b""
            items = [(chunk, data[place.offset : place.offset + place.length]) for chunk, place in live]
            check(items)
        except NoObject:
            continue
        except CorruptChunk as error:
            log.error("pack %s/%s is kept: %s", packs_of(bucket), pack.name, error)
            continue
        chunks.update(items)
        done.append(pack)
    newest = max(pack.name for pack in group)
    written = await write_pack(objects, catalogue, bucket, chunks, newest) if chunks else 0
    await objects.delete([f"{packs_of(bucket)}/{pack.name}" for pack in done])
    await catalogue.ask(lambda index: index.forget(bucket, [pack.name for pack in done]))
    return sum(pack.size for pack in done) - written
