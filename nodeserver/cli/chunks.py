"""The options of ``nodeserver serve`` that say where chunks are."""

from __future__ import annotations

from pathlib import Path

import click

from nodeserver.chunks import ChunkStore, DiskStore
from nodeserver.chunks.disk import make_dir
from nodeserver.chunks.s3 import Address, S3Store, UnusableAddress


class ChunksAddress(click.ParamType[Address]):
    """The address of a chunk store."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> Address:
        try:
            return Address.parse(str(value))
        except UnusableAddress as error:
            self.fail(str(error), param, context)


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
