"""A process to be killed: it forks children that put chunks until they die, and say what was acknowledged.

``python -m tests.nodeserver.chunk_writer STORE``: each line on standard input is a number; a child
then prints its process id, and one line ``SEED SIZE`` for each chunk acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from nodeserver.chunks import DiskStore
from nodeserver.content import codec

BUCKET = bytes(16)
KEY = bytes(32)
SIZES = [100, 4096, 4096, 4096, 30_000, 65_000, 70_000, 150_000]
PUTTERS = 6


def chunk(seed: int, size: int) -> tuple[bytes, bytes]:
    """The id and stored form of the chunk that ``seed`` makes."""
    plaintext = random.Random(seed).randbytes(size)
    return codec.chunk_id(KEY, plaintext), codec.encode(plaintext)


async def _put(store: DiskStore, rng: random.Random) -> None:
    while True:
        batch = [(rng.getrandbits(60), rng.choice(SIZES)) for _ in range(rng.randint(1, 8))]
        await store.put(BUCKET, [chunk(seed, size) for seed, size in batch])
        os.write(1, b"".join(b"%d %d\n" % one for one in batch))


async def _work(root: Path, number: int) -> None:
    store = await DiskStore.open(root)
    os.write(1, b"open\n")
    await asyncio.gather(*(_put(store, random.Random(number * PUTTERS + n)) for n in range(PUTTERS)))


def main() -> None:
    root = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.write(1, b"%d\n" % os.getpid())
            asyncio.run(_work(root, int(line)))
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    main()
