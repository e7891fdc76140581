"""The background half of a mount: everything that talks to the node server."""

from __future__ import annotations

import contextlib
import errno
import logging
import random

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import Inode
from mountfs.sync.committer import Committer
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from mountfs.sync.errors import deadline, os_error
from mountfs.sync.openfiles import OpenFiles
from mountfs.sync.remote import Remote
from mountfs.sync.uploads import Uploads
from nodeserver.client import ClientError, Refused, State
from nodeserver.protocol import wire
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import ROOT_INO

log = logging.getLogger(__name__)

FEED_WAIT = 25.0
"""Seconds the server holds a request for changes that are not there yet."""
FEED_EARLY = 0.5
"""Seconds before which an answer without changes comes only from a server that has no time to wait."""
FEED_RETRY_FIRST, FEED_RETRY_MOST = 0.5, 15.0
CATCH_UP = 1.0
"""Seconds that a mount takes at most, before it is there, to learn what changed while it was not."""


class Engine:
    """Committers and change feeds of all buckets, downloads and uploads, in one nursery."""

    def __init__(self, context: Context, nursery: trio.Nursery) -> None:
        self.context = context
        self._nursery = nursery
        self.downloads = Downloads(context, nursery)
        self.uploads = Uploads(context, self.downloads, nursery)
        self.opened = OpenFiles(context, self.downloads, nursery)
        self.remote = Remote(context, self.downloads, self.opened)
        self._committers: dict[int, Committer] = {}
        self._reconnected = trio.Event()
        self._scopes: dict[int, trio.CancelScope] = {}
        self._looked: dict[int, trio.Event] = {}
        """By bucket: set when it was asked for changes once, whatever came of it."""

    def start(self) -> None:
        """Take care of every bucket that is known."""
        self.context.client.observe(self._observed)
        self._nursery.start_soon(self.context.nodes.run)
        self._watch_all()

    async def caught_up(self) -> None:
        """Return when every bucket shows what others did until now, if the server answers within ``CATCH_UP``."""
        with trio.move_on_after(CATCH_UP):
            for looked in list(self._looked.values()):
                await looked.wait()

    def _observed(self, state: State) -> None:
        """The server is there again: nothing waits any longer."""
        if state.connected:
            self.context.nodes.hope()
            self.hurry()
            event, self._reconnected = self._reconnected, trio.Event()
            event.set()

    def _watch_all(self) -> None:
        for bucket in list(self.context.buckets.by_id.values()):
            self.watch(bucket)

    def watch(self, bucket: BucketState) -> None:
        """Take care of one more bucket."""
        if bucket.id not in self._committers:
            scope = self._scopes[bucket.id] = trio.CancelScope()
            self._looked[bucket.id] = trio.Event()
            self._committers[bucket.id] = Committer(self.context, self.uploads, bucket, self._merged)
            self._nursery.start_soon(self._care, bucket, scope)

    def _unwatch(self, row_id: int) -> None:
        self._scopes.pop(row_id).cancel()
        del self._committers[row_id], self._looked[row_id]

    async def _care(self, bucket: BucketState, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._committers[bucket.id].run, nursery)
                nursery.start_soon(self._follow, bucket)

    def _merged(self, ino: int, seq: int) -> None:
        """A directory made here became, by commit ``seq``, one that others had made: show what that has."""
        self.context.kernel.inode(ino)
        for place in self.context.inodes.names(ino):
            self.remote.merged[place] = seq
        known = set(self.context.inodes.names_between(ino, b"", None))
        self._nursery.start_soon(self._show, ino, known)

    async def _show(self, ino: int, known: set[bytes]) -> None:
        """Tell the kernel of the names in a directory that are not ``known``: it may take them for free."""
        delay = FEED_RETRY_FIRST
        inodes = self.context.inodes
        while (directory := inodes.get(ino)) is not None and directory.nlink:
            try:
                await self.remote.complete(directory)
            except OSError as error:
                log.debug("listing %s: %s", inodes.path(ino), error)
                with trio.move_on_after(delay):
                    await self._reconnected.wait()
                delay = min(delay * 2, FEED_RETRY_MOST)
                continue
            for name in inodes.names_between(ino, b"", None):
                if name not in known:
                    self.context.kernel.entry(ino, name)
            break

    async def _follow(self, bucket: BucketState) -> None:
        """Apply what others change, as it happens."""
        delay, wait = FEED_RETRY_FIRST, 0.0
        looked = self._looked[bucket.id]
        while True:
            asked = trio.current_time()
            try:
                changes = await self._changes(bucket, wait)
                bucket.redundancy = changes.redundancy
                self.context.nodes.heard(changes.epoch)
                for inode in self.remote.apply(bucket, changes):
                    self._nursery.start_soon(self._renew, inode)
            except Exception as error:
                if isinstance(error, Refused) and error.code is Code.HISTORY_GONE:
                    await self._committers[bucket.id].put_back()
                    self.remote.invalidate_all(bucket)
                    await trio.sleep(delay * random.random())  # noqa: S311
                    delay = min(delay * 2, FEED_RETRY_MOST)
                    continue
                if not isinstance(error, (ClientError, OSError)):  # the mount goes on whatever a server says
                    self.context.report(0, f"bucket {bucket.name}: changes that cannot be used: {error!r}")
                looked.set()
                log.debug("change feed of bucket %s: %s", bucket.name, error)
                with trio.move_on_after(delay * (0.5 + random.random())):  # noqa: S311
                    await self._reconnected.wait()
                # The next request may be the one that finds the server back: its answer must not wait for changes.
                delay, wait = min(delay * 2, FEED_RETRY_MOST), 0.0
                continue
            if not changes.commits:
                looked.set()
                if trio.current_time() - asked < min(wait, FEED_EARLY):
                    await trio.sleep(FEED_EARLY)  # a server that does not wait must not be asked all the time
                wait = self.context.freshness.feed_wait(FEED_WAIT)
            delay = FEED_RETRY_FIRST

    async def _changes(self, bucket: BucketState, wait: float) -> wire.Changes:
        """What came after what is known. Raises ClientError."""
        return await self.context.client.changes(
            bucket.name, bucket.seq, wait, known=bucket.known, known_ns=bucket.known_ns
        )

    async def agreed(self) -> None:
        """Return when no server has forgotten what this mount knows of it; what it lacked is in the journal then.

        A server that does not answer is asked once.
        """
        for bucket in list(self.context.buckets.by_id.values()):
            try:
                await self._changes(bucket, 0.0)
            except Refused as refusal:
                if refusal.code is Code.HISTORY_GONE and bucket.id in self._committers:
                    await self._committers[bucket.id].put_back()
                    self.remote.invalidate_all(bucket)
            except ClientError as error:
                log.debug("bucket %s: %s", bucket.name, error)
                return

    async def _renew(self, inode: Inode) -> None:
        """An open file changed elsewhere, and nobody may ask for it."""
        with contextlib.suppress(OSError):  # who uses it asks again, and is told
            await self.remote.refresh(inode)

    # Buckets

    async def buckets_changed(self) -> None:
        """Make the root show the buckets there are; what is known has to do while nobody answers."""
        try:
            await self.remote.refresh_buckets()
        except OSError as error:
            if error.errno != errno.EIO or not self.context.buckets.by_id:
                raise
        known = self.context.buckets.by_id
        for row_id in set(self._committers) - set(known):
            self._unwatch(row_id)
        self._watch_all()

    async def create_bucket(self, name: str, mode: int, uid: int, gid: int) -> BucketState:
        """Create a bucket and show it in the root."""
        try:
            info = await self.context.client.create_bucket(name, uid=uid, gid=gid, mode=mode)
        except ClientError as error:
            raise os_error(error) from error
        state = await self.remote.adopt(info, ROOT_INO)
        self.watch(state)
        return state

    async def delete_bucket(self, bucket: BucketState) -> None:
        """Delete a bucket without files and history, after all that was done in it. Raises OSError(ENOTEMPTY)."""
        await self.durable(bucket.id)
        try:
            await self.context.client.delete_bucket(bucket.name)
        except ClientError as error:
            if isinstance(error, Refused) and error.code in (Code.HAS_HISTORY, Code.HELD):
                name = bucket.name
                self.context.hint(
                    f"{name} stays: it keeps the history of the files that were deleted in it. They can be had back;"
                    f" mountfs bucket delete {name} deletes it for good"
                )
            raise os_error(error) from error
        self._unwatch(bucket.id)
        self.remote.drop(bucket)

    # For the file system

    async def durable(self, bucket: int, ino: int | None = None) -> None:
        """Return when what was done so far in a bucket, or to an inode, is on the nodes.

        Raises OSError: ENOSPC or EDQUOT when that is why it is not, EIO at the deadline.
        """
        with deadline(self.context.config.data_deadline):
            await self._committers[bucket].drained(ino)

    async def drained(self) -> None:
        """Return when everything done so far is on the nodes, however long that takes. Raises as :meth:`durable`."""
        self.hurry()  # each of them: the first waits for the rows of all
        for committer in list(self._committers.values()):
            await committer.drained()

    def hurry(self) -> None:
        """Let nothing settle."""
        for committer in self._committers.values():
            committer.hurry()

    async def make_room(self, size: int) -> None:
        """Return when ``size`` more bytes fit under the cache's cap.

        Waits for uploads while they go on. Raises OSError(ENOSPC) when no room is to be had.
        """
        cache = self.context.cache
        with trio.move_on_after(self.context.config.data_deadline) as scope:
            while not cache.has_room(size):
                self.hurry()
                for content in list(self.context.staging.contents.values()):
                    self.uploads.written(content)
                if not self.context.client.state.connected or self.context.server_full or not self.context.unsent():
                    break
                await self.context.progress.wait()
                scope.deadline = trio.current_time() + self.context.config.data_deadline
        cache.require_room(size)
