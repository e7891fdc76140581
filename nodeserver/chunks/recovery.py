"""What is mended when a store is opened, and how a bucket goes in one step."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from nodeserver.chunks.disk import sync_dir
from nodeserver.chunks.record import BadPack

if TYPE_CHECKING:
    from nodeserver.chunks.index import Index
    from nodeserver.chunks.pack import Packs

log = logging.getLogger(__name__)


def recover(root: Path, packs: Packs, index: Index) -> None:
    """Delete what was left half done, and bring index and packs into agreement."""
    for leftover in (root / "tmp").iterdir():
        leftover.unlink()
    for leftover in (root / "trash").iterdir():
        shutil.rmtree(leftover)
    known = index.packs()
    for directory in root.iterdir():
        if not (bucket := bucket_of(directory)):
            continue
        for number in packs.numbers(bucket):
            _recover_pack(packs, index, bucket, number, known.pop((bucket, number), 0))
    for bucket, number in known:
        if gone := index.cut(bucket, number, 0):
            log.error("pack %s is gone, and %d chunks with it", packs.path(bucket, number), gone)


def bucket_of(directory: Path) -> bytes | None:
    """The id of the bucket whose chunks a directory of the store has; None when it is for something else."""
    try:
        return bytes.fromhex(directory.name)
    except ValueError:
        return None


def discard(root: Path, bucket: bytes) -> Path | None:
    """Take a bucket's directory out of the store in one step; where it waits to be deleted."""
    trash = root / "trash" / uuid4().hex
    try:
        os.rename(root / bucket.hex(), trash)
    except FileNotFoundError:
        return None
    sync_dir(root)
    return trash


def _recover_pack(packs: Packs, index: Index, bucket: bytes, number: int, indexed: int) -> None:
    path = packs.path(bucket, number)
    size = path.stat().st_size
    if size == indexed:
        return
    if size < indexed:
        gone = index.cut(bucket, number, size)
        log.error("pack %s ends at byte %d, before %d: lost %d chunks", path, size, indexed, gone)
        return
    try:
        found = packs.recover(bucket, number, indexed)
    except BadPack as error:
        log.error("pack %s is left alone: %s", path, error)
        return
    if found:
        index.add(bucket, found)
        log.warning(
            "pack %s: found %d chunks that were not indexed, cut %d bytes", path, len(found.records), size - found.end
        )
