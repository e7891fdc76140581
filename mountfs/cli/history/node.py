"""A conversation with the server about the history of a bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from mountfs import control, mounts
from mountfs.cli import settings
from mountfs.errors import MountError
from nodeserver.client import Client, ClientError, connect
from nodeserver.protocol import wire

T = TypeVar("T")

METADATA = 60.0
"""Seconds that a large listing or commit may take."""
FIRST = 5.0
"""Seconds that a server may take to answer at all."""


@dataclasses.dataclass(frozen=True)
class Talk:
    """A client and the bucket it asks about."""

    client: Client
    bucket: wire.Bucket

    @property
    def name(self) -> str:
        return self.bucket.name


def talk(url: str, token: str, bucket: str, work: Callable[[Talk], Awaitable[T]], others: Sequence[str] = ()) -> T:
    """Run ``work``, with a server of the ``others`` when that at ``url`` does not answer.

    Raises ``MountError`` for whatever the server or the network says.
    """

    async def session() -> T:
        async with connect(url, token, metadata_deadline=METADATA) as client:
            client.follow(others)
            return await work(Talk(client, await client.bucket(bucket, deadline=FIRST)))

    try:
        return trio.run(session)
    except ClientError as error:
        raise MountError(f"{url}: {error}") from error


def talk_of(record: mounts.Record, bucket: str, work: Callable[[Talk], Awaitable[T]]) -> T:
    """As :func:`talk`, with the server of a mount."""
    nodes = control.call(record.control, "status", timeout=FIRST)["nodes"]
    others = [node["url"] for node in nodes] if len(nodes) > 1 else []
    return talk(record.url, settings.find_token(None, None, Path(record.state)), bucket, work, others)
