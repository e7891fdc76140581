"""The calls of the ``/v1`` API."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import anyio
import httpx
import msgspec

from nodeserver.client.answers import check_answer, check_changes, check_listing
from nodeserver.client.batches import batches
from nodeserver.client.breaker import Observer, State
from nodeserver.client.calls import as_of, base64url, of_bucket, of_file
from nodeserver.client.cluster_calls import ClusterCalls
from nodeserver.client.connection import Buffer
from nodeserver.client.errors import BadAnswer, Refused
from nodeserver.client.failover import Servers
from nodeserver.client.history import History
from nodeserver.client.http_peer import HttpPeer
from nodeserver.client.node import STORED, Token, checked
from nodeserver.client.transport import Transport
from nodeserver.client.upkeep import Upkeep
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    MAX_BATCH_CHUNKS,
    Bucket,
    Buckets,
    BucketSettings,
    Changes,
    ChunkId,
    ChunkIds,
    Commit,
    Committed,
    FileAnswer,
    FileId,
    Listing,
    NewBucket,
    Server,
    pack,
)


class _Chunks(msgspec.Struct):
    """A ``ChunkBatch`` whose chunks are views of the answer."""

    chunks: list[tuple[ChunkId, memoryview]]


class Client(History, Upkeep, ClusterCalls):
    """A connection to a cluster, or to one node server; see :func:`connect`.

    Every call takes ``deadline``, the seconds it may take with its retries, instead of the client's own, and
    raises :class:`~nodeserver.client.errors.ClientError`. All calls can be repeated without harm, and are.
    Concurrent calls are welcome, all from one event loop. Bodies may be any contiguous buffer of bytes.
    """

    def __init__(
        self, servers: Servers, transport: httpx.AsyncBaseTransport, metadata_deadline: float, data_deadline: float
    ) -> None:
        super().__init__(servers, metadata_deadline, data_deadline)
        self._transport = transport

    def follow(self, urls: Sequence[str]) -> None:
        """Ask these servers too when one does not answer; the URL it was made with stays."""
        self._node.follow(urls)

    @property
    def token(self) -> str:
        """What it shows to servers with metadata."""
        return self._node.token

    def renew(self, token: str) -> None:
        """Use another token from now on. Raises ValueError for one that cannot be sent."""
        self._node.token = checked(token)

    def peer(self, url: str, token: Token | None = None) -> HttpPeer:
        """A node that keeps pieces, reached with ``token`` or, when it can be trusted as a server, the client's own."""
        return HttpPeer(self._node.beside(url, token), metadata_deadline=self._metadata, data_deadline=self._data)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.aclose()

    @property
    def url(self) -> str:
        """The server's that is asked now."""
        return str(self._node.url)

    @property
    def requests(self) -> int:
        """How many were sent, retries included."""
        return self._node.requests

    @property
    def state(self) -> State:
        """Connected or not, since when, and the last failure."""
        return self._node.breaker.state

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call ``observer``, in the event loop, whenever the state changes; the result ends that."""
        return self._node.breaker.observe(observer)

    # server and buckets

    async def server(self, *, deadline: float | None = None) -> Server:
        """Who answers, its clock and its room."""
        return await self._get("server", Server, deadline)

    async def buckets(self, *, deadline: float | None = None) -> list[Bucket]:
        """The buckets the token may see."""
        return (await self._get("buckets", Buckets, deadline)).buckets

    async def bucket(self, name: str, *, deadline: float | None = None) -> Bucket:
        """The bucket of that name."""
        return await self._get(of_bucket(name), Bucket, deadline)

    async def create_bucket(
        self,
        name: str,
        id: bytes | None = None,  # noqa: A002
        quota: int | None = None,
        *,
        uid: int = 0,
        gid: int = 0,
        mode: int = 0o755,
        deadline: float | None = None,
    ) -> Bucket:
        """Create a bucket with a quota in bytes; with the ``id`` of one that exists, return that one.

        ``uid``, ``gid`` and ``mode`` are those of its root directory.
        """
        body = pack(NewBucket(id or new_id(), quota, uid, gid, mode))
        return await self._node.call("PUT", of_bucket(name), Bucket, body=body, deadline=self._seconds(deadline))

    async def set_bucket(self, name: str, settings: BucketSettings, *, deadline: float | None = None) -> Bucket:
        """Change a bucket's settings."""
        seconds = self._seconds(deadline)
        return await self._node.call("PATCH", of_bucket(name), Bucket, body=pack(settings), deadline=seconds)

    async def delete_bucket(self, name: str, *, history: bool = False, deadline: float | None = None) -> None:
        """Delete an empty bucket; with ``history`` also one that keeps versions of deleted files."""
        path = of_bucket(name) + ("?history=destroy" if history else "")
        try:
            await self._node.send("DELETE", path, _ignore, deadline=self._seconds(deadline))
        except Refused as refused:
            if refused.code is not Code.NO_BUCKET or refused.tries == 1:
                raise
            # the answer to an earlier try was lost

    # metadata

    async def commit(self, bucket: str, commit: Commit, *, deadline: float | None = None) -> Committed:
        """Apply a batch of operations, once however often it is sent."""
        return await self.commit_packed(bucket, pack(commit), deadline=deadline)

    async def commit_packed(self, bucket: str, commit: Buffer, *, deadline: float | None = None) -> Committed:
        """As :meth:`commit`, of an encoded ``Commit``."""
        path, seconds = f"{of_bucket(bucket)}/commits", self._seconds(deadline)
        return await self._node.call("POST", path, Committed, body=commit, deadline=seconds)

    async def file(
        self, bucket: str, file_id: FileId, at: int | None = None, *, deadline: float | None = None
    ) -> FileAnswer:
        """A file with its whole manifest, now or as of commit ``at``."""
        path = of_file(bucket, file_id) + as_of(at, "?")
        return check_answer(await self._get(path, FileAnswer, deadline), file_id)

    async def lookup(
        self, bucket: str, dir_id: FileId, name: bytes, at: int | None = None, *, deadline: float | None = None
    ) -> FileAnswer:
        """What a directory has under a name, or had as of commit ``at``."""
        path = f"{of_file(bucket, dir_id)}/lookup?name={base64url(name)}{as_of(at)}"
        return check_answer(await self._get(path, FileAnswer, deadline))

    async def entries(
        self,
        bucket: str,
        dir_id: FileId,
        after: bytes = b"",
        limit: int = 5000,
        at: int | None = None,
        *,
        deadline: float | None = None,
    ) -> Listing:
        """A page of a directory's entries, now or as of commit ``at``: those whose names follow ``after``."""
        path = f"{of_file(bucket, dir_id)}/entries?after={base64url(after)}&limit={limit}{as_of(at)}"
        return check_listing(await self._get(path, Listing, deadline), dir_id, after)

    async def changes(
        self,
        bucket: str,
        since: int,
        wait: float = 0.0,
        *,
        known: int = 0,
        known_ns: int = 0,
        deadline: float | None = None,
    ) -> Changes:
        """The commits after ``since``; waits up to ``wait`` seconds for the first. ``deadline`` comes on top.

        ``known``, ``known_ns``: the newest commit heard of and its time; a server without it refuses ``history-gone``.

        Not retried: a request that finds the server back must not keep everyone else waiting with it.
        """
        path = f"{of_bucket(bucket)}/changes?since={since}&wait={wait:g}&known={known}&known_ns={known_ns}"
        seconds = self._seconds(deadline)
        answer = await self._node.call("GET", path, Changes, deadline=wait + seconds, once=True)
        return check_changes(answer, since)

    # chunks

    async def missing(self, bucket: str, ids: Sequence[ChunkId], *, deadline: float | None = None) -> list[ChunkId]:
        """Those of ``ids`` that the bucket lacks."""
        path, left = f"{of_bucket(bucket)}/chunks/missing", _countdown(self._seconds(deadline))
        missing: list[ChunkId] = []
        for start in range(0, len(ids), MAX_BATCH_CHUNKS):
            asked = list(ids[start : start + MAX_BATCH_CHUNKS])
            answer = await self._node.call("POST", path, ChunkIds, body=pack(ChunkIds(asked)), deadline=left())
            lacking = set(answer.ids)
            missing += [chunk for chunk in asked if chunk in lacking]
        return missing

    async def put_chunk(self, bucket: str, chunk: ChunkId, stored: Buffer, *, deadline: float | None = None) -> None:
        """Store a chunk, in its stored form, durably."""
        seconds = self._data if deadline is None else deadline
        await self._node.send("PUT", _chunk(bucket, chunk), _ignore, body=stored, kind=STORED, deadline=seconds)

    async def put_chunks(
        self, bucket: str, chunks: Iterable[tuple[ChunkId, Buffer]], *, deadline: float | None = None
    ) -> None:
        """Store chunks, in their stored form, durably, as many to a request as it can carry."""
        path, left = f"{of_bucket(bucket)}/chunks", _countdown(self._data if deadline is None else deadline)
        for batch in batches(chunks):
            body = msgspec.msgpack.encode({"chunks": batch})  # a ChunkBatch, of any buffers
            await self._node.send("POST", path, _ignore, body=body, deadline=left())

    async def get_chunk(self, bucket: str, chunk: ChunkId, *, deadline: float | None = None) -> Buffer:
        """A chunk in its stored form, not verified."""
        seconds = self._data if deadline is None else deadline
        return await self._node.send("GET", _chunk(bucket, chunk), _itself, accept=STORED, deadline=seconds)

    async def read_chunks(
        self, bucket: str, ids: Sequence[ChunkId], *, deadline: float | None = None
    ) -> list[tuple[ChunkId, Buffer]]:
        """Chunks in their stored form, not verified, in the order of ``ids``; views of shared buffers."""
        path, left = f"{of_bucket(bucket)}/chunks/read", _countdown(self._data if deadline is None else deadline)
        chunks: list[tuple[ChunkId, Buffer]] = []
        while len(chunks) < len(ids):
            asked = list(ids[len(chunks) : len(chunks) + MAX_BATCH_CHUNKS])
            answer = await self._node.call("POST", path, _Chunks, body=pack(ChunkIds(asked)), deadline=left())
            if not answer.chunks or [chunk for chunk, _ in answer.chunks] != asked[: len(answer.chunks)]:
                raise BadAnswer("the server answered with other chunks than those asked for")
            chunks += answer.chunks
        return chunks


def connect(
    url: str,
    token: str,
    *,
    metadata_deadline: float = 10.0,
    data_deadline: float = 60.0,
    transport: httpx.AsyncBaseTransport | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Client:
    """A client of the node server at ``url``, to be used with ``async with``. Nothing is sent yet.

    Deadlines are in seconds. ``transport`` takes the place of the client's own and must know httpx's request
    extension ``target``; ``ssl_context`` takes that of the default one for https. Raises InvalidUrl, and
    ValueError for a token that cannot be sent.
    """
    transport = transport or Transport(ssl_context=ssl_context)
    return Client(Servers(url, token, transport), transport, metadata_deadline, data_deadline)


def _chunk(bucket: str, chunk: ChunkId) -> str:
    return f"{of_bucket(bucket)}/chunks/{chunk.hex()}"


def _ignore(body: Buffer) -> None:
    """For answers that say nothing."""


def _itself(body: Buffer) -> Buffer:
    return body


def _countdown(seconds: float) -> Callable[[], float]:
    """How many of ``seconds`` are left."""
    until = anyio.current_time() + seconds
    return lambda: until - anyio.current_time()
