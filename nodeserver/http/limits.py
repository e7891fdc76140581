"""What one server takes on at a time, and how much of it one address can have.

Three things run out: descriptors, memory for bodies, and places for those who wait for news. Each has a limit; an
address gets at most half of it while others want some. Nobody who is refused here holds anything.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from starlette.requests import HTTPConnection

from nodeserver.access.tokens import Identity
from nodeserver.http.problems import Refused
from nodeserver.protocol.errors import Code

FILES = 512
"""Descriptors for everything that is no connection of a client: databases, packs, connections to other nodes."""
DESCRIPTORS = 32_768
"""As many as a server wants."""
READERS = 32 << 20
WRITERS = 512 << 20
"""Bytes of bodies that are held at a time, of those who may read and of those who may write."""
PATIENCE = 20.0
"""Seconds that a request waits for room for its body."""

T = TypeVar("T")


def raise_descriptors() -> int:
    """Let this process have as many descriptors as it wants and may; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def connections(descriptors: int) -> int:
    """How many clients may be connected to a process that has so many descriptors."""
    return max(128, descriptors - FILES) if descriptors > 2 * FILES else max(128, descriptors // 2)


def address_of(request: HTTPConnection) -> str:
    """Where a request came from, without the port."""
    return request.client.host if request.client else ""


class Room:
    """Bytes of memory, for those who say how many they need before they take them.

    Who asks for more than there is waits, and is served in the order of asking as far as there is room; an address gets
    no more than half.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._taken: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    async def take(self, address: str, size: int) -> Callable[[], None]:
        """Room for ``size`` bytes, until what is returned is called.

        Raises ``Refused`` when there is none for ``PATIENCE`` seconds.
        """
        size = min(size, self._size // 2)
        if self._fits(address, size):  # so nobody waits who could be served
            self._hand_out(address, size)
        else:
            await self._turn(address, size)
        return lambda: self._give_back(address, size)

    async def _turn(self, address: str, size: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = address, size
        try:
            async with asyncio.timeout(PATIENCE):
                await place
        except BaseException as error:
            if self._waiting.pop(place, None) is None:
                self._give_back(address, size)
            if isinstance(error, TimeoutError):
                raise Refused(Code.BUSY, "too many bodies are on their way") from error
            raise

    def _fits(self, address: str, size: int) -> bool:
        return size <= self._free and self._taken[address] + size <= self._size // 2

    def _hand_out(self, address: str, size: int) -> None:
        self._free -= size
        self._taken[address] += size

    def _give_back(self, address: str, size: int) -> None:
        self._free += size
        self._taken[address] -= size
        if not self._taken[address]:
            del self._taken[address]
        for place, (waiting, wanted) in list(self._waiting.items()):
            if self._fits(waiting, wanted):
                self._hand_out(waiting, wanted)
                del self._waiting[place]
                if not place.done():
                    place.set_result(None)
                else:  # cancelled in this moment
                    self._give_back(waiting, wanted)


class Waiting:
    """Long polls: each costs little, but something. When there are too many, the oldest has waited long enough.

    Of the address that asks when it has half of the places, else of the one that has most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of: dict[str, dict[asyncio.Timeout, None]] = {}
        self._count = 0

    async def wait(self, address: str, answer: Awaitable[T]) -> T | None:
        """What ``answer`` comes to; None when others need the place before."""
        own = self._of.setdefault(address, {})
        if self._count >= self._limit:
            _end_oldest(own if len(own) >= self._limit // 2 else max(self._of.values(), key=len))
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                own[timeout] = None
                self._count += 1
                return await answer
        except TimeoutError:
            if not timeout.expired():
                raise
            return None
        finally:
            self._count -= 1
            own.pop(timeout, None)
            if not own and self._of.get(address) is own:
                del self._of[address]


def _end_oldest(polls: dict[asyncio.Timeout, None]) -> None:
    if polls:
        oldest = next(iter(polls))
        del polls[oldest]
        oldest.reschedule(asyncio.get_running_loop().time())


class Limits:
    """Those of one server."""

    def __init__(self, clients: int) -> None:
        """``clients`` may be connected."""
        self.clients = clients
        self.readers = Room(READERS)
        self.writers = Room(WRITERS)
        self.waiting = Waiting(clients * 3 // 4)


def limits(request: HTTPConnection) -> Limits:
    """Those of the server that a request came to."""
    return cast(Limits, request.scope["limits"])


async def make_room(request: HTTPConnection, size: int) -> None:
    """Take room for a body of ``size`` bytes, until the request is answered. Raises ``Refused``."""
    mine = limits(request)
    who = cast(Identity, request.scope["identity"])
    room = mine.readers if who.right in ("read", "join") else mine.writers
    request.scope["leave"].append(await room.take(address_of(request), size))
