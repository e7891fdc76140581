"""What a change of the map moves: the preview that drain, remove and weight show before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nodeserver.placement.map import State
from nodeserver.placement.rendezvous import Placement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeserver.placement.map import ClusterMap, NodeId
    from nodeserver.placement.scheme import Scheme
    from nodeserver.protocol.wire import ChunkId


class Amount(msgspec.Struct):
    """Pieces of chunks, and their bytes."""

    pieces: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one piece more, of ``size`` bytes."""
        self.pieces += 1
        self.bytes += size


class Preview(msgspec.Struct):
    """What would move. Bytes are those that arrive; headers of fragments are not counted."""

    chunks: int = 0
    """Looked at."""
    moved: int = 0
    """Chunks of which at least one piece moves."""
    pieces: int = 0
    """That the chunks looked at should have, under the new map."""
    missing: int = 0
    """Pieces for which the new map has no node: chunks that stay below their redundancy."""
    total: Amount = msgspec.field(default_factory=Amount)
    flows: dict[tuple[NodeId | None, NodeId], Amount] = msgspec.field(default_factory=dict)
    """From where to where. From None: nobody gives the piece up, it is made from those that others keep."""

    def busiest(self) -> int:
        """Bytes that the node with most to do sends or receives; what is rebuilt counts where it arrives."""
        loads: dict[tuple[bool, NodeId], int] = {}
        for (source, target), amount in self.flows.items():
            for end in ((False, source), (True, target)):
                if end[1] is not None:
                    loads[end[0], end[1]] = loads.get((end[0], end[1]), 0) + amount.bytes
        return max(loads.values(), default=0)

    def seconds(self, rate: float) -> float:
        """How long it takes when each node moves ``rate`` bytes a second in each direction, all at once."""
        return self.busiest() / rate


def preview(
    chunks: Iterable[tuple[ChunkId, int]],
    scheme: Scheme,
    old: ClusterMap,
    new: ClusterMap,
    *,
    into: Preview | None = None,
    old_scheme: Scheme | None = None,
) -> Preview:
    """What moves of ``chunks``, pairs of an id and the stored size in bytes, all under ``scheme``.

    ``into`` is added to, for chunks of other schemes; ``old_scheme`` is what they are under now, where that differs.
    Assumes that every chunk is at home under ``old``.
    """
    result = into or Preview()
    before, after = Placement(old, (old_scheme or scheme).pieces), Placement(new, scheme.pieces)
    giving = {node.id for node in new.nodes if node.state in (State.UP, State.DRAINING)}
    for chunk, size in chunks:
        had = [node.id for node in before.home(chunk)]
        has = [node.id for node in after.home(chunk)]
        arriving = [node for node in has if node not in had]
        leaving = [node for node in had if node not in has and node in giving]
        piece = scheme.piece_size(size)
        result.chunks += 1
        result.moved += bool(arriving)
        result.pieces += len(has)
        result.missing += scheme.pieces - len(has)
        for index, target in enumerate(arriving):
            source = leaving[index] if index < len(leaving) else None
            result.flows.setdefault((source, target), Amount()).add(piece)
            result.total.add(piece)
    return result
