"""Names of pieces: what a node keeps of a chunk, the whole of it or a fragment.

A node knows nothing of redundancy schemes: it keeps pieces by their ids. The id of a whole copy is the chunk's; that
of a fragment is the chunk's with three bytes behind it: data fragments, parity fragments, and which of them it is.
So copies and fragments of any codes can lie beside each other while a bucket's redundancy changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from nodeserver.protocol.wire import ChunkId

PieceId = bytes
"""32 bytes: a whole chunk. 35 bytes: a fragment."""

CHUNK_ID = 32
FRAGMENT_ID = CHUNK_ID + 3


class Fragment(NamedTuple):
    """Which fragment a piece is: number ``number``, from 0, of ``data`` + ``parity``, the data fragments first."""

    data: int
    parity: int
    number: int


def fragment_id(chunk: ChunkId, fragment: Fragment) -> PieceId:
    """The id of a fragment of a chunk."""
    return chunk + bytes(fragment)


def chunk_of(piece: PieceId) -> ChunkId:
    """The chunk that a piece is of."""
    return piece[:CHUNK_ID]


def fragment_of(piece: PieceId) -> Fragment | None:
    """Which fragment a piece is; None for a whole copy."""
    return Fragment(*piece[CHUNK_ID:]) if len(piece) == FRAGMENT_ID else None


def readable(pieces: Iterable[PieceId]) -> bool:
    """Whether these pieces of a chunk give it back, if they are good."""
    codes: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for piece in pieces:
        fragment = fragment_of(piece)
        if fragment is None:
            return True
        codes[fragment.data, fragment.parity].add(fragment.number)
    return any(len(numbers) >= data for (data, _), numbers in codes.items())


def valid(piece: PieceId) -> bool:
    """Whether these bytes can be the id of a piece."""
    if len(piece) != FRAGMENT_ID:
        return len(piece) == CHUNK_ID
    data, parity, number = piece[CHUNK_ID:]
    return data >= 2 and parity >= 1 and number < data + parity
