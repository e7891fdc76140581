"""How a mount ends: what is pending is sent, the mount is taken off the tree, what came meanwhile is sent too.

It begins with a command or a signal, or with somebody who unmounts it; then there is nothing left to take off the tree.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from functools import partial

import trio

from mountfs import unmounting
from mountfs.config import MountConfig
from mountfs.errors import Busy, MountError
from mountfs.fuse import session
from mountfs.notify import notify
from mountfs.vfs.filesystem import FileSystem

LAST = 30.0
"""Seconds that the end may take besides waiting for what is pending."""

log = logging.getLogger(__name__)


class Ending:
    """The end of a mount, which may be asked for several times, and refused as long as something uses the mount."""

    def __init__(self, config: MountConfig, fs: FileSystem) -> None:
        self._config = config
        self._fs = fs
        self.device = ""
        """Of the mounted file system, as in ``mounts.Mounted``."""
        self.certain = False
        """Whether it has begun and cannot be refused any more."""
        self._until = math.inf
        """When it does not wait any longer for what is pending, in trio time."""
        self._drains: set[trio.CancelScope] = set()
        self._leaving = trio.Lock()
        self._served = trio.Event()
        self._ended = trio.Event()
        self._left: list[str] = []

    async def signals(self, task_status: trio.TaskStatus[None]) -> None:
        """SIGTERM, SIGINT and SIGHUP drain and end; a second one of the first two does not wait any longer.

        A terminal that closes may lead to several SIGHUP. Under nohup(1) they do not concern us.
        """
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        with trio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                told = False
                async for number in signals:
                    if not told:
                        told = True
                        nursery.start_soon(partial(self._leave, self._config.drain_deadline, lazy=True))
                    elif number != signal.SIGHUP:
                        self._hurry(trio.current_time())
                        session.end()

    async def end(self, deadline: float, *, lazy: bool) -> list[str]:
        """End the mount, waiting up to ``deadline`` seconds for what is pending; names of what is left.

        What still uses the mount gets errors from then on if ``lazy``. Else raises Busy, and the mount goes on.
        """
        await self._leave(deadline, lazy=lazy)
        if not self._ended.is_set():  # else this would be a checkpoint, when all is cancelled already
            await self._ended.wait()
        return self._left

    async def served(self) -> list[str]:
        """The last part, when there are no more requests to answer: send what is left; names of what cannot be."""
        self._served.set()
        self._go(trio.current_time() + self._config.drain_deadline)
        self._fs.files.release_all()
        await self._drained()
        self._left = self._fs.pending_names()
        self._ended.set()
        with trio.move_on_after(LAST):
            async with self._leaving:  # who asked for the end gets to know of it
                return self._left
        return self._left

    async def sync(self, deadline: float) -> list[str]:
        """Everything written so far to the nodes; names of what is left at the deadline (seconds)."""
        until = trio.current_time() + deadline
        if not self._served.is_set():
            with trio.move_on_at(until):
                await _in_thread(unmounting.flush, self._config.mountpoint)
        return await self._fs.drain(max(0.0, until - trio.current_time()))

    async def _leave(self, deadline: float, *, lazy: bool) -> None:
        """Drain and unmount; returns when there are no more requests. Raises as :meth:`end`."""
        until = trio.current_time() + deadline
        self._hurry(until)  # also whoever is draining already
        async with self._leaving:
            if self._served.is_set():
                return
            self._hurry(until)
            if lazy:
                self._go(until)
            async with trio.open_nursery() as nursery:
                # Whoever unmounts it: there is nothing left to do here once the kernel has no more requests.
                nursery.start_soon(self._cancel_when_served, nursery)
                try:
                    await self._drained()
                    await _in_thread(unmounting.leave, self._config.mountpoint, self.device)
                except MountError as error:
                    busy = error
                else:
                    await trio.sleep(LAST)  # the end of the session cuts it short
                    busy = Busy(f"{self._config.mountpoint}: unmounted, but something that is not seen here goes on")
                if lazy:
                    log.warning("%s; unmounting all the same", busy)
                    await self._detach()
                nursery.cancel_scope.cancel()
            if not lazy and not self._served.is_set():
                self._until = math.inf
                raise busy

    async def _cancel_when_served(self, nursery: trio.Nursery) -> None:
        await self._served.wait()
        nursery.cancel_scope.cancel()

    async def _detach(self) -> None:
        try:
            await _in_thread(unmounting.detach, self._config.mountpoint, self.device)
        except (MountError, OSError) as error:
            log.warning("%s", error)
        session.end()

    def _go(self, until: float) -> None:
        """From now on nothing refuses the end; the service manager learns how long it may take."""
        self._hurry(until)
        self.certain = True
        seconds = max(0.0, self._until - trio.current_time()) + LAST
        count = self._fs.engine.context.journal.count
        notify(f"STOPPING=1\nSTATUS=sending {count} changes\nEXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def _hurry(self, until: float) -> None:
        """Wait no longer than ``until`` (trio time) for what is pending."""
        self._until = min(self._until, until)
        for scope in self._drains:
            scope.deadline = self._until

    async def _drained(self) -> None:
        """Return when everything written so far is on the nodes, or it is not to be waited for any longer."""
        with trio.CancelScope(deadline=self._until) as scope:
            self._drains.add(scope)
            try:
                await self.sync(math.inf)
            finally:
                self._drains.discard(scope)


async def _in_thread(call: Callable[..., None], *args: object) -> None:
    await trio.to_thread.run_sync(call, *args, abandon_on_cancel=True)
