"""The calls of the ``/v1`` API about nodes and where chunks are."""

from __future__ import annotations

from collections.abc import Sequence

from nodeserver.client.calls import Calls, of_bucket
from nodeserver.client.connection import Buffer
from nodeserver.protocol.cluster import (
    MAX_FIND,
    Beat,
    ChunksAsked,
    ChunkWhere,
    ClusterAnswer,
    ClusterStatus,
    Join,
    Joined,
    Member,
    MovePreview,
    NodeChange,
    Nodes,
    NodeStatus,
    PieceTokens,
    Where,
)
from nodeserver.protocol.wire import ChunkId, pack


class ClusterCalls(Calls):
    """Calls for who wants to know how a cluster is, or changes it."""

    async def cluster(self, epoch: int = 0, *, deadline: float | None = None) -> ClusterAnswer:
        """The cluster map, unless it is still the one of ``epoch``."""
        return await self._get(f"cluster?epoch={epoch}", ClusterAnswer, deadline)

    async def join(self, member: Member, *, deadline: float | None = None) -> Joined:
        """Become a node, with a token for that."""
        seconds = self._seconds(deadline)
        return await self._node.call("POST", "cluster/join", Joined, body=pack(Join(member)), deadline=seconds)

    async def beat(self, beat: Beat, *, deadline: float | None = None) -> ClusterAnswer:
        """Say that a node is there; the cluster map, unless it has the newest."""
        seconds = self._seconds(deadline)
        return await self._node.call("POST", "cluster/beat", ClusterAnswer, body=pack(beat), deadline=seconds)

    async def piece_tokens(self, *, deadline: float | None = None) -> PieceTokens:
        """What gives the right to the pieces of each node that keeps chunks alone."""
        return await self._get("cluster/tokens", PieceTokens, deadline)

    async def nodes(self, *, deadline: float | None = None) -> Nodes:
        """All nodes, with what they last said of themselves."""
        return await self._get("nodes", Nodes, deadline)

    async def change_node(self, node: bytes, change: NodeChange, *, deadline: float | None = None) -> NodeStatus:
        """Change what the cluster map says of a node."""
        seconds = self._seconds(deadline)
        return await self._node.call("POST", f"nodes/{node.hex()}", NodeStatus, body=pack(change), deadline=seconds)

    async def preview_node(self, node: bytes, change: NodeChange, *, deadline: float | None = None) -> MovePreview:
        """What such a change would move. Takes a look at all chunks, or at many."""
        path, seconds = f"nodes/{node.hex()}/preview", self._seconds(deadline)
        return await self._node.call("POST", path, MovePreview, body=pack(change), deadline=seconds)

    async def status(self, *, deadline: float | None = None) -> ClusterStatus:
        """How the cluster is."""
        return await self._get("status", ClusterStatus, deadline)

    async def where(self, bucket: str, chunks: Sequence[ChunkId], *, deadline: float | None = None) -> list[ChunkWhere]:
        """Where chunks are, and where they should be."""
        path, seconds = f"{of_bucket(bucket)}/chunks/where", self._seconds(deadline)
        found: list[ChunkWhere] = []
        for start in range(0, len(chunks), MAX_FIND):
            body = pack(ChunksAsked(list(chunks[start : start + MAX_FIND])))
            found += (await self._node.call("POST", path, Where, body=body, deadline=seconds)).chunks
        return found

    async def report(self, bucket: str, chunks: Sequence[ChunkId], *, deadline: float | None = None) -> None:
        """Queue the repair of chunks of which a piece was bad or missing; at most ``MAX_FIND``."""
        path, body = f"{of_bucket(bucket)}/chunks/report", pack(ChunksAsked(list(chunks)))
        await self._node.send("POST", path, _ignore, body=body, deadline=self._seconds(deadline))


def _ignore(body: Buffer) -> None:
    """For answers that say nothing."""
