"""Whatever is sent, the answer is a precise problem, nothing is stored, and the server goes on."""

from __future__ import annotations

import contextlib
import http.client
import stat
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from nodeserver.content.codec import MAX_STORED
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import MAX_BODY, ChunkBatch, ChunkIds, Commit, pack
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, base64url, problem

BOTH_ENGINES = True

ID, OTHER = bytes.fromhex("01a2145a26767109ae1d9b111f977d0b"), bytes.fromhex("01a2145a521b73ccabf95e93d89998ed")
HUGE = 1 << 64


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1", Code.NO_ROUTE),
        ("GET", "/v1/", Code.NO_ROUTE),
        ("GET", "/v2/server", Code.NO_ROUTE),
        ("GET", "/v1/buckets/", Code.NO_ROUTE),
        ("GET", "/v1/buckets/none/nothing", Code.NO_ROUTE),
        ("GET", "/v1/../../etc/passwd", Code.NO_ROUTE),
        ("DELETE", "/v1/buckets", Code.METHOD),
        ("POST", "/v1/server", Code.METHOD),
        ("GET", "/v1/buckets/none/commits", Code.METHOD),
        ("PUT", "/v1/buckets/none/changes", Code.METHOD),
        ("GET", "/v1/buckets/none", Code.NO_BUCKET),
        ("GET", "/v1/buckets/none/changes?since=0", Code.NO_BUCKET),
        ("GET", f"/v1/buckets/none/files/{ID.hex()}", Code.NO_BUCKET),
        ("GET", f"/v1/buckets/none/chunks/{'ab' * 32}", Code.NO_BUCKET),
        ("POST", "/v1/buckets/none/commits", Code.NO_BUCKET),
        ("DELETE", "/v1/buckets/%2e%2e%2f", Code.NO_ROUTE),
    ],
)
def test_wrong_addresses(api: Api, method: str, path: str, code: Code) -> None:
    answer = api.http.request(method, api.node.url + path)
    problem(answer, code)
    assert code is not Code.METHOD or answer.headers["allow"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/files/xyz", Code.MALFORMED),
        ("/files/" + ID.hex().upper(), Code.MALFORMED),
        ("/files/" + ID.hex()[2:], Code.MALFORMED),
        ("/files/" + ID.hex() + "00/entries", Code.MALFORMED),
        ("/chunks/" + ID.hex(), Code.MALFORMED),
        ("/chunks/missing", Code.MALFORMED),
        ("/files/{root}/lookup", Code.INVALID_NAME),
        ("/files/{root}/lookup?name=" + base64url(b".."), Code.INVALID_NAME),
        ("/files/{root}/lookup?name=" + base64url(b"a/b"), Code.INVALID_NAME),
        ("/files/{root}/lookup?name=" + base64url(b"a" * 256), Code.INVALID_NAME),
        ("/files/{root}/lookup?name=***", Code.MALFORMED),
        ("/files/{root}/lookup?name=a", Code.MALFORMED),
        ("/files/{root}/entries?after=%F0%9F%92%A9", Code.MALFORMED),
        ("/files/{root}/entries?limit=0", Code.MALFORMED),
        ("/files/{root}/entries?limit=-1", Code.MALFORMED),
        ("/files/{root}/entries?limit=1e3", Code.MALFORMED),
        ("/changes?since=x", Code.MALFORMED),
        ("/changes?since=" + "9" * 30, Code.MALFORMED),
        ("/changes?since=0&wait=nan", Code.MALFORMED),
        ("/changes?since=0&wait=-1", Code.MALFORMED),
        ("/changes?since=9223372036854775807", Code.HISTORY_GONE),
    ],
)
def test_wrong_parameters(api: Api, path: str, code: Code) -> None:
    problem(api.request("GET", path.replace("{root}", api.root.hex())), code)


def _write(**changes: Any) -> dict[str, Any]:
    write = {"op": "write", "file": ID, "version": OTHER, "size": 0, "hash": bytes(32), "manifest": [[], False]}
    return write | {"mtime_ns": 0, "time_ns": 0} | changes


def _create(name: bytes = b"f", time_ns: int = 0, **file: Any) -> dict[str, Any]:
    return {
        "op": "create", "parent": ID, "name": name, "time_ns": time_ns,
        "file": {"id": OTHER, "mode": REGULAR} | file,
    }  # fmt: skip


def _setattr(**changes: Any) -> dict[str, Any]:
    return {"op": "setattr", "file": ID, "time_ns": 0} | changes


BAD_OPS = [
    (_create(b""), Code.INVALID_NAME),
    (_create(b"."), Code.INVALID_NAME),
    (_create(b".."), Code.INVALID_NAME),
    (_create(b"a/b"), Code.INVALID_NAME),
    (_create(b"a\0b"), Code.INVALID_NAME),
    (_create(b"a" * 256), Code.INVALID_NAME),
    (_create(time_ns=HUGE >> 1), Code.MALFORMED),
    (_create(id=b"short"), Code.MALFORMED),
    (_create(mode=0o644), Code.MALFORMED),
    (_create(mode=REGULAR | 1 << 20), Code.MALFORMED),
    (_create(mode=-1), Code.MALFORMED),
    (_create(uid=1 << 32), Code.MALFORMED),
    (_create(mtime_ns=HUGE >> 1), Code.MALFORMED),
    (_create(target=b"x"), Code.MALFORMED),
    (_create(mode=stat.S_IFLNK | 0o777), Code.MALFORMED),
    (_create(mode=stat.S_IFLNK | 0o777, target=b"x" * 4096), Code.MALFORMED),
    (_create(xattrs={b"": b""}), Code.INVALID_NAME),
    (_create(xattrs={b"user.a": b"x" * 70_000}), Code.TOO_LARGE),
    (_setattr(mode=HUGE - 1), Code.MALFORMED),
    (_setattr(atime_ns=HUGE - 1), Code.MALFORMED),
    (_setattr(uid="root"), Code.MALFORMED),
    (_write(size=-1), Code.MALFORMED),
    (_write(size=1 << 63), Code.MALFORMED),
    (_write(size=1), Code.MALFORMED),
    (_write(hash=b"short"), Code.MALFORMED),
    (_write(version=b""), Code.MALFORMED),
    (_write(base=b"short"), Code.MALFORMED),
    (_write(session=b"x" * 17), Code.MALFORMED),
    (_write(size=5, manifest=[[[b"short", 0, 5]], False]), Code.MALFORMED),
    (_write(size=5, manifest=[[[bytes(32), -1, 5]], False]), Code.MALFORMED),
    (_write(size=5, manifest=[[[bytes(32), 0, -5], [bytes(32), 0, 10]], False]), Code.MALFORMED),
    (_write(size=1 << 40, manifest=[[[bytes(32), 0, 1 << 40]], False]), Code.MALFORMED),
    (_write(size=1001, manifest=[[[b"", 0, 1]] * 1001, False]), Code.TOO_LARGE),
    ({"op": "explode"}, Code.MALFORMED),
    ({}, Code.MALFORMED),
    (_setattr() | {"file": 7}, Code.MALFORMED),
]


@pytest.mark.parametrize(("bad", "code"), BAD_OPS)
def test_wrong_operations(api: Api, bad: dict[str, Any], code: Code) -> None:
    good = msgspec.to_builtins(api.create(b"good"), builtin_types=(bytes,))
    batch = {"client": ID, "batch": new_id(), "ops": [good, bad], "client_name": ""}
    answer = api.http.post(f"/buckets/{api.name}/commits", content=msgspec.msgpack.encode(batch))
    problem(answer, code)
    assert api.names() == []
    assert api.refresh().seq == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"client": b""}, Code.MALFORMED),
        ({"batch": b"x" * 15}, Code.MALFORMED),
        ({"ops": None}, Code.MALFORMED),
        ({"client_name": "x" * 256}, Code.TOO_LARGE),
        ({"ops": [msgspec.to_builtins(_setattr(), builtin_types=(bytes,))] * 4097}, Code.TOO_LARGE),
    ],
)
def test_wrong_batches(api: Api, changes: dict[str, Any], code: Code) -> None:
    batch = {"client": ID, "batch": OTHER, "ops": [], "client_name": ""} | changes
    problem(api.http.post(f"/buckets/{api.name}/commits", content=msgspec.msgpack.encode(batch)), code)


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack", "text/plain", ""])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xff", b"[" * 100_000, b"\x91" * 100_000, b'{"ops": 1}', b"\xc1"])
def test_bodies_that_do_not_parse(api: Api, content_type: str, body: bytes) -> None:
    answer = api.http.post(f"/buckets/{api.name}/commits", content=body, headers={"content-type": content_type})
    problem(answer, Code.MALFORMED)


@pytest.mark.parametrize("name", ["ab", "Upper", "a_b", "192.168.1.1", "a..b", "-ab", "x" * 64, "ä" * 5])
def test_wrong_names_of_buckets(api: Api, name: str) -> None:
    problem(api.http.put(f"/buckets/{name}", content=pack({"id": new_id()})), Code.INVALID_NAME)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": b"x"},
        {"id": OTHER, "quota_bytes": -1},
        {"id": OTHER, "quota_bytes": HUGE - 1},
        {"id": OTHER, "uid": 1 << 32},
        {"id": OTHER, "gid": -1},
        {"id": OTHER, "mode": 0o10000},
    ],
)
def test_wrong_new_buckets(api: Api, body: dict[str, Any]) -> None:
    problem(api.http.put("/buckets/new-bucket", content=pack(body)), Code.MALFORMED)


def test_wrong_lists_of_chunks(api: Api) -> None:
    for path in ("/chunks/missing", "/chunks/read"):
        problem(api.request("POST", path, ChunkIds([b"short"])), Code.MALFORMED)
    problem(api.request("POST", "/chunks/read", ChunkIds([bytes(32)] * 1025)), Code.TOO_LARGE)
    problem(api.request("POST", "/chunks", ChunkBatch([(b"short", b"")])), Code.MALFORMED)
    problem(api.request("POST", "/chunks", ChunkBatch([(bytes(32), bytes(9 << 20))] * 2)), Code.TOO_LARGE)


@pytest.mark.parametrize(
    ("method", "path", "limit"), [("POST", "/commits", MAX_BODY), ("PUT", f"/chunks/{'ab' * 32}", MAX_STORED)]
)
def test_bodies_that_are_too_large(api: Api, method: str, path: str, limit: int) -> None:
    """With and without a declared length; the second is cut off on the way, not held in memory first."""

    def pieces() -> Iterator[bytes]:
        for _ in range(limit // (1 << 20) + 2):
            yield bytes(1 << 20)

    url = urlsplit(api.node.url)
    for body, extra in ((pieces(), {}), (b"x", {"Content-Length": str(1 << 50)})):
        connection = http.client.HTTPConnection(url.netloc, timeout=30)
        headers = {"Authorization": f"Bearer {api.node.token}", "Content-Type": "application/msgpack", **extra}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may come first
            connection.request(method, f"/v1/buckets/{api.name}{path}", body, headers, encode_chunked=not extra)
        answer = connection.getresponse()
        assert answer.status == 413
        assert msgspec.json.decode(answer.read())["type"] == Code.TOO_LARGE.uri
        connection.close()
    assert api.names() == []


def test_a_client_that_breaks_off_leaves_nothing(api: Api) -> None:
    url = urlsplit(api.node.url)
    batch = pack(Commit(new_id(), new_id(), [api.create(b"f", DIRECTORY)]))
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    connection.putrequest("POST", f"/v1/buckets/{api.name}/commits")
    connection.putheader("Authorization", f"Bearer {api.node.token}")
    connection.putheader("Content-Type", "application/msgpack")
    connection.putheader("Content-Length", str(len(batch)))
    connection.endheaders(batch[:-1])
    connection.close()
    assert api.names() == []
    assert api.new_file(b"g") is not None
