"""Who waits for commits, and how they learn of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

POLL = 0.5
"""Seconds between two looks for commits that other servers made, while somebody waits."""

Newest = Callable[[], Awaitable[Mapping[int, int]]]


class News:
    """Wakes those who wait for commits to a bucket.

    With ``newest``, which tells the last commit of each bucket, also for those that came through another server: one
    query for all who wait, and none when nobody does.
    """

    def __init__(self, newest: Newest | None = None) -> None:
        self._events: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._newest = newest
        self._look: asyncio.Future[Mapping[int, int]] | None = None
        self._next_look = 0.0
        self.closed = False

    def of(self, bucket: int) -> asyncio.Event:
        """What is set at the next commit; to be asked for before looking what there is."""
        return self._events[bucket]

    def tell(self, bucket: int) -> None:
        """There was a commit, or the bucket was deleted."""
        if event := self._events.pop(bucket, None):
            event.set()

    def nudge(self) -> None:
        """There is something else to be told than commits."""
        for bucket in list(self._events):
            self.tell(bucket)

    def close(self) -> None:
        """Wake everybody, for good."""
        self.closed = True
        for event in self._events.values():
            event.set()

    async def wait(self, news: asyncio.Event, bucket: int, seq: int, until: float) -> None:
        """Wait for ``news``, or a commit other than ``seq``; at the latest until ``until`` of the monotonic clock.

        Raises what ``newest`` raises.
        """
        while not news.is_set() and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if self._newest is None else min(left, POLL)):
                    await news.wait()
            if self._newest and not news.is_set() and (await self._look_up(self._newest)).get(bucket) != seq:
                return

    async def _look_up(self, newest: Newest) -> Mapping[int, int]:
        if self._look is None or time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL / 2
            self._look = asyncio.ensure_future(newest())
        return await asyncio.shield(self._look)
