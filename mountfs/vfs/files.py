"""Open files: reading, writing, closing, waiting until the nodes have it."""

from __future__ import annotations

import errno
import os

from mountfs.local.inodes import Inode
from mountfs.local.staging import Content
from mountfs.sync.engine import Engine
from mountfs.vfs.tree import Tree, failure
from nodeserver.content.manifest import MAX_SIZE, unpack_slices

SMALL_FILE = 16 << 10
"""Files up to this many bytes are fetched with their neighbours."""
NEIGHBOURS = 256
SEQUENTIAL_SLACK = 4 << 20
"""A read this close behind the last one still counts as sequential: the kernel reads out of order."""


class Handle:
    """An open file."""

    def __init__(self, content: Content, flags: int) -> None:
        self.content = content
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.direct = False
        """Reads and writes do not go through the kernel's pages: it need not read one before it changes it, and the
        program gets the answer to each write itself."""
        self.reached = 0
        """Where the last read ended."""
        self.ahead = 0
        """Read-ahead is due again when a read reaches this offset."""


class Files:
    """Handles by number."""

    def __init__(self, engine: Engine, tree: Tree) -> None:
        self._engine = engine
        self._context = engine.context
        self._staging = engine.context.staging
        self._tree = tree
        self._handles: dict[int, Handle] = {}
        self._last = 0

    async def open(self, ino: int, flags: int) -> int:
        """Open a file; O_TRUNC empties it. Returns the handle's number."""
        inode = await self._tree.inode(ino)
        if inode.is_dir:
            raise failure(errno.EISDIR)
        self._context.freshness.require(inode.bucket)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        content = await self._acquire(inode, write=writes)
        if writes:
            await self._engine.opened.settled(ino)
        if flags & os.O_TRUNC and content.layers.size:
            self._staging.truncate(content, 0)
        number = self._add(content, flags)
        self._handles[number].direct = writes and self._lacks_base(content)
        return number

    def _lacks_base(self, content: Content) -> bool:
        """Whether some of what lies under a file's changes is neither here nor to be had."""
        if self._context.client.state.connected:
            return False
        return any(piece.chunk and self._engine.downloads.lacks(piece.chunk) for piece in content.layers.base)

    def direct(self, number: int) -> bool:
        """Whether reads and writes of an open file must not go through the kernel's pages."""
        return self._handles[number].direct

    def open_new(self, inode: Inode, flags: int) -> int:
        """Open a file that was just created."""
        number = self._add(self._staging.begin(inode, write=flags & os.O_ACCMODE != os.O_RDONLY), flags)
        left = self._context.quota_left(self._context.buckets.by_id[inode.bucket])
        # Once the quota is used up every write will fail, and the program learns it from the call itself.
        self._handles[number].direct = left is not None and left <= 0
        return number

    def _add(self, content: Content, flags: int) -> int:
        self._last += 1
        self._handles[self._last] = Handle(content, flags)
        return self._last

    async def _acquire(self, inode: Inode, *, write: bool) -> Content:
        content = self._staging.acquire(inode.ino, write=write)
        if content is None:
            await self._engine.remote.refresh(inode)
            content = self._staging.acquire(inode.ino, write=write)
        if content is None:
            raise failure(errno.EIO)
        return content

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer only at the end of the file."""
        handle = self._handles[number]
        content = handle.content
        layers = content.layers
        end = min(offset + size, layers.size)
        if end <= offset:
            return b""
        if abs(offset - handle.reached) <= SEQUENTIAL_SLACK and end >= handle.ahead:
            handle.ahead = self._engine.downloads.ahead(content.bucket, layers, end)
        handle.reached = end
        self._fetch_neighbours(content)
        try:
            return await self._engine.downloads.read(content.bucket, layers, offset, end)
        except OSError as error:
            self._context.report(content.ino, f"bytes {offset} to {end} cannot be read: {error.strerror}")
            raise

    def _fetch_neighbours(self, content: Content) -> None:
        """Who reads one small file that is not here will read the next ones: one request for many."""
        base, downloads = content.layers.base, self._engine.downloads
        if len(base) != 1 or base[0].length > SMALL_FILE or not base[0].chunk or not downloads.lacks(base[0].chunk):
            return
        contents = self._context.inodes.contents_from(content.ino, SMALL_FILE, NEIGHBOURS)
        slices = [unpack_slices(packed) for packed in contents]
        downloads.fetch_many(content.bucket, [found[0].chunk for found in slices if len(found) == 1 and found[0].chunk])

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Put ``data`` at ``offset``. Raises OSError: ENOSPC, EDQUOT, EFBIG; then nothing of it is kept."""
        handle = self._handles[number]
        content = handle.content
        if offset + len(data) > MAX_SIZE:
            raise failure(errno.EFBIG)
        growth = max(0, offset + len(data) - content.layers.size)
        try:
            self._check(content, growth)
        except OSError as error:
            if self._context.config.options.writeback and not handle.direct and error.errno == errno.EDQUOT:
                # Of what it collected, the kernel tells at close no other errors than ENOSPC and EIO.
                raise failure(errno.ENOSPC) from None
            raise
        if not self._context.cache.has_room(len(data)):
            await self._engine.make_room(len(data))
        self._staging.write(content, offset, data)
        if handle.direct:
            self._context.kernel.inode(content.ino)  # it may have pages of before
        self._charge(content, growth)
        self._engine.uploads.written(content)
        return len(data)

    def _check(self, content: Content, growth: int) -> None:
        """Whether quota and the server's disk let a file grow.

        Refused here, before anything is accepted, it does not have to be refused there.
        """
        context = self._context
        if context.server_full:
            raise failure(errno.ENOSPC)
        bucket = context.buckets.by_id[content.bucket]
        left = context.quota_left(bucket) if growth else None
        if left is not None and growth > left:
            quota = (bucket.usage.quota_bytes or 0) / (1 << 20)
            context.hint(f"the quota of bucket {bucket.name}, {quota:,.1f} MiB, was exceeded: nothing grows beyond it")
            raise failure(errno.EDQUOT)

    def _charge(self, content: Content, growth: int) -> None:
        """Remember what the server does not count yet."""
        if growth:
            growing = self._context.growth
            growing[content.ino] = growing.get(content.ino, 0) + growth

    async def truncate(self, ino: int, size: int) -> None:
        """Set a file's size."""
        if size > MAX_SIZE:
            raise failure(errno.EFBIG)
        inode = await self._tree.inode(ino)
        content = await self._acquire(inode, write=True)
        try:
            await self._engine.opened.settled(ino)
            if size != content.layers.size:
                growth = max(0, size - content.layers.size)
                self._check(content, growth)
                self._staging.truncate(content, size)
                self._charge(content, growth)
        finally:
            self._staging.release(content, write=True)

    async def flush(self, number: int) -> None:
        """A descriptor was closed, and close is to wait as fsync does."""
        content = self._handles[number].content
        if self._context.pending(content.ino):
            await self.sync(number)

    async def sync(self, number: int) -> None:
        """Return when the nodes have what was written. Raises OSError: EIO, ENOSPC, EDQUOT."""
        content = self._handles[number].content
        inode = await self._tree.inode(content.ino)
        if inode.nlink:
            self._staging.seal(content)
            await self._engine.durable(content.bucket, content.ino)
            if self._staging.has_lost(content.ino):
                raise failure(errno.EIO)

    async def chunks(self, inode: Inode) -> list[bytes]:
        """The chunks that a file's content is in, each once. Raises OSError."""
        content = await self._acquire(inode, write=False)
        try:
            return list(dict.fromkeys(piece.chunk for piece in content.layers.base if piece.chunk))
        finally:
            self._staging.release(content)

    def release(self, number: int) -> None:
        """Close."""
        handle = self._handles.pop(number)
        self._staging.release(handle.content, write=handle.writes)

    def release_all(self) -> None:
        """Close whatever is open: the mount ends."""
        for number in list(self._handles):
            self.release(number)
