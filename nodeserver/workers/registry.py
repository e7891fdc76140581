"""Work that goes on behind the requests: who does what, when, how far it is, and whether it may."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from nodeserver.metadata.errors import Unavailable
from nodeserver.protocol.wire import WorkerStatus

RETRY = 60.0
"""Seconds until the next try after a failure."""
PAUSE = 1.0
"""Seconds that a run rests at most after a step; it rests as long as the step took."""

log = logging.getLogger(__name__)


class NoWorker(LookupError):
    """There is no worker of that name."""


class Interrupted(Exception):
    """A run was paused or the server stops; the next one goes on."""


class Outcome(NamedTuple):
    """How a run ended: a line for people, and in how many seconds there is more to do, if that is known."""

    summary: str
    again: float | None = None


class Run:
    """One run of a worker, in steps."""

    def __init__(
        self, interrupted: Callable[[], bool] = bool, rate: Callable[[], float] = float, *, ordered: bool = False
    ) -> None:
        self.ordered = ordered
        """Whether somebody asked for it, rather than the clock."""
        self.done = 0
        self.total = 0
        self._interrupted = interrupted
        self._rate = rate
        self.began = self._since = self._spent = time.monotonic()
        """In seconds of the monotonic clock."""

    async def step(self, done: int = 0) -> None:
        """Between two steps: let others have as much time as this one took. Raises ``Interrupted``.

        Whatever a step leaves must be whole: the process may end there. Not by a low priority of threads: one that
        waits for the processor with the interpreter's lock would hold up all others.
        """
        self.done += done
        if self._interrupted():
            raise Interrupted
        await asyncio.sleep(min(time.monotonic() - self._since, PAUSE))
        self._since = time.monotonic()

    async def spend(self, size: int) -> None:
        """Account for ``size`` bytes that were read or moved: rest as long as the worker's rate asks for."""
        rate, now = self._rate(), time.monotonic()
        self._spent = max(self._spent, now - PAUSE) + (size / rate if rate else 0.0)
        await asyncio.sleep(max(0.0, self._spent - now))


class Worker:
    """Does ``work`` every ``interval`` seconds, when it is woken, and when somebody wants it done now."""

    def __init__(self, name: str, work: Callable[[Run], Awaitable[Outcome]], *, interval: float | None = None) -> None:
        self.name = name
        self._work = work
        self._interval = interval
        self._due: float | None = 0.0
        self._paused = self._stopping = False
        self._changed = asyncio.Event()
        self._run: Run | None = None
        self._ordered = False
        """Whether the present run was asked for, and so goes on although the worker is paused."""
        self._waiting: list[asyncio.Future[None]] = []
        self._last = Run()
        self._last_ns = 0
        self._summary = self._error = ""
        self.rate = 0.0
        """Bytes a second that a run reads or moves at most; 0: as fast as it goes, resting as long as it works."""

    def wake(self, delay: float = 0.0) -> None:
        """There is something to do, at the latest in ``delay`` seconds."""
        due = time.monotonic() + delay
        self._due = due if self._due is None else min(self._due, due)
        self._changed.set()

    async def run_now(self) -> WorkerStatus:
        """Make a run that begins now, or when the present one is over, also when paused; answers at its end.

        Raises ``Interrupted`` when the server stops.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._changed.set()
        await done
        return self.status()

    def pause(self) -> WorkerStatus:
        """End the present run at its next step and start none until ``resume``."""
        self._paused, self._ordered = True, False
        return self.status()

    def resume(self) -> WorkerStatus:
        """Run again when it is time."""
        self._paused = False
        self._changed.set()
        return self.status()

    def throttle(self, rate: float) -> WorkerStatus:
        """Read or move at most ``rate`` bytes a second, 0 for no limit, until the server stops."""
        self.rate = rate
        return self.status()

    def stop(self) -> None:
        """End the present run at its next step, for good."""
        self._stopping = True
        for done in self._waiting:
            if not done.done():
                done.set_exception(Interrupted("the server stops"))
        self._changed.set()

    def status(self) -> WorkerStatus:
        """What it does and did."""
        run = self._run or self._last
        next_ns = 0
        if self._due is not None and not self._paused:
            next_ns = time.time_ns() + int(max(0.0, self._due - time.monotonic()) * 1e9)
        state = "running" if self._run else "paused" if self._paused else "idle"
        return WorkerStatus(
            self.name, state, self._last_ns, next_ns, run.done, run.total, self._summary, self._error, self.rate
        )

    @property
    def seconds_left(self) -> float:
        """Until the present run is through, if it goes on as it did; 0 when there is none, or it is not known."""
        run = self._run
        if run is None or not run.done or run.total <= run.done:
            return 0.0
        return (time.monotonic() - run.began) * (run.total - run.done) / run.done

    async def loop(self) -> None:
        """Work until stopped."""
        while await self._wait():
            waiting, self._waiting = self._waiting, []
            self._ordered = bool(waiting)
            self._due = None
            self._run = Run(self._interrupted, lambda: self.rate, ordered=self._ordered)
            try:
                await self._once(self._run)
            finally:
                self._last, self._run = self._run, None
                self._last_ns = time.time_ns()
                for done in waiting:
                    if not done.done():
                        done.set_result(None)

    async def _wait(self) -> bool:
        """Wait until there is something to do; False when the server stops."""
        while not self._stopping:
            self._changed.clear()
            if self._waiting:
                return True
            left = None if self._due is None or self._paused else self._due - time.monotonic()
            if left is not None and left <= 0:
                return True
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue
        return False

    async def _once(self, run: Run) -> None:
        again = self._interval
        try:
            self._summary, sooner = await self._work(run)
            self._error = ""
            again = min((seconds for seconds in (again, sooner) if seconds is not None), default=None)
        except Interrupted:
            self._summary, self._error, again = "interrupted", "", 0.0
        except Unavailable as error:
            log.warning("worker %s: %s; next try in %g s", self.name, error, RETRY)
            self._error, again = str(error), RETRY
        except Exception as error:
            log.exception("worker %s failed, next try in %g s", self.name, RETRY)
            self._error, again = f"{type(error).__name__}: {error}", RETRY
        if again is not None:
            self.wake(again)

    def _interrupted(self) -> bool:
        return self._stopping or (self._paused and not self._ordered)


class Workers:
    """The workers of a server, by name."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = {worker.name: worker for worker in workers}

    def __getitem__(self, name: str) -> Worker:
        """Raises ``NoWorker``."""
        if name not in self._workers:
            raise NoWorker(f"there is no worker {name!r}")
        return self._workers[name]

    def statuses(self) -> list[WorkerStatus]:
        """What each does and did."""
        return [worker.status() for worker in self._workers.values()]

    def stop(self) -> None:
        """Let all end; who waits for a run is told."""
        for worker in self._workers.values():
            worker.stop()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """They work inside the block."""
        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers.values():
                tasks.create_task(worker.loop())
            try:
                yield
            finally:
                self.stop()
