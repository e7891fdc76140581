"""One node's chunk store: small chunks in packs, large ones in files, an index that can be rebuilt."""

from nodeserver.chunks.reading import Located, NoChunk
from nodeserver.chunks.store import ChunkStore, Space

__all__ = ["ChunkStore", "Located", "NoChunk", "Space"]
