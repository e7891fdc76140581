"""Copying what is needed out of packs that are mostly dead. Functions for the threads of the store."""

from __future__ import annotations

import logging
import mmap
from itertools import islice
from typing import TYPE_CHECKING

from nodeserver.chunks.index import Place
from nodeserver.chunks.reading import check
from nodeserver.chunks.record import PACK_HEADER, BadPack, read_header, records
from nodeserver.content.codec import CorruptChunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodeserver.chunks.index import Index
    from nodeserver.chunks.pack import Packs

WASTE = 0.5
"""The share of a pack that must be dead before it is worth copying the rest."""
AT_ONCE = 64
"""Records looked at in one step."""

Moving = list[tuple[bytes, Place, bytes]]
"""Chunks with the places they lie at and their stored forms."""

log = logging.getLogger(__name__)


def survivors(packs: Packs, index: Index, bucket: bytes, number: int) -> Iterator[Moving]:
    """What of a pack is needed, in steps that may be empty; damaged chunks are left out. Raises ``OSError``."""
    path = packs.path(bucket, number)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            found = records(view, read_header(view[:PACK_HEADER]), PACK_HEADER)
        except BadPack as error:
            log.error("pack %s cannot be compacted: %s", path, error)
            return
        while some := list(islice(found, AT_ONCE)):
            places = index.find(bucket, [record.id for record in some])
            moving: Moving = []
            for chunk, offset, length in some:
                place, stored = Place(number, offset, length), view[offset : offset + length]
                if places.get(chunk) == place and _intact(chunk, stored):
                    moving.append((chunk, place, stored))
            yield moving


def move(packs: Packs, index: Index, bucket: bytes, moving: Moving) -> int:
    """Append chunks that still lie where they were to the newest pack; how many bytes. Raises ``OSError``."""
    places = index.find(bucket, [chunk for chunk, _, _ in moving])
    chunks = {chunk: stored for chunk, place, stored in moving if places.get(chunk) == place}
    if chunks:
        with packs.append(bucket, chunks) as appended:
            index.add(bucket, appended)
    return sum(map(len, chunks.values()))


def retire(packs: Packs, index: Index, bucket: bytes, number: int) -> int:
    """Delete a sealed pack that nothing is left in; how many bytes it had. Raises ``OSError``."""
    if index.retire(bucket, number):
        return packs.remove(bucket, number)
    log.error("pack %s has damaged chunks and is kept", packs.path(bucket, number))
    return 0


def _intact(chunk: bytes, stored: bytes) -> bool:
    try:
        check([(chunk, stored)])
    except CorruptChunk as error:
        log.error("%s", error)
        return False
    return True
