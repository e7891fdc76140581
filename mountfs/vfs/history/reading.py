"""Content of the past, through the same cache and downloads as that of live files."""

from __future__ import annotations

import errno
import itertools

from mountfs.local.buckets import BucketState
from mountfs.local.extents import ExtentMap
from mountfs.local.layers import Layers
from mountfs.sync.engine import Engine
from mountfs.sync.errors import deadline
from mountfs.vfs.files import NEIGHBOURS, SEQUENTIAL_SLACK, SMALL_FILE
from mountfs.vfs.history.nodes import Node
from mountfs.vfs.tree import failure
from nodeserver.protocol.wire import Manifest


class Reader:
    """An open file of the past."""

    def __init__(self, engine: Engine, bucket: BucketState, node: Node, layers: Layers) -> None:
        self._engine = engine
        self._bucket = bucket
        self._node = node
        self._layers = layers
        self._reached = 0
        self._ahead = 0

    @classmethod
    async def opened(cls, engine: Engine, node: Node) -> Reader:
        """Open a regular file. Raises OSError."""
        inode = (await node.shown()).inode
        bucket = engine.context.buckets.by_id.get(inode.bucket)
        if bucket is None:
            raise failure(errno.ESTALE)
        with deadline(engine.context.config.metadata_deadline):
            slices = await engine.remote.slices(bucket, await node.manifest())
        layers = Layers(slices, ExtentMap(), inode.size)
        if layers.base_size != inode.size:
            raise OSError(errno.EIO, f"a version of {inode.size} bytes has content of {layers.base_size}")
        return cls(engine, bucket, node, layers)

    async def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer only at the end. Raises OSError."""
        layers, downloads = self._layers, self._engine.downloads
        end = min(offset + size, layers.size)
        if end <= offset:
            return b""
        if self._bucket.id not in self._engine.context.buckets.by_id:
            raise failure(errno.ESTALE)
        if abs(offset - self._reached) <= SEQUENTIAL_SLACK and end >= self._ahead:
            self._ahead = downloads.ahead(self._bucket.id, layers, end)
        self._reached = end
        if (chunk := _small(layers)) and downloads.lacks(chunk):
            await self._fetch_neighbours(chunk)
        try:
            return await downloads.read(self._bucket.id, layers, offset, end)
        except OSError as error:
            self._report(f"bytes {offset} to {end} cannot be read: {error.strerror}")
            raise

    def _report(self, message: str) -> None:
        above, names = self._node.path()
        path = b"/".join(names).decode(errors="backslashreplace")
        self._engine.context.report(above, f"{path}: {message}")

    async def _fetch_neighbours(self, chunk: bytes) -> None:
        """Who reads one small file that is not here will read the next ones: one request for many."""
        contents = itertools.islice(await self._node.neighbours(), NEIGHBOURS)
        chunks = [_small_in(content) for content in contents]
        self._engine.downloads.fetch_many(self._bucket.id, [chunk, *filter(None, chunks)])


def _small(layers: Layers) -> bytes:
    return layers.base[0].chunk if len(layers.base) == 1 and layers.size <= SMALL_FILE else b""


def _small_in(manifest: Manifest | None) -> bytes:
    if manifest is None or manifest.indirect or len(manifest.slices) != 1 or manifest.slices[0].length > SMALL_FILE:
        return b""
    return manifest.slices[0].chunk
