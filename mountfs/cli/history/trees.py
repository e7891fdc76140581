"""Whole trees, as they are or were."""

from __future__ import annotations

import stat

from mountfs.cli.history.node import Talk
from mountfs.cli.progress import Count
from nodeserver.protocol.wire import MAX_LISTING, Entry, File, FileId


async def tree(talk: Talk, top: File, at: int | None, count: Count | None = None) -> list[Entry]:
    """A file or directory, as the empty path, and all below it as of a commit, None for now; parents first."""
    found = [Entry(b"", top)]
    if stat.S_ISDIR(top.mode):
        found += await _below(talk, top.id, at, count or Count())
    return found


async def _below(talk: Talk, directory: FileId, at: int | None, count: Count) -> list[Entry]:
    found: list[Entry] = []
    more = True
    while more:
        after = found[-1].name if found else b""
        page = await talk.client.tree(talk.name, directory, at, after, MAX_LISTING)
        at = page.seq if at is None else at  # the pages are to fit together
        found += page.entries
        count.done = len(found)
        more = page.more
    return found
