"""What the server said about the past, kept for a while.

While nobody answers, what was said before has to do, however old.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import trio

from mountfs.local.buckets import BucketState
from mountfs.sync.context import Context
from mountfs.sync.errors import deadline, os_error
from mountfs.vfs.history.names import version_names
from nodeserver.client import ClientError, Refused
from nodeserver.protocol import wire
from nodeserver.protocol.errors import Code

MOVING = 1.0
"""Seconds for which the newest commit is the one of a moment that later commits may still be before."""
PRESENT = 60.0
"""Seconds for which versions and names are what they were, when nothing says otherwise."""
PAST = 300.0
"""Seconds for which a tree of then is what it was: only retention and purges take something out of it."""
KEPT = 50_000
"""Versions, names and entries kept in all."""
PAGE = 5000
"""Names or entries asked for in one request."""
MANIFESTS = 1000
"""Of a name with more versions than this, manifests are fetched when they are needed."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Past:
    """The versions of a name, oldest first, by what they are called."""

    versions: dict[bytes, wire.Version]
    fetched_ns: int

    @property
    def current(self) -> bytes | None:
        """What the newest version of the live file is called."""
        return next((name for name, version in reversed(self.versions.items()) if version.current), None)

    @property
    def previous(self) -> bytes | None:
        """What the version before the current one is called; without a current one, the last."""
        names = list(self.versions)
        current = self.current
        index = len(names) if current is None else names.index(current)
        return names[index - 1] if index else None


class Page(NamedTuple):
    """Part of a listing: names after a given one, and the last of them if more follow."""

    entries: dict[bytes, wire.File]
    last: bytes | None
    fetched_ns: int


class _Kept(NamedTuple):
    answer: Any
    until: float
    stamp: object
    weight: int


class Answers:
    """Questions to the server. All raise OSError; None or nothing stands for what was not there."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._client = context.client
        self._kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()
        self._weight = 0

    async def moment(self, bucket: BucketState, time_ns: int) -> tuple[int, bool]:
        """The newest commit not after a time, 0 when that is before the first; and whether it stays that."""

        async def ask() -> tuple[int, bool]:
            seq = (await self._client.moment(bucket.name, time_ns)).seq
            return seq, seq < bucket.known

        key, stamp = ("moment", bucket.id, time_ns), bucket.known if time_ns > time.time_ns() else None
        return await self._ask(key, ask, lambda found: PAST if found[1] else MOVING, stamp)

    async def names(self, bucket: BucketState, directory: bytes, after: bytes) -> wire.PastNames:
        """A page of the names that have or had content in a directory."""

        async def ask() -> wire.PastNames:
            return await self._client.names(bucket.name, directory, after, PAGE)

        key = ("names", bucket.id, directory, after)
        missing = wire.PastNames(bucket.known, [])
        return await self._ask(
            key, lambda: _fresh(bucket, ask, missing), PRESENT, bucket.known, lambda answer: len(answer.names)
        )

    async def versions(self, bucket: BucketState, directory: bytes, name: bytes, stamp: object) -> Past:
        """The history of a name; asked for anew when ``stamp`` is another one than before."""

        async def page(after: bytes) -> wire.Versions:
            async def ask() -> wire.Versions:
                return await self._client.versions(bucket.name, directory, name, after, wire.MAX_VERSIONS)

            return await _fresh(bucket, ask, wire.Versions(bucket.known, []))

        async def ask() -> Past:
            fetched = time.time_ns()
            answer = await page(b"")
            found = answer.versions
            while answer.more:
                answer = await page(found[-1].id)
                found += answer.versions
            if len(found) > MANIFESTS:
                for version in found:
                    version.manifest = None
            return Past(version_names(name, found), fetched)

        key = ("versions", bucket.id, directory, name)
        return await self._ask(key, ask, PRESENT, stamp, lambda past: len(past.versions))

    async def version(self, bucket: BucketState, version: bytes) -> wire.Version | None:
        """A version with its whole manifest."""

        async def ask() -> wire.Version | None:
            return await self._client.version(bucket.name, version)

        key = ("version", bucket.id, version)
        return await self._ask(
            key, lambda: _unless_gone(ask, None), PRESENT, weight=lambda found: _slices(found.manifest) if found else 0
        )

    async def file(
        self, bucket: BucketState, file: bytes, at: int, stamp: object = None
    ) -> tuple[wire.File | None, int]:
        """A file as of a commit, and when that was said (ns); asked for anew when ``stamp`` is another one."""

        async def ask() -> tuple[wire.File | None, int]:
            return (await self._client.file(bucket.name, file, at=at)).file, time.time_ns()

        missing = None, time.time_ns()
        return await self._ask(("file", bucket.id, file, at), lambda: _unless_gone(ask, missing), PAST, stamp)

    async def lookup(self, bucket: BucketState, directory: bytes, name: bytes, at: int) -> tuple[wire.File | None, int]:
        """What was under a name as of a commit, and when that was said (ns)."""

        async def ask() -> tuple[wire.File | None, int]:
            return (await self._client.lookup(bucket.name, directory, name, at=at)).file, time.time_ns()

        key, missing = ("lookup", bucket.id, directory, name, at), (None, time.time_ns())
        return await self._ask(key, lambda: _unless_gone(ask, missing), PAST)

    async def entries(self, bucket: BucketState, directory: bytes, at: int, after: bytes) -> Page:
        """A page of a directory as of a commit; asked for anew after others: what is on it may be deleted by now."""

        async def ask() -> Page:
            fetched = time.time_ns()
            answer = await self._client.entries(bucket.name, directory, after, PAGE, at=at)
            entries = {entry.name: entry.file for entry in answer.entries}
            return Page(entries, answer.entries[-1].name if answer.more else None, fetched)

        key, missing = ("entries", bucket.id, directory, at, after), Page({}, None, 0)
        return await self._ask(
            key, lambda: _unless_gone(ask, missing), PAST, bucket.known, lambda page: len(page.entries)
        )

    async def _ask(
        self,
        key: tuple[object, ...],
        ask: Callable[[], Awaitable[T]],
        lasts: float | Callable[[T], float],
        stamp: object = None,
        weight: Callable[[T], int] = lambda answer: 0,
    ) -> T:
        """The answer that is kept, or a new one, valid for so long and while the stamp is the same."""
        kept = self._kept.get(key)
        if kept and kept.stamp == stamp and trio.current_time() < kept.until:
            self._kept.move_to_end(key)
            return kept.answer  # type: ignore[no-any-return]
        try:
            with deadline(self._context.config.metadata_deadline):
                answer = await ask()
        except (ClientError, OSError) as error:
            failure = os_error(error) if isinstance(error, ClientError) else error
            if failure.errno == errno.EIO and kept:
                return kept.answer  # type: ignore[no-any-return]
            raise failure from error
        self._keep(
            key, answer, trio.current_time() + (lasts(answer) if callable(lasts) else lasts), stamp, weight(answer)
        )
        return answer

    def _keep(self, key: tuple[object, ...], answer: object, until: float, stamp: object, weight: int) -> None:
        self._drop(key)
        self._kept[key] = _Kept(answer, until, stamp, weight + 1)
        self._weight += weight + 1
        while self._weight > KEPT and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[object, ...]) -> None:
        kept = self._kept.pop(key, None)
        self._weight -= kept.weight if kept else 0


Dated = TypeVar("Dated", wire.PastNames, wire.Versions)


async def _fresh(bucket: BucketState, ask: Callable[[], Awaitable[Dated]], missing: Dated) -> Dated:
    """An answer that is not older than what we know."""
    while True:
        answer = await _unless_gone(ask, missing)
        if answer.seq >= bucket.known or answer is missing:
            return answer


async def _unless_gone(ask: Callable[[], Awaitable[T]], missing: T) -> T:
    """The answer, or ``missing`` when the server does not know the file, or not yet."""
    try:
        return await ask()
    except Refused as refused:
        if refused.code not in (Code.NO_FILE, Code.HISTORY_GONE):
            raise
        return missing


def _slices(manifest: wire.Manifest | None) -> int:
    return len(manifest.slices) if manifest else 0
