"""Takes connections from those who keep more of them than they use.

granian accepts, knows no limit for one address, and ends a connection on which no request has come for a while. What is
missing is here: when half of the places are taken, connections that carry no request are ended, the oldest first,
of the address that has the most. What they have not sent yet they can send again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Collection

LOOK = 1.0
"""Seconds between two looks. A connection that was not there at the last one is left."""

Address = tuple[str, int]

log = logging.getLogger(__name__)


class Guard:
    """Of the connections to ``port``, which may be ``limit`` at a time. ``busy``: clients whose requests are served."""

    def __init__(self, port: int, limit: int, busy: Callable[[], Collection[Address]]) -> None:
        self._port = port
        self._limit = limit
        self._busy = busy
        self._seen: dict[Address, int] = {}
        self._looks = 0

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK)
            if await asyncio.to_thread(_descriptors) <= self._limit // 2:
                self._seen.clear()
                continue
            busy = frozenset(self._busy())
            if ended := await asyncio.to_thread(self._relieve, busy):
                log.warning("more than half of %d connections are open: ended %d without a request", self._limit, ended)

    def _relieve(self, busy: Collection[Address]) -> int:
        """End connections until no more than half are left; how many were ended."""
        self._looks += 1
        there = _connections(self._port)
        before = self._seen
        self._seen = {address: before.get(address, self._looks) for address in there}
        idle: defaultdict[str, list[Address]] = defaultdict(list)
        for address in sorted(before.keys() & there.keys() - busy, key=lambda one: self._seen[one], reverse=True):
            idle[address[0]].append(address)
        too_many = len(there) - self._limit // 2
        ended = 0
        while ended < too_many and any(idle.values()):
            address = max(idle.values(), key=len).pop()
            ended += _end(there[address], address)
        return ended


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _connections(port: int) -> dict[Address, int]:
    """The descriptors of connections to a port, by who is at the other end."""
    found: dict[Address, int] = {}
    for name in os.listdir("/proc/self/fd"):
        if address := _peer(int(name), port):
            found[address] = int(name)
    return found


def _peer(descriptor: int, port: int) -> Address | None:
    try:
        # A descriptor of its own: the other one may be closed and used anew at any moment.
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getsockname()[1] != port:
                return None
            return canonical(connection.getpeername())
    except (OSError, IndexError, TypeError):
        return None  # no socket, none with ports, the one that listens, or gone


def _end(descriptor: int, address: Address) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if canonical(connection.getpeername()) != address:
                return False
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


def canonical(address: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """The address and port of a socket, an IPv4 address as such also where it came in over IPv6."""
    host, port = address[:2]
    if ":" in host:
        found = ipaddress.IPv6Address(host.partition("%")[0])
        host = str(found.ipv4_mapped or found)
    return host, port
