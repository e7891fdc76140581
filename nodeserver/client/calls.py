"""What all calls of the API are made of."""

from __future__ import annotations

import base64
from typing import TypeVar
from urllib.parse import quote

from nodeserver.client.failover import Servers
from nodeserver.protocol.wire import FileId

T = TypeVar("T")


class Calls:
    """Requests to a server, with deadlines in seconds."""

    def __init__(self, node: Servers, metadata_deadline: float, data_deadline: float) -> None:
        self._node = node
        self._metadata = metadata_deadline
        self._data = data_deadline

    async def _get(self, path: str, answer: type[T], deadline: float | None) -> T:
        return await self._node.call("GET", path, answer, deadline=self._seconds(deadline))

    def _seconds(self, deadline: float | None) -> float:
        return self._metadata if deadline is None else deadline


def of_bucket(name: str) -> str:
    """The path of a bucket."""
    return f"buckets/{quote(name, safe='')}"


def of_file(bucket: str, file_id: FileId) -> str:
    """The path of a file or directory."""
    return f"{of_bucket(bucket)}/files/{file_id.hex()}"


def base64url(name: bytes) -> str:
    """Bytes in a query string."""
    return base64.urlsafe_b64encode(name).rstrip(b"=").decode("ascii")


def as_of(at: int | None, before: str = "&") -> str:
    """The parameter that asks for the state at a commit, after what stands ``before`` it; nothing for the present."""
    return "" if at is None else f"{before}at={at}"
