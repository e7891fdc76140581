"""Files that are open here follow what others write to them."""

from __future__ import annotations

import logging

import trio

from mountfs.local.staging import Content
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads

log = logging.getLogger(__name__)

PAGE = 4096
"""Bytes of a page of the kernel's cache."""


class OpenFiles:
    """Contents in use of which nothing waits to be sent."""

    def __init__(self, context: Context, downloads: Downloads, nursery: trio.Nursery) -> None:
        self._context = context
        self._downloads = downloads
        self._nursery = nursery
        self._telling: dict[int, trio.Event] = {}
        """Set when the kernel has the end of a file that has grown."""

    def is_open(self, ino: int) -> bool:
        """Whether a file is in use, so that it has to follow."""
        content = self._context.staging.contents.get(ino)
        return content is not None and not content.writers and not self._context.pending(ino)

    def follow(self, ino: int) -> None:
        """The inode's row and slices are those of what may be another version: let the content in use be that one."""
        context = self._context
        content = context.staging.contents.get(ino)
        if content is None or context.pending(ino):
            return
        size = content.layers.size
        if context.staging.follow(content):
            context.kernel.inode(ino)
            if content.layers.size > size and context.config.options.writeback:
                self._nursery.start_soon(self._tell, content)

    async def _tell(self, content: Content) -> None:
        """Give the kernel the last page of a file that has grown: with write-back it takes nobody's word for a size."""
        end, version = content.layers.size, content.version
        start = (end - 1) // PAGE * PAGE
        try:
            tail = await self._downloads.read(content.bucket, content.layers, start, end)
        except OSError as error:
            log.info("the end of an open file that has grown: %s", error)
            return
        # Over what somebody here writes it would be damage: so no writer now, and those who come wait in `settled`.
        ino = content.ino
        if content.writers or content.version != version or self._context.pending(ino) or ino in self._telling:
            return
        told = self._telling[ino] = trio.Event()
        try:
            self._context.kernel.grown(ino, start, tail)
            await self._context.kernel.settled()
        finally:
            del self._telling[ino]
            told.set()

    async def settled(self, ino: int) -> None:
        """Return when nothing is being put into the kernel's pages of a file: before somebody writes to it."""
        told = self._telling.get(ino)
        if told is not None:
            await told.wait()
