"""``nodeserver serve``: what its options mean, and what runs then."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Awaitable, Callable

import click

from nodeserver.chunks import ChunkStore
from nodeserver.chunks.store import DiskStore
from nodeserver.cli.failures import EXIT_ADDRESS, EXIT_USAGE, Failure
from nodeserver.cli.joining import join
from nodeserver.datadir import DataDir
from nodeserver.http.assembly import Standing, for_chunks, with_metadata
from nodeserver.http.server import bind, serve, url_of
from nodeserver.metadata.errors import RemovedNode
from nodeserver.metadata.secrets import common
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.cluster import CHUNKS
from nodeserver.workers.schedule import Times


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a server is to be."""

    host: str
    port: int
    metadata: str | None
    """The URL of the database, None for the default."""
    open_chunks: Callable[[], Awaitable[ChunkStore]]
    times: Times
    standing: Standing
    """Its URL is empty when it is that of the address listened on."""
    join: tuple[str, str] | None = None
    """URL and token."""


async def run(directory: DataDir, plan: Plan) -> None:
    """Serve until told to stop. Raises what ``failures`` knows."""
    try:
        listener = bind(plan.host, plan.port)
    except OSError as error:
        raise Failure(f"cannot listen on {plan.host}:{plan.port}: {error.strerror or error}", EXIT_ADDRESS) from error
    with listener:
        standing = plan.standing
        if not standing.url:
            standing = dataclasses.replace(standing, url=_reachable(listener))
        if plan.join or (directory.joined and not plan.metadata):
            await _for_chunks(directory, listener, plan, dataclasses.replace(standing, roles=(CHUNKS,)))
        else:
            await _with_metadata(directory, listener, plan, standing)


async def _with_metadata(directory: DataDir, listener: socket.socket, plan: Plan, standing: Standing) -> None:
    keys = directory.keys()
    metadata = await Metadata.open(plan.metadata or directory.metadata_url)
    try:
        if metadata.shared:
            directory.adopt(await metadata.write_across(common, directory.secrets()))
            keys = directory.keys()
        chunks = await plan.open_chunks()
        try:
            async with with_metadata(directory, keys, metadata, chunks, standing, plan.times) as services:
                await serve(listener, services, _ready(directory))
        except RemovedNode as error:
            raise Failure(f"{error}: begin with an empty data directory") from error
        finally:
            await chunks.close()
    finally:
        await metadata.close()


async def _for_chunks(directory: DataDir, listener: socket.socket, plan: Plan, standing: Standing) -> None:
    if directory.has_metadata:
        raise Failure(f"{directory.path} has metadata of its own: a node that joins begins empty", EXIT_USAGE)
    joined = directory.joined
    if plan.join:
        joined = await join(directory, *plan.join, standing)
    assert joined is not None
    chunks = await plan.open_chunks()
    assert isinstance(chunks, DiskStore)
    try:
        async with for_chunks(directory, joined, chunks, standing, plan.times) as services:
            await serve(listener, services, _ready(directory))
    finally:
        await chunks.close()


def _ready(directory: DataDir) -> Callable[[str], None]:
    def ready(url: str) -> None:
        directory.note_address(url)
        click.echo(f"ready {url}")

    return ready


def _reachable(listener: socket.socket) -> str:
    """Where clients reach a socket, which may listen on all addresses."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return f"http://{socket.getfqdn()}:{port}"
    return url_of(listener)
