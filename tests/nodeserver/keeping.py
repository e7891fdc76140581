"""What the tests of retention and garbage collection share: orders to workers, and a look at what is on the disk."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import text

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
    unpack,
)
from tests.harness import eventually
from tests.nodeserver.api import Api, base64url
from tests.nodeserver.postgres import reading

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


def rows(api: Api, table: str, columns: str = "*") -> list[tuple[object, ...]]:
    """Rows that a table of the metadata has of the bucket."""
    query = text(f"SELECT {columns} FROM {table} WHERE bucket = (SELECT bucket FROM bucket WHERE id = :id)")
    with reading(api.node) as connection:
        return [tuple(row) for row in connection.execute(query, {"id": api.bucket.id})]


def manifests(api: Api) -> dict[bytes, Manifest]:
    """The manifests of all versions there are."""
    found = {}
    for id_, packed in rows(api, "version", "id, manifest"):
        assert isinstance(id_, bytes)
        assert isinstance(packed, bytes)
        found[id_] = unpack(packed, Manifest)
    return found


def needed(api: Api) -> set[bytes]:
    """The chunks that versions list."""
    return {piece.chunk for manifest in manifests(api).values() for piece in manifest.slices if piece.chunk}


def shelf(api: Api) -> Path:
    """Where the chunks of the bucket are."""
    return api.node.data / "chunks" / api.bucket.id.hex()


def stored(api: Api) -> set[bytes]:
    """The chunks that are stored."""
    with contextlib.closing(sqlite3.connect(api.node.data / "chunks" / "index.sqlite", timeout=30)) as index:
        packed = {row[0] for row in index.execute("SELECT id FROM chunk WHERE bucket = ?", [api.bucket.id])}
    return packed | {bytes.fromhex(path.name) for path in shelf(api).glob("files/*/*")}


def collect(api: Api) -> None:
    """Run garbage collection until nothing is left for it."""

    def collected() -> bool:
        status = worker(api, "gc")
        assert not status.error, status.error
        return stored(api) <= needed(api) and all(doomed for (doomed,) in rows(api, "condemned", "doomed"))

    eventually(collected, 30, "garbage is collected")
