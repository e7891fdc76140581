"""Telling the kernel what changed elsewhere, so that it may otherwise trust its caches for long."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

import pyfuse3
import trio

from mountfs.sync.context import Kernel

log = logging.getLogger(__name__)


class Invalidation(Kernel):
    """A thread that passes notifications on.

    Not the FUSE thread: the kernel may make a notification wait for a request that only that thread
    can answer.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, bytes | None] | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="invalidation", daemon=True)
        self._thread.start()

    def entry(self, parent: int, name: bytes) -> None:
        self._queue.put((parent, name))

    def inode(self, ino: int) -> None:
        self._queue.put((ino, None))

    def grown(self, ino: int, offset: int, tail: bytes) -> None:
        self._queue.put(partial(_store, ino, offset, tail))

    async def settled(self) -> None:
        told, token = trio.Event(), trio.lowlevel.current_trio_token()
        self._queue.put(lambda: token.run_sync_soon(told.set))
        await told.wait()

    def close(self) -> None:
        """Pass on what is queued, then end."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if callable(item):
                item()
                continue
            ino, name = item
            try:
                if name is None:
                    pyfuse3.invalidate_inode(pyfuse3.InodeT(ino))
                else:
                    pyfuse3.invalidate_entry(pyfuse3.InodeT(ino), pyfuse3.FileNameT(name))
            except OSError as error:
                # Mostly ENOENT: the kernel does not know the file, so there is nothing to forget.
                log.debug("invalidating %s: %s", item, error)


def _store(ino: int, offset: int, data: bytes) -> None:
    """Put bytes into the kernel's pages of a file; it is as long as they reach from then on."""
    try:
        pyfuse3.notify_store(pyfuse3.InodeT(ino), offset, data)
    except OSError as error:
        log.debug("the end of %d: %s", ino, error)  # mostly ENOENT, as above
