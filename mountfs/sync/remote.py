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
from mountfs.local.inodes import UNKNOWN, Inode, NumberTaken, holes_in
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from mountfs.sync.errors import deadline, os_error
from mountfs.sync.openfiles import OpenFiles
from nodeserver.client import ClientError
from nodeserver.content.manifest import BadManifest, Unpacker, check_indirect, pack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.ids import ROOT_INO

log = logging.getLogger(__name__)

PAGE = 5000
"""Names asked for in one request."""
OLD_ANSWER_PAUSE = 0.05
"""Seconds until a question is asked again whose answer was older than what is known."""

Answer = TypeVar("Answer", wire.FileAnswer, wire.Listing)


class Remote:
    """Questions to the server; answers go into the local database."""

    def __init__(self, context: Context, downloads: Downloads, opened: OpenFiles) -> None:
        self._context = context
        self._downloads = downloads
        self._opened = opened
        self._listings: dict[int, trio.Lock] = {}
        self._kept: set[int] = set()
        """Buckets that stay though the server lacks them."""
        self.merged: dict[tuple[int, bytes], int] = {}
        """Names of directories that became others, and by which commit; until the change feed is there."""

    async def _ask(self, bucket: BucketState, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """An answer that is not older than what we know. Raises OSError."""
        with deadline(self._context.config.metadata_deadline):
            while True:
                try:
                    answer = await ask()
                except ClientError as error:
                    raise os_error(error) from error
                self._context.buckets.heard(bucket, answer.seq)
                if answer.seq >= bucket.known:
                    return answer
                await trio.sleep(OLD_ANSWER_PAUSE)

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
            if name not in found and context.journal.rows(bucket.id, limit=1):
                self._keep(bucket)
            elif name not in found or found[name].id != bucket.uuid:
                self.drop(bucket)
        for name, info in found.items():
            if name not in known or known[name].uuid != info.id:
                await self.adopt(info, ROOT_INO)
            else:
                known[name].redundancy = info.redundancy

    def _keep(self, bucket: BucketState) -> None:
        """The bucket is gone and changes wait for it: it stays readable here."""
        if bucket.id not in self._kept:
            self._kept.add(bucket.id)
            self._context.report(
                bucket.root, "the server has no such bucket any more, and changes wait for it: copy what you need of it"
            )

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
            context.freshness.heard(state)
            if parent:
                context.inodes.enter(parent, info.name.encode(), state.root)
                context.inodes.touch(parent, time.time_ns(), 1)
        return state

    # Files

    def _take(self, bucket: BucketState, files: list[wire.File], parent: int) -> None:
        """Store what the server says of files unless we know better. Raises NumberTaken."""
        context = self._context
        fresh: list[wire.File] = []
        left: list[wire.File] = []
        for file in files:
            (left if self._known_better(file) else fresh).append(file)
        if left:  # they get names, too
            context.inodes.check(left)
        for ino in context.inodes.store(bucket.id, fresh, parent):
            context.kernel.inode(ino)
            self._opened.follow(ino)

    def _known_better(self, file: wire.File) -> bool:
        """Whether what is known of a file here is newer, or is that some of it is gone."""
        ino = self._context.inodes.ino(file.id)
        staging = self._context.staging
        if not self._context.pending(ino) and staging.has_lost(ino):
            inode = self._context.inodes.get(ino)
            if inode is not None and (inode.version == file.version or inode.file_id != file.id):
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
        self._opened.follow(inode.ino)

    async def slices(self, bucket: BucketState, manifest: wire.Manifest | None) -> list[wire.Slice]:
        """A content's slices, fetched from chunks when the manifest is stored there. Raises OSError."""
        if manifest is None:
            return []
        if not manifest.indirect:
            return manifest.slices
        try:
            check_indirect(manifest.slices)
            unpacker, found = Unpacker(), list[wire.Slice]()
            for piece in manifest.slices:
                part = memoryview(await self._downloads.chunk(bucket, piece.chunk))
                some = unpacker.feed(part[piece.offset : piece.offset + piece.length])
                found += await trio.to_thread.run_sync(list, some)
            unpacker.end()
        except BadManifest as error:
            raise OSError(errno.EIO, f"a content's list of slices is wrong: {error}") from error
        return found

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
        """Learn what others changed in a directory known before; no ``await`` after the last answer."""
        inodes, last = self._context.inodes, None
        while (name := inodes.unknown_name(directory.ino)) is not None:
            if name == last:
                raise OSError(errno.EIO, f"nobody says what {name!r} is")
            await self.part(directory, inodes.before(directory.ino, name), PAGE)
            last = name

    async def part(self, directory: Inode, after: bytes, limit: int) -> None:
        """Learn names of a directory, up to ``limit`` of those behind ``after``, in one request."""
        bucket = self._context.buckets.by_id[directory.bucket]
        page = await self._page(bucket, directory, after, limit)
        last = page.entries[-1].name if page.more else None
        with self._context.db.transaction():
            self._merge(bucket, directory.ino, page.entries, after, last)

    async def _page(self, bucket: BucketState, directory: Inode, after: bytes, limit: int = PAGE) -> wire.Listing:
        client = self._context.client
        return await self._ask(bucket, lambda: client.entries(bucket.name, directory.file_id, after, limit))

    async def prime(self, directory: Inode) -> bool:
        """Learn the first names of a directory; True when these are all, and all are taken."""
        context = self._context
        bucket = context.buckets.by_id[directory.bucket]
        page = await self._page(bucket, directory, b"")
        last = page.entries[-1].name if page.more else None
        try:
            with context.db.transaction():
                self._merge(bucket, directory.ino, page.entries, b"", last)
                if last is None:
                    context.inodes.update(directory.ino, complete=1)
        except NumberTaken:  # one file must not hide the others
            return False
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

    def apply(self, bucket: BucketState, changes: wire.Changes) -> list[Inode]:
        """Take note of what other clients changed. Returns the files in use here whose content it may be."""
        context = self._context
        entries: list[tuple[int, bytes]] = []
        stale: list[int] = []
        for change in changes.commits:
            if change.client != context.client_id:
                names = [(context.inodes.ino(parent), name) for parent, name in change.entries]
                # What is pending is newer here, and so is what a later answer told.
                entries += [
                    name
                    for name in names
                    if name not in context.journal.names and self.merged.get(name, 0) <= change.seq
                ]
                stale += [context.inodes.ino(file) for file in change.files]
        with context.db.transaction():
            for parent, name in entries:
                if context.inodes.get(parent) is not None:
                    context.inodes.enter(parent, name, UNKNOWN)
            context.inodes.mark_stale(stale)
            context.buckets.advance(bucket, changes.seq, changes.usage, changes.time_ns)
            if not changes.more:
                context.freshness.heard(bucket)
        self.merged = {name: seq for name, seq in self.merged.items() if not self._reached(bucket, name[0], seq)}
        for parent, name in entries:
            context.kernel.entry(parent, name)
        for ino in stale:
            self.invalidate(ino)
        opened = {ino for ino in stale if self._opened.is_open(ino)}
        return [inode for ino in opened if (inode := context.inodes.get(ino)) is not None]

    def _reached(self, bucket: BucketState, directory: int, seq: int) -> bool:
        """Whether all changes to a directory of this bucket up to ``seq`` are known."""
        inode = self._context.inodes.get(directory)
        return inode is None or (inode.bucket == bucket.id and seq <= bucket.seq)

    def invalidate(self, ino: int) -> None:
        """Make the kernel ask again for a file."""
        inode = self._context.inodes.get(ino)
        if inode is None or not inode.is_dir:
            # With write-back, it believes what it knows of a file until it forgets it. Of a directory it does not, and
            # who works in one that was forgotten is told that it is deleted.
            for parent, name in self._context.inodes.names(ino):
                self._context.kernel.entry(parent, name)
        self._context.kernel.inode(ino)

    def invalidate_all(self, bucket: BucketState) -> None:
        """Make the kernel ask again for all of a bucket."""
        context = self._context
        for (ino,) in context.db.execute("SELECT ino FROM inode WHERE bucket = ?", (bucket.id,)).fetchall():
            self.invalidate(ino)
