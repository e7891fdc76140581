"""Redundancy schemes: how many pieces of a chunk there are, and how many of them are enough."""

from __future__ import annotations

import re

import msgspec

MAX_COPIES = 16
MAX_PIECES = 64
"""Fragments of the widest erasure code: data and parity together."""

AUTOMATIC_COPIES = 3
"""Copies of chunks in a bucket without a setting, when there are as many nodes."""
MIN_FRAGMENT = 64 * 1024
"""Bytes of the smallest fragment worth making: it gets a file of its own on its node."""

_REPLICATE = re.compile(r"replicate:(\d{1,3})(?::(\d{1,3}))?", re.ASCII)
_ERASURE = re.compile(r"erasure:(\d{1,3})\+(\d{1,3})", re.ASCII)


class BadScheme(ValueError):
    """Not a redundancy scheme; the message says why."""


class Replicate(msgspec.Struct, frozen=True, tag="replicate", tag_field="kind"):
    """``copies`` whole copies; a write is acknowledged when ``quorum`` of them are on disk."""

    copies: int
    quorum: int

    def __str__(self) -> str:
        return f"replicate:{self.copies}:{self.quorum}"

    @property
    def pieces(self) -> int:
        """On how many nodes a chunk lies."""
        return self.copies

    @property
    def needed(self) -> int:
        """How many pieces give the chunk back."""
        return 1

    def piece_size(self, size: int) -> int:
        """Bytes of one piece of a chunk of ``size`` bytes."""
        return size


class Erasure(msgspec.Struct, frozen=True, tag="erasure", tag_field="kind"):
    """``data`` + ``parity`` fragments, any ``data`` of which give the chunk back.

    A write is acknowledged when one fragment more than ``data`` is on disk, so that the loss of a node
    right after it loses nothing.
    """

    data: int
    parity: int

    def __str__(self) -> str:
        return f"erasure:{self.data}+{self.parity}"

    @property
    def pieces(self) -> int:
        """On how many nodes a chunk lies."""
        return self.data + self.parity

    @property
    def needed(self) -> int:
        """How many pieces give the chunk back."""
        return self.data

    @property
    def quorum(self) -> int:
        """How many pieces on disk acknowledge a write."""
        return self.data + 1

    def piece_size(self, size: int) -> int:
        """Bytes of one piece of a chunk of ``size`` bytes, without a fragment's header."""
        return -(-size // self.data)


Scheme = Replicate | Erasure


def parse_scheme(text: str) -> Scheme:
    """The scheme that ``text`` names: ``replicate:N``, ``replicate:N:W`` or ``erasure:k+m``.

    Without W, a majority of the copies acknowledges a write. Raises ``BadScheme``.
    """
    if match := _REPLICATE.fullmatch(text):
        copies = int(match[1])
        return _checked(text, Replicate(copies, copies // 2 + 1 if match[2] is None else int(match[2])))
    if match := _ERASURE.fullmatch(text):
        return _checked(text, Erasure(int(match[1]), int(match[2])))
    raise BadScheme(f"{text!r} is not replicate:N, replicate:N:W or erasure:k+m")


def bucket_scheme(redundancy: str, nodes: int) -> Scheme:
    """The scheme of a bucket whose setting is ``redundancy``, on so many nodes that keep chunks. Raises ``BadScheme``.

    Without a setting (empty) there are as many copies as nodes, three at most.
    """
    return parse_scheme(redundancy or f"replicate:{min(max(nodes, 1), AUTOMATIC_COPIES)}")


def chunk_scheme(scheme: Scheme, size: int) -> Scheme:
    """The scheme for a chunk whose stored form has ``size`` bytes, in a bucket with ``scheme``.

    What would make small fragments is kept in whole copies, that survive the loss of as many nodes.
    """
    if isinstance(scheme, Erasure) and size < scheme.data * MIN_FRAGMENT:
        return copies_instead(scheme)
    return scheme


def copies_instead(scheme: Erasure) -> Replicate:
    """Whole copies that survive the loss of as many nodes."""
    copies = scheme.parity + 1
    return Replicate(copies, copies // 2 + 1)


def _checked(text: str, scheme: Scheme) -> Scheme:
    match scheme:
        case Replicate(copies=copies) if not 1 <= copies <= MAX_COPIES:
            raise BadScheme(f"{text!r}: there must be 1 to {MAX_COPIES} copies, not {copies}")
        case Replicate(copies=copies, quorum=quorum) if not 1 <= quorum <= copies:
            raise BadScheme(f"{text!r}: 1 to {copies} copies can acknowledge a write, not {quorum}")
        case Erasure(data=data) if data < 2:
            raise BadScheme(f"{text!r}: at least 2 data fragments; use replicate for whole copies")
        case Erasure(parity=parity) if parity < 1:
            raise BadScheme(f"{text!r}: at least 1 parity fragment")
        case Erasure(data=data, parity=parity) if data + parity > MAX_PIECES:
            raise BadScheme(f"{text!r}: at most {MAX_PIECES} fragments, not {data + parity}")
    return scheme
