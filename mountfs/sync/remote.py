"""Filling the local tree from the server: buckets, listings, attributes, manifests.

What is pending here (see ``journal``) is newer than any answer and stays as it is. An answer older
than something already known from the log may lack it: it is asked for again.
"""

from __future__ import annotations

import errno
import logging
import stat
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import UNKNOWN, Inode, holes_in
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from mountfs.sync.errors import deadline, os_error
from nodeserver.client import ClientError
from nodeserver.content.manifest import pack_slices, unpack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.ids import ROOT_INO

log = logging.getLogger(__name__)

PAGE = 5000
"""Names asked for in one request."""
RESOLVE_LIMIT = 64
"""A directory with more changed names than this is listed anew instead."""

Answer = TypeVar("Answer", wire.FileAnswer, wire.Listing)


class Remote:
    """Questions to the server; answers go into the local database."""

    def __init__(self, context: Context, downloads: Downloads) -> None:
        self._context = context
        self._downloads = downloads
        self._listings: dict[int, trio.Lock] = {}

    async def _ask(self, bucket: BucketState, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """An answer that is not older than what we know. Raises OSError."""
        with deadline(self._context.config.metadata_deadline):
            while True:
                try:
                    answer = await ask()
                except ClientError as error:
                    raise os_error(error) from error
                if answer.seq >= bucket.known:
                    return answer

    # Buckets

    async def refresh_buckets(self) -> None:
        """Make the root show the buckets there are now."""
        context = self._context
        try:
            found = {info.name: info for info in await context.client.buckets()}
        except ClientError as error:
            raise os_error(error) from error
        known = {bucket.name: bucket for bucket in context.buckets.by_id.values()}
        for name, bucket in known.items():
            if name not in found or found[name].id != bucket.uuid:
                self.drop(bucket)
        for name, info in found.items():
            if name not in known or known[name].uuid != info.id:
                await self.adopt(info, ROOT_INO)
            else:
                known[name].redundancy = info.redundancy

    def drop(self, bucket: BucketState) -> None:
        """The bucket is gone: forget all that is known of it."""
        context = self._context
        with context.db.transaction():
            context.buckets.remove(bucket)
            context.inodes.forget()
            context.inodes.touch(ROOT_INO, time.time_ns(), -1)
        context.journal.reload()
        context.kernel.entry(ROOT_INO, bucket.name.encode())

    async def adopt(self, info: wire.Bucket, parent: int) -> BucketState:
        """Take a bucket into the database; under ``parent`` as a directory, 0 when it is the root."""
        context = self._context
        try:
            answer = await context.client.file(info.name, info.root)
        except ClientError as error:
            raise os_error(error) from error
        if answer.file is None:
            raise OSError(errno.EIO, f"bucket {info.name} has no root directory")
        with context.db.transaction():
            state = context.buckets.add(info, context.inodes.ino(info.root))
            context.inodes.store(state.id, [answer.file], parent)
            if parent:
                context.inodes.enter(parent, info.name.encode(), state.root)
                context.inodes.touch(parent, time.time_ns(), 1)
        return state

    # Files

    def _take(self, bucket: BucketState, files: list[wire.File], parent: int) -> None:
        """Store what the server says of files unless we know better."""
        context = self._context
        fresh = [file for file in files if not self._known_better(file)]
        for ino in context.inodes.store(bucket.id, fresh, parent):
            context.kernel.inode(ino)

    def _known_better(self, file: wire.File) -> bool:
        """Whether what is known of a file here is newer, or is that some of it is gone."""
        ino = self._context.inodes.ino(file.id)
        staging = self._context.staging
        if not self._context.pending(ino) and staging.has_lost(ino):
            inode = self._context.inodes.get(ino)
            if inode is not None and inode.version == file.version:
                return True
            staging.supersede(ino)
        return self._context.pending(ino)

    async def lookup(self, directory: Inode, name: bytes) -> None:
        """Learn what a name in a directory stands for."""
        context = self._context
        bucket = context.buckets.by_id[directory.bucket]
        answer = await self._ask(bucket, lambda: context.client.lookup(bucket.name, directory.file_id, name))
        if (directory.ino, name) in context.journal.names:
            return
        with context.db.transaction():
            if answer.file is None:
                context.inodes.leave(directory.ino, name)
            else:
                self._take(bucket, [answer.file], directory.ino)
                context.inodes.enter(directory.ino, name, context.inodes.ino(answer.file.id))

    async def refresh(self, inode: Inode) -> None:
        """Learn a file's attributes and manifest anew. Raises OSError(ESTALE) when it is gone."""
        context = self._context
        bucket = context.buckets.by_id[inode.bucket]
        answer = await self._ask(bucket, lambda: context.client.file(bucket.name, inode.file_id))
        file = answer.file
        if file is None:
            raise OSError(errno.ESTALE, "the file is gone")
        slices = await self.slices(bucket, file.manifest) if stat.S_ISREG(file.mode) else []
        with context.db.transaction():
            self._take(bucket, [file], inode.parent)
            if not context.pending(inode.ino):
                context.inodes.update(inode.ino, content=pack_slices(slices), holes=holes_in(slices))

    async def slices(self, bucket: BucketState, manifest: wire.Manifest | None) -> list[wire.Slice]:
        """A content's slices, fetched from chunks when the manifest is stored there. Raises OSError."""
        if manifest is None:
            return []
        if not manifest.indirect:
            return manifest.slices
        parts = [await self._downloads.chunk(bucket, piece.chunk) for piece in manifest.slices]
        return unpack_slices(b"".join(parts))

    # Directories

    async def complete(self, directory: Inode) -> None:
        """Make every name of a directory known."""
        lock = self._listings.setdefault(directory.ino, trio.Lock())
        try:
            async with lock:
                now = self._context.inodes.get(directory.ino)
                if now is None:
                    raise OSError(errno.ENOENT, "the directory is gone")
                if now.complete:
                    await self._resolve(now)
                else:
                    await self._list(now)
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._listings.pop(directory.ino, None)

    async def _resolve(self, directory: Inode) -> None:
        names = self._context.inodes.unknown_names(directory.ino, RESOLVE_LIMIT + 1)
        if len(names) > RESOLVE_LIMIT:
            await self._list(directory)
            return
        for name in names:
            await self.lookup(directory, name)

    async def _page(self, bucket: BucketState, directory: Inode, after: bytes) -> wire.Listing:
        client = self._context.client
        return await self._ask(bucket, lambda: client.entries(bucket.name, directory.file_id, after, PAGE))

    async def prime(self, directory: Inode) -> bool:
        """Learn the first names of a directory; True when these are all."""
        context = self._context
        bucket = context.buckets.by_id[directory.bucket]
        page = await self._page(bucket, directory, b"")
        last = page.entries[-1].name if page.more else None
        with context.db.transaction():
            self._merge(bucket, directory.ino, page.entries, b"", last)
            if last is None:
                context.inodes.update(directory.ino, complete=1)
        return last is None

    async def _list(self, directory: Inode) -> None:
        context = self._context
        bucket = context.buckets.by_id[directory.bucket]
        after = b""
        while True:
            page = await self._page(bucket, directory, after)
            last = page.entries[-1].name if page.more else None
            with context.db.transaction():
                self._merge(bucket, directory.ino, page.entries, after, last)
                if last is None:
                    context.inodes.update(directory.ino, complete=1)
            if last is None:
                break
            after = last

    def _merge(
        self, bucket: BucketState, parent: int, entries: list[wire.Entry], after: bytes, last: bytes | None
    ) -> None:
        """Make the names in (after, last] those of the listing, but for pending ones."""
        context = self._context
        inodes, pending = context.inodes, context.journal.names
        found = {entry.name for entry in entries}
        for name in inodes.names_between(parent, after, last):
            if name not in found and (parent, name) not in pending:
                inodes.leave(parent, name)
        entries = [entry for entry in entries if (parent, entry.name) not in pending]
        self._take(bucket, [entry.file for entry in entries], parent)
        inodes.enter_all(parent, [(entry.name, inodes.ino(entry.file.id)) for entry in entries])

    # The change feed

    def apply(self, bucket: BucketState, changes: wire.Changes) -> None:
        """Take note of what other clients changed."""
        context = self._context
        entries: list[tuple[int, bytes]] = []
        stale: list[int] = []
        for change in changes.commits:
            if change.client != context.client_id:
                entries += [(context.inodes.ino(parent), name) for parent, name in change.entries]
                stale += [context.inodes.ino(file) for file in change.files]
        with context.db.transaction():
            for parent, name in entries:
                if context.inodes.get(parent) is not None and (parent, name) not in context.journal.names:
                    context.inodes.enter(parent, name, UNKNOWN)
            context.inodes.mark_stale(stale)
            context.buckets.advance(bucket, changes.seq, changes.usage)
        for parent, name in entries:
            context.kernel.entry(parent, name)
        for ino in stale:
            self.invalidate(ino)

    def invalidate(self, ino: int) -> None:
        """Make the kernel ask again for a file."""
        for parent, name in self._context.inodes.names(ino):
            self._context.kernel.entry(parent, name)
        self._context.kernel.inode(ino)

    def distrust(self, bucket: BucketState) -> None:
        """The log no longer reaches back to what we know: everything has to be asked for again."""
        context = self._context
        with context.db.transaction():
            context.db.execute("UPDATE inode SET stale = 1, complete = 0 WHERE bucket = ?", (bucket.id,))
            context.inodes.forget()
        for (ino,) in context.db.execute("SELECT ino FROM inode WHERE bucket = ?", (bucket.id,)).fetchall():
            self.invalidate(ino)
