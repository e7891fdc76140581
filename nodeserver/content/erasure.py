"""Erasure coding: a stored chunk as k data and m parity fragments, any k of which give it back.

Reed-Solomon over GF(2^8) (polynomial 0x11d) with a Cauchy matrix, by ISA-L. The first k fragments hold the chunk's own
bytes, in order, the last of them filled with zeros: with all of them there is nothing to compute.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3
from pyeclib.ec_iface import ECDriver

from nodeserver.content.codec import MAX_STORED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

MAGIC = b"MFFR"
VERSION = 1
MAX_FRAGMENTS = 64
"""Data and parity fragments together."""

_FIELDS = struct.Struct(">4sBBBBI32s")
HEADER = _FIELDS.size + 32
"""Bytes before the payload: magic, version, k, m, index, length of the whole (big-endian), 32 bytes of BLAKE3 of the
whole, then 32 bytes of BLAKE3 over the fields before and the payload behind."""

_LIBRARY_HEADER = 80
"""Bytes that the library puts before a fragment's payload. They are not stored."""


class CorruptFragment(Exception):
    """A fragment is not what its writer stored, or never was a fragment."""


class TooFewFragments(Exception):
    """The good fragments of no one encoding are enough. ``good`` is how many there are of it, ``needed`` is k."""

    def __init__(self, good: int, needed: int) -> None:
        super().__init__(f"{good} good fragments; {needed} are needed" if needed else "no good fragment")
        self.good = good
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Coding:
    """What all fragments of one encoding of one chunk have in common."""

    k: int
    m: int
    length: int
    """Bytes of the whole."""
    whole: bytes
    """32 bytes of BLAKE3 of the whole: two stored forms of one chunk may differ, and must not be mixed."""

    @property
    def payload(self) -> int:
        """Bytes in the payload of each fragment."""
        return -(-self.length // self.k)


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a fragment's header says, and its payload, a view of the fragment."""

    coding: Coding
    index: int
    """0 to k - 1: data; k to k + m - 1: parity."""
    payload: memoryview


def split(whole: Buffer, k: int, m: int) -> list[bytes]:
    """The k + m fragments of a stored chunk, in the order of their indexes.

    Raises ``ValueError`` for k or m below 1, more than ``MAX_FRAGMENTS``, or a whole longer than ``MAX_STORED``.
    """
    data = bytes(whole)
    if k < 1 or m < 1 or k + m > MAX_FRAGMENTS:
        raise ValueError(f"{k}+{m} fragments")
    if len(data) > MAX_STORED:
        raise ValueError(f"a stored chunk of {len(data)} bytes is longer than {MAX_STORED}")
    coding = Coding(k, m, len(data), blake3(data).digest())
    return [_packed(coding, index, payload) for index, payload in enumerate(_encoded(coding, data))]


def parse(fragment: Buffer) -> Fragment:
    """What the header says, without a look at the checksum. Raises ``CorruptFragment`` when it cannot be a fragment."""
    view = memoryview(fragment).cast("B")
    if len(view) < HEADER:
        raise CorruptFragment(f"{len(view)} bytes are too few for a fragment")
    magic, version, k, m, index, length, whole = _FIELDS.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise CorruptFragment(f"unknown fragment format {magic!r}, version {version}")
    coding = Coding(k, m, length, whole)
    if k < 1 or m < 1 or k + m > MAX_FRAGMENTS or index >= k + m or length > MAX_STORED:
        raise CorruptFragment(f"fragment {index} of {k}+{m} of {length} bytes")
    if len(view) - HEADER != coding.payload:
        raise CorruptFragment(f"a payload of {len(view) - HEADER} bytes, not {coding.payload}")
    return Fragment(coding, index, view[HEADER:])


def verify(fragment: Buffer) -> Fragment:
    """What the header says, with the checksum found right. Raises ``CorruptFragment``."""
    found = parse(fragment)
    view = memoryview(fragment).cast("B")
    if _checksum(view[: _FIELDS.size], found.payload) != view[_FIELDS.size : HEADER]:
        raise CorruptFragment(f"the checksum of fragment {found.index} does not match")
    return found


def join(fragments: Iterable[Buffer]) -> bytes:
    """The stored chunk. Fragments that are damaged, there twice or of another encoding are left out.

    Raises ``TooFewFragments``.
    """
    coding, payloads = _chosen(fragments)
    return _decoded(coding, payloads)


def _chosen(fragments: Iterable[Buffer]) -> tuple[Coding, dict[int, memoryview]]:
    """The payloads, by index, of the encoding of which there are enough; data rather than parity, k of them."""
    found: dict[Coding, dict[int, memoryview]] = {}
    for fragment in fragments:
        try:
            good = verify(fragment)
        except CorruptFragment:
            continue
        found.setdefault(good.coding, {})[good.index] = good.payload
    best = max(found, key=lambda coding: len(found[coding]) / coding.k, default=None)
    if best is None:
        raise TooFewFragments(0, 0)
    if len(found[best]) < best.k:
        raise TooFewFragments(len(found[best]), best.k)
    return best, {index: found[best][index] for index in sorted(found[best])[: best.k]}


def _decoded(coding: Coding, payloads: dict[int, memoryview]) -> bytes:
    if all(index < coding.k for index in payloads):
        data = b"".join(payloads.values())[: coding.length]
    else:
        driver = _driver(coding.k, coding.m)
        # The library's headers depend only on length and index, so those of zeros are those of the chunk.
        model = driver.encode(bytes(coding.length))
        data = driver.decode([model[index][:_LIBRARY_HEADER] + payload for index, payload in payloads.items()])
    if blake3(data).digest() != coding.whole:
        raise CorruptFragment("the fragments' checksums match and the whole's does not")
    return data


def _encoded(coding: Coding, data: bytes) -> list[memoryview]:
    """The payloads of all fragments."""
    return [memoryview(one)[_LIBRARY_HEADER:] for one in _driver(coding.k, coding.m).encode(data)]


@lru_cache(maxsize=64)
def _driver(k: int, m: int) -> ECDriver:
    """The library's coder, which threads may share. Cauchy, because with Vandermonde not every k suffice once m > 4."""
    return ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy")


def _packed(coding: Coding, index: int, payload: Buffer) -> bytes:
    fields = _FIELDS.pack(MAGIC, VERSION, coding.k, coding.m, index, coding.length, coding.whole)
    return b"".join((fields, _checksum(fields, payload), payload))


def _checksum(fields: Buffer, payload: Buffer) -> bytes:
    return blake3(fields).update(payload).digest()
