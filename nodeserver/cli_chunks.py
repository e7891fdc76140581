"""The options of ``nodeserver serve`` that say where chunks are."""

from __future__ import annotations

import re
from pathlib import Path

import click

from nodeserver.chunks import ChunkStore, DiskStore
from nodeserver.chunks.disk import make_dir
from nodeserver.chunks.s3 import Address, S3Store, UnusableAddress

UNITS = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


class ChunksAddress(click.ParamType[Address]):
    """The address of a chunk store."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> Address:
        try:
            return Address.parse(str(value))
        except UnusableAddress as error:
            self.fail(str(error), param, context)


class Size(click.ParamType[int]):
    """A number of bytes, written as ``500G`` or ``2TiB``."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)([KMGTP])(?:iB)?", str(value))
        if found is None:
            self.fail(f"{value!r} is not a size such as 500G or 2TiB", param, context)
        return int(found[1]) << UNITS[found[2]]


async def open_chunks(data: Path, address: Address | None, capacity: int | None) -> ChunkStore:
    """The store at an address, or else the one in a data directory.

    Raises ``OSError``, ``NoCredentials``, and ``ClickException`` when the directory has the chunks of the other kind.
    """
    disk, remote = data / "chunks", data / "s3"
    if address is None:
        if remote.exists():
            raise click.UsageError(f"the chunks of {data} are in an S3-compatible store: --chunks must name it")
        return await DiskStore.open(disk)
    if disk.exists():
        raise click.UsageError(f"{data} has chunks in it: only a new data directory can be used with --chunks")
    make_dir(remote)
    return await S3Store.open(address, remote / "index.sqlite", capacity)
