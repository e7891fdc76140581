"""Values and bytes turned into others that nobody expects."""

from __future__ import annotations

import random
from typing import Any

import msgspec

NUMBERS = [
    -1,
    0,
    1,
    7,
    255,
    4096,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 53,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
NUMBERS += [-(1 << 31), -(1 << 63)]
TEXTS = ["", ".", "..", "/", "\0", "a" * 300, "ÿ", "\u2028", "\n", "%00", "'", "nan", "\ud7ff", "😀" * 100]
BYTES = [b"", b"\0", b".", b"..", b"a/b", b"\xff" * 16, bytes(16), bytes(32), bytes(33), b"x" * 256, b"y" * 70_000]
ODD: list[Any] = [None, True, False, 0.5, float("nan"), float("inf"), -0.0, [], {}, [[]], {"a": 1}, [None] * 50]


def leaf(rng: random.Random) -> Any:
    """Any value at all."""
    kinds: list[list[Any]] = [NUMBERS, TEXTS, BYTES, ODD]
    return rng.choice(rng.choice(kinds))


def mutated(rng: random.Random, value: Any) -> Any:
    """``value``, of lists, maps and leaves, with something changed somewhere."""
    deeper = rng.random() < 0.9
    if isinstance(value, dict) and value and deeper:
        return _mutated_map(rng, value)
    if isinstance(value, (list, tuple)) and value and deeper:
        return _mutated_list(rng, list(value))
    if isinstance(value, bytes) and rng.random() < 0.3:
        return torn(rng, value)
    if isinstance(value, int) and -(1 << 63) < value < (1 << 64) - 1 and rng.random() < 0.3:
        return value + rng.choice([-1, 1])
    return leaf(rng)


def _mutated_map(rng: random.Random, value: dict[Any, Any]) -> dict[Any, Any]:
    key = rng.choice(list(value))
    changed = dict(value)
    chance = rng.random()
    if chance < 0.1:
        del changed[key]
    elif chance < 0.15:
        changed[leaf_key(rng)] = leaf(rng)
    else:
        changed[key] = mutated(rng, value[key])
    return changed


def _mutated_list(rng: random.Random, items: list[Any]) -> list[Any]:
    at = rng.randrange(len(items))
    chance = rng.random()
    if chance < 0.08:
        del items[at]
    elif chance < 0.16:
        items.insert(at, items[at])
    elif chance < 0.2:
        rng.shuffle(items)
    elif chance < 0.22:
        items *= rng.choice([2, 100])
    else:
        items[at] = mutated(rng, items[at])
    return items


def leaf_key(rng: random.Random) -> Any:
    return rng.choice([*TEXTS, 7, b"x"])


def torn(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut, grown, or with some of them changed."""
    changed = bytearray(data)
    match rng.randrange(4):
        case 0:
            del changed[rng.randrange(len(changed) + 1) :]
        case 1:
            at = rng.randrange(len(changed) + 1)
            changed[at:at] = rng.randbytes(rng.choice([1, 2, 9, 300]))
        case 2 if changed:
            for _ in range(rng.choice([1, 1, 3, 20])):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case _:
            at = rng.randrange(len(changed) + 1)
            # the begin of a list, a map, a string, bytes of a size that does not come, and of a number
            changed[at:at] = rng.choice([b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"])
    return bytes(changed)


def nested(rng: random.Random) -> bytes:
    """MessagePack or JSON that is deep."""
    return rng.choice([b"\x91" * 100_000, b"[" * 100_000, b"\x81\xa1a" * 50_000, b'{"a":' * 20_000])


def plain(value: object) -> Any:
    """A wire value as lists, maps and leaves."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), strict=False)
