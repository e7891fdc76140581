"""A process to be killed: its children put chunks, delete most of them and compact packs until they die.

``python -m tests.nodeserver.chunk_reaper STORE``: each line on standard input is a number; a child then prints its
process id and lines ``+ SEED SIZE`` for chunks that are stored, ``- SEED`` before one is deleted, ``! SEED`` after.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from nodeserver.chunks import DiskStore, pack
from tests.nodeserver.chunk_writer import BUCKET, chunk

SIZES = [200, 3000, 3000, 20_000, 70_000]
PACK_LIMIT = 200_000
KEPT = 40


async def _work(root: Path, number: int) -> None:
    rng = random.Random(number)
    store = await DiskStore.open(root)
    stored: list[tuple[int, int]] = []
    os.write(1, b"open\n")
    while True:
        batch = [(rng.getrandbits(60), rng.choice(SIZES)) for _ in range(rng.randint(1, 20))]
        await store.put(BUCKET, [chunk(*one) for one in batch])
        _tell("+ %d %d", batch)
        stored += batch
        rng.shuffle(stored)
        going, stored = stored[KEPT:], stored[:KEPT]
        ids = [chunk(*one)[0] for one in going]
        _tell("- %d %d", going)
        with store.doom(BUCKET, ids) as doomed:
            await store.delete(BUCKET, doomed)
        _tell("! %d %d", going)
        await store.compact(BUCKET, _rest)


async def _rest() -> None:
    await asyncio.sleep(0)


def _tell(what: str, items: list[tuple[int, int]]) -> None:
    for item in items:
        os.write(1, (what % item + "\n").encode())


def main() -> None:
    pack.PACK_LIMIT = PACK_LIMIT
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
