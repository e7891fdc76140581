"""What is to be done about a chunk, given where its pieces are and where they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nodeserver.placement.scheme import Erasure
from nodeserver.protocol.pieces import Fragment, PieceId, fragment_id, fragment_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from nodeserver.placement.map import NodeId
    from nodeserver.placement.scheme import Scheme
    from nodeserver.protocol.wire import ChunkId


class Plan(NamedTuple):
    """What brings a chunk to the pieces it should have."""

    make: list[tuple[NodeId, PieceId]]
    """Pieces to be made, and the nodes to have them."""
    drop: list[tuple[NodeId, PieceId]]
    """Pieces that are not wanted, to be deleted when nothing is left to make and all others are confirmed."""
    spare: int
    """Pieces that can be lost before the chunk is; negative when it is."""
    lacking: int
    """Pieces that it has too few of, wherever they are."""


def plan(
    chunk: ChunkId,
    scheme: Scheme,
    home: Sequence[NodeId],
    held: Mapping[NodeId, Collection[PieceId]],
    assumed: Collection[NodeId] = (),
) -> Plan:
    """For a chunk in ``scheme``, that ``chunk_scheme`` gave for its size.

    Nodes in ``assumed`` are away for a moment and taken for having what they should; while one of the home is,
    nothing is dropped.
    """
    if isinstance(scheme, Erasure):
        kept, make = _fragments(chunk, scheme, home, held, assumed)
    else:
        kept = {(node, chunk) for node in home if chunk in held.get(node, ())}
        make = [(node, chunk) for node in home if (node, chunk) not in kept and node not in assumed]
    away = [node for node in home if node in assumed]
    here = [(node, piece) for node, pieces in held.items() for piece in pieces]
    settled = not make and not away and len(home) >= scheme.quorum
    drop = sorted(one for one in here if one not in kept) if settled else []
    spare = _spare(here) + (len(away) if here else 0)
    wanted = {piece for _, piece in here if _is_of(piece, scheme)}
    have = len(wanted) if isinstance(scheme, Erasure) else sum(piece == chunk for _, piece in here)
    return Plan(make, drop, spare, max(0, min(scheme.pieces, len(home)) - have - len(away)))


def _fragments(
    chunk: ChunkId,
    scheme: Erasure,
    home: Sequence[NodeId],
    held: Mapping[NodeId, Collection[PieceId]],
    assumed: Collection[NodeId],
) -> tuple[set[tuple[NodeId, PieceId]], list[tuple[NodeId, PieceId]]]:
    """The fragments that stay where they are, one a node, and those to be made on the other nodes of the home."""
    names = [fragment_id(chunk, Fragment(scheme.data, scheme.parity, number)) for number in range(scheme.pieces)]
    kept: dict[PieceId, NodeId] = {}
    for node in home:
        mine = next((piece for piece in names if piece in held.get(node, ()) and piece not in kept), None)
        if mine is not None:
            kept[mine] = node
    free = [node for node in home if node not in kept.values()]
    # Who is away may have any of the rest: those that nobody else has are left to it.
    elsewhere = {piece for pieces in held.values() for piece in pieces}
    lacking = sorted((piece for piece in names if piece not in kept), key=lambda piece: piece not in elsewhere)
    make = list(zip((node for node in free if node not in assumed), lacking, strict=False))
    return {(node, piece) for piece, node in kept.items()}, make


def _is_of(piece: PieceId, scheme: Erasure | object) -> bool:
    fragment = fragment_of(piece)
    return (
        isinstance(scheme, Erasure)
        and fragment is not None
        and (fragment.data, fragment.parity) == (scheme.data, scheme.parity)
    )


def _spare(here: Collection[tuple[NodeId, PieceId]]) -> int:
    """How many nodes can be lost before the chunk is, of its best form."""
    copies = sum(fragment_of(piece) is None for _, piece in here)
    codes: dict[tuple[int, int], set[int]] = {}
    for _, piece in here:
        if fragment := fragment_of(piece):
            codes.setdefault((fragment.data, fragment.parity), set()).add(fragment.number)
    return max(copies - 1, *(len(numbers) - data for (data, _), numbers in codes.items()), -1)
