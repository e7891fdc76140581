"""A node's chunk store: on its own disk, or in an S3-compatible store; small chunks in packs either way."""

from nodeserver.chunks.engine import ChunkStore, Space, StoreUnavailable
from nodeserver.chunks.reading import Located, NoChunk
from nodeserver.chunks.store import DiskStore

__all__ = ["ChunkStore", "DiskStore", "Located", "NoChunk", "Space", "StoreUnavailable"]
