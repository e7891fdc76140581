"""One server at a time does the work of all that share a database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from nodeserver.metadata import leases
from nodeserver.metadata.errors import Unavailable
from nodeserver.metadata.store import Metadata
from nodeserver.placement.map import NodeId
from nodeserver.workers.registry import Interrupted, Outcome, Run

TERM = 60.0
"""Seconds that a lease lasts; it is renewed long before."""
AGAIN, SOON = 30.0, 0.5
"""Seconds until a server looks again whether the work is its own now; while somebody waits."""


def led(
    work: Callable[[Run], Awaitable[Outcome]], name: str, metadata: Metadata, own: NodeId
) -> Callable[[Run], Awaitable[Outcome]]:
    """``work``, done by the one server that holds the lease ``name``; all of it where the database is not shared."""
    if not metadata.shared:
        return work

    return _Led(work, name, metadata, own).run


class _Led:
    def __init__(self, work: Callable[[Run], Awaitable[Outcome]], name: str, metadata: Metadata, own: NodeId) -> None:
        self._work = work
        self._name = name
        self._metadata = metadata
        self._own = own

    async def run(self, run: Run) -> Outcome:
        """Work as long as the lease can be had; a run that somebody asked for waits until the other server is done."""
        while not await self._take():
            if not run.ordered:
                return Outcome("another server does this", AGAIN)
            await asyncio.sleep(SOON)
            await run.step()
        task = asyncio.ensure_future(self._work(run))
        renewing = asyncio.create_task(self._renew(task))
        try:
            return await task
        except asyncio.CancelledError:
            if renewing.done():
                raise Interrupted from None
            task.cancel()
            raise
        finally:
            renewing.cancel()
            with contextlib.suppress(Unavailable):
                await self._metadata.write_across(leases.give_back, self._name, self._own)

    async def _take(self) -> bool:
        now = time.time_ns()
        return await self._metadata.write_across(leases.take, self._name, self._own, now, now + int(TERM * 1e9))

    async def _renew(self, task: asyncio.Task[Outcome]) -> None:
        """Until the work is done; it is broken off when the lease cannot be kept."""
        until = time.monotonic() + TERM
        while time.monotonic() < until - TERM / 4:
            await asyncio.sleep(TERM / 4)
            with contextlib.suppress(Unavailable):
                if not await self._take():
                    break
                until = time.monotonic() + TERM
        task.cancel()
