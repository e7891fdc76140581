"""A small client of the HTTP API for the tests: one method for each thing they do often, raw requests besides."""

from __future__ import annotations

import base64
import stat
import time
from typing import Any, TypeVar

import httpx
import msgspec

from nodeserver.content.codec import chunk_id, encode, open_chunk
from nodeserver.content.manifest import content_hash
from nodeserver.protocol.errors import Code, code_of
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    MSGPACK,
    Bucket,
    Changes,
    ChunkBatch,
    Commit,
    Committed,
    Create,
    Entry,
    File,
    FileAnswer,
    FileId,
    Listing,
    Manifest,
    NewBucket,
    Op,
    Problem,
    Result,
    Slice,
    Write,
    pack,
    unpack,
)
from tests.harness import Node

T = TypeVar("T")

REGULAR = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


class Api:
    """Requests to one bucket of a server, as one client."""

    def __init__(self, node: Node, name: str = "docs", *, client_name: str = "desk") -> None:
        self.node = node
        self.client = new_id()
        self.client_name = client_name
        self.http = httpx.Client(
            base_url=node.url + "/v1",
            headers={"authorization": f"Bearer {node.token}", "content-type": MSGPACK, "accept": MSGPACK},
            timeout=30,
            trust_env=False,
            verify=False,  # no TLS here, and loading the authorities takes longer than a test
        )
        self.name = name
        self.bucket = unpack(self.http.put(f"/buckets/{name}", content=pack(NewBucket(new_id()))).content, Bucket)
        self.root = self.bucket.root

    def another(self, client_name: str) -> Api:
        """A second client of the same bucket."""
        other = object.__new__(Api)
        other.__dict__.update(self.__dict__ | {"client": new_id(), "client_name": client_name})
        return other

    def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """A request below the bucket."""
        content = None if body is None else pack(body)
        return self.http.request(method, f"/buckets/{self.name}{path}", content=content)

    def get(self, path: str, kind: type[T]) -> T:
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer.text
        return unpack(answer.content, kind)

    def send(self, batch: Commit) -> Committed:
        answer = self.request("POST", "/commits", batch)
        assert answer.status_code == 200, answer.text
        return unpack(answer.content, Committed)

    def batch(self, *ops: Op) -> Commit:
        return Commit(self.client, new_id(), list(ops), self.client_name)

    def commit(self, *ops: Op) -> list[Result]:
        return self.send(self.batch(*ops)).results

    def put_chunk(self, data: bytes) -> bytes:
        """Store one chunk in a batch; returns its id."""
        chunk = chunk_id(self.bucket.chunk_key, data)
        answer = self.request("POST", "/chunks", ChunkBatch([(chunk, encode(data))]))
        assert answer.status_code == 204, answer.text
        return chunk

    def create(self, name: bytes, mode: int = REGULAR, parent: FileId = b"", **attributes: Any) -> Create:
        return Create(parent or self.root, name, File(new_id(), mode, **attributes), time.time_ns())

    def write(self, file: FileId, data: bytes, base: bytes = b"", session: bytes = b"") -> Write:
        """A write of one chunk, which is stored first."""
        slices = [Slice(self.put_chunk(data), 0, len(data))] if data else []
        return Write(
            file,
            new_id(),
            len(data),
            content_hash(self.bucket.chunk_key, slices),
            Manifest(slices),
            time.time_ns(),
            time.time_ns(),
            base,
            session,
        )

    def new_file(self, name: bytes, data: bytes = b"", parent: FileId = b"", mode: int = REGULAR) -> FileId:
        """A file that is there and committed."""
        create = self.create(name, mode, parent)
        write = [self.write(create.file.id, data)] if data else []
        assert all(result.status == "ok" for result in self.commit(create, *write))
        return create.file.id

    def file(self, id_: FileId) -> File:
        found = self.get(f"/files/{id_.hex()}", FileAnswer).file
        assert found is not None
        return found

    def lookup(self, name: bytes, parent: FileId = b"") -> File | None:
        return self.get(f"/files/{(parent or self.root).hex()}/lookup?name={base64url(name)}", FileAnswer).file

    def entries(self, parent: FileId = b"") -> list[Entry]:
        return self.get(f"/files/{(parent or self.root).hex()}/entries", Listing).entries

    def names(self, parent: FileId = b"") -> list[bytes]:
        return [entry.name for entry in self.entries(parent)]

    def content(self, id_: FileId) -> bytes:
        """What a file holds, from its single chunk."""
        manifest = self.file(id_).manifest
        if manifest is None or not manifest.slices:
            return b""
        [piece] = manifest.slices
        answer = self.request("POST", "/chunks/read", {"ids": [piece.chunk]})
        [(chunk, stored)] = unpack(answer.content, ChunkBatch).chunks
        return bytes(open_chunk(self.bucket.chunk_key, chunk, stored))

    def changes(self, since: int, wait: float = 0, limit: int = 1000) -> Changes:
        return self.get(f"/changes?since={since}&wait={wait}&limit={limit}", Changes)

    def refresh(self) -> Bucket:
        return self.get("", Bucket)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def problem(answer: httpx.Response, code: Code) -> Problem:
    """The problem an answer carries, which must be ``code`` and complete."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found = msgspec.json.decode(answer.content, type=Problem)
    assert code_of(found.type) is code, found
    assert answer.status_code == found.status == code.status
    assert found.title == code.title
    assert found.instance.startswith("urn:uuid:")
    assert "Traceback" not in answer.text
    return found
