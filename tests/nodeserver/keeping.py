"""What the tests of retention and garbage collection share: orders to workers, and a look at what is on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from nodeserver.content.codec import open_chunk
from nodeserver.protocol.wire import (
    ChunkBatch,
    ChunkIds,
    FileId,
    Hold,
    Manifest,
    NewHold,
    Policy,
    Purge,
    Purged,
    Retention,
    RetentionReport,
    Version,
    Versions,
    WorkerStatus,
    pack,
    unpack,
)
from tests.harness import Node, eventually
from tests.nodeserver.api import Api, base64url

SOON = ("--gc-grace", "0.2s", "--gc-interval", "1d", "--retention-interval", "1d")
"""Options of a server whose garbage goes soon, when it is told so."""


def worker(api: Api, name: str, action: str = "run") -> WorkerStatus:
    """Give an order to a worker."""
    answer = api.http.post(f"/workers/{name}/{action}")
    assert answer.status_code == 200, answer.text
    return unpack(answer.content, WorkerStatus)


def set_policy(api: Api, policy: Policy | None, directory: FileId = b"") -> Retention:
    """Set or take away the policy of a directory."""
    path = f"/retention/{(directory or api.root).hex()}"
    answer = api.request("DELETE", path) if policy is None else api.request("PUT", path, policy)
    assert answer.status_code == 200, answer.text
    return unpack(answer.content, Retention)


def preview(api: Api, under: FileId = b"") -> RetentionReport:
    return api.get(f"/retention/preview?under={under.hex()}", RetentionReport)


def thin(api: Api, under: FileId = b"") -> RetentionReport:
    """Let retention run."""
    answer = api.request("POST", f"/retention/run?under={under.hex()}")
    assert answer.status_code == 200, answer.text
    return unpack(answer.content, RetentionReport)


def hold(api: Api, file: FileId, note: str = "") -> Hold:
    answer = api.request("PUT", f"/holds/{file.hex()}", NewHold(note))
    assert answer.status_code == 200, answer.text
    return unpack(answer.content, Hold)


def release(api: Api, file: FileId) -> None:
    assert api.request("DELETE", f"/holds/{file.hex()}").status_code == 204


def purge(api: Api, name: bytes, versions: Iterable[bytes] = (), parent: FileId = b"") -> Purged:
    answer = api.request("POST", "/purge", Purge(parent or api.root, name, list(versions)))
    assert answer.status_code == 200, answer.text
    return unpack(answer.content, Purged)


def versions(api: Api, name: bytes, parent: FileId = b"") -> list[Version]:
    """The history of a name, oldest first."""
    return api.get(f"/files/{(parent or api.root).hex()}/versions?name={base64url(name)}", Versions).versions


def save(api: Api, file: FileId, *contents: bytes) -> list[bytes]:
    """Write contents, one after the other; the ids of the versions."""
    made = []
    for content in contents:
        op = api.write(file, content, api.file(file).version)
        assert [result.status for result in api.commit(op)] == ["ok"]
        made.append(op.version)
    return made


def read_manifest(api: Api, manifest: Manifest) -> bytes:
    """The content that a manifest stands for; fails unless it is whole."""
    data = b""
    for piece in manifest.slices:
        answer = api.request("POST", "/chunks/read", ChunkIds([piece.chunk]))
        assert answer.status_code == 200, answer.text
        [(chunk, stored)] = unpack(answer.content, ChunkBatch).chunks
        data += bytes(open_chunk(api.bucket.chunk_key, chunk, stored))[piece.offset : piece.offset + piece.length]
    return data


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def rows(node: Node, query: str, *values: object) -> list[tuple[object, ...]]:
    """Rows of the metadata database."""
    with contextlib.closing(sqlite3.connect(node.data / "metadata.sqlite", timeout=30)) as database:
        return list(database.execute(query, values))


def manifests(node: Node) -> dict[bytes, Manifest]:
    """The manifests of all versions there are."""
    found = {}
    for id_, packed in rows(node, "SELECT id, manifest FROM version"):
        assert isinstance(id_, bytes)
        assert isinstance(packed, bytes)
        found[id_] = unpack(packed, Manifest)
    return found


def needed(node: Node) -> set[bytes]:
    """The chunks that versions list."""
    return {piece.chunk for manifest in manifests(node).values() for piece in manifest.slices if piece.chunk}


def stored(node: Node) -> set[bytes]:
    """The chunks that are stored."""
    chunks: Path = node.data / "chunks"
    with contextlib.closing(sqlite3.connect(chunks / "index.sqlite", timeout=30)) as index:
        packed = {row[0] for row in index.execute("SELECT id FROM chunk")}
    return packed | {bytes.fromhex(path.name) for path in chunks.glob("*/files/*/*")}


def collect(api: Api) -> None:
    """Run garbage collection until nothing is left for it."""

    def collected() -> bool:
        status = worker(api, "gc")
        assert not status.error, status.error
        return stored(api.node) <= needed(api.node) and not rows(api.node, "SELECT * FROM condemned")

    eventually(collected, 30, "garbage is collected")


def pack_bytes(node: Node) -> int:
    """Bytes in the packs of all buckets."""
    return sum(path.stat().st_size for path in (node.data / "chunks").glob("*/packs/*"))


def send(api: Api, path: str, body: object) -> int:
    """The status of a POST below the bucket."""
    return api.http.post(f"/buckets/{api.name}{path}", content=pack(body)).status_code
