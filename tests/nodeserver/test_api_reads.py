"""Listings, look-ups, the change feed, buckets."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec

from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    INLINE_SLICES,
    Bucket,
    Buckets,
    FileAnswer,
    Listing,
    Manifest,
    NewBucket,
    Server,
    Slice,
    Unlink,
    Write,
    pack,
    unpack,
)
from tests.harness import eventually
from tests.nodeserver.api import DIRECTORY, Api, base64url, problem

BOTH_ENGINES = True


def test_pages_come_in_byte_order(api: Api) -> None:
    names = sorted([b"a", b"B", b"\xff\xfe", b"\xc3\xa4", b"a b", b"a.b", b"a" * 255, b"%", b"a0"])
    api.commit(*(api.create(name) for name in reversed(names)))
    found: list[bytes] = []
    more = True
    while more:
        after = base64url(found[-1]) if found else ""
        page = api.get(f"/files/{api.root.hex()}/entries?after={after}&limit=2", Listing)
        assert len(page.entries) <= 2
        assert page.directory.id == api.root
        found += [entry.name for entry in page.entries]
        more = page.more
    assert found == names


def test_a_listing_leaves_long_manifests_out(api: Api) -> None:
    chunk = api.put_chunk(b"x" * 100)
    for name, slices in ((b"short", INLINE_SLICES), (b"long", INLINE_SLICES + 1)):
        manifest = Manifest([Slice(chunk, n, 1) for n in range(slices)])
        create = api.create(name)
        api.commit(create, Write(create.file.id, new_id(), slices, bytes(32), manifest, 1, 1))
        assert api.file(create.file.id).manifest == manifest
    listed = {entry.name: entry.file for entry in api.entries()}
    assert listed[b"short"].manifest is not None
    assert listed[b"long"].manifest is None
    assert listed[b"long"].size == INLINE_SLICES + 1


def test_lookup(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    assert api.lookup(b"f\xff", top) is None
    id_ = api.new_file(b"f\xff", b"1", parent=top)
    found = api.lookup(b"f\xff", top)
    assert found is not None
    assert found.id == id_
    assert found.manifest is not None
    for path in (f"/files/{id_.hex()}/entries", f"/files/{new_id().hex()}/entries", f"/files/{new_id().hex()}"):
        problem(api.request("GET", path), Code.NO_FILE)
    problem(api.request("GET", f"/files/{new_id().hex()}/lookup?name=YQ"), Code.NO_FILE)


def test_changes_tell_what_a_commit_touched(api: Api) -> None:
    a = api.new_file(b"a", b"1")
    b = api.create(b"b")
    api.commit(b, Unlink(api.root, b"a", a, 1), api.create(b"c"))
    changes = api.changes(0)
    assert (changes.seq, [commit.seq for commit in changes.commits]) == (2, [1, 2])
    first, second = changes.commits
    assert first.client == api.client
    assert first.entries == [(api.root, b"a")]
    assert set(first.files) == {a, api.root}
    assert sorted(second.entries) == [(api.root, b"a"), (api.root, b"b"), (api.root, b"c")]
    assert {a, b.file.id, api.root} <= set(second.files)
    assert first.time_ns < second.time_ns
    assert (changes.usage.used_bytes, changes.usage.used_files) == (0, 2)
    assert api.changes(2).commits == []
    page = api.changes(0, limit=1)
    assert (page.seq, len(page.commits)) == (1, 1)
    problem(api.request("GET", "/changes?since=3"), Code.HISTORY_GONE)


def test_what_came_and_went_in_one_batch_leaves_no_entry(api: Api) -> None:
    create = api.create(b"tmp")
    api.commit(create, Unlink(api.root, b"tmp", create.file.id, 1))
    assert api.changes(0).commits[0].entries == []
    assert api.names() == []


def test_a_long_poll_returns_with_the_next_commit(api: Api) -> None:
    other = api.another("laptop")
    with ThreadPoolExecutor(8) as pool:
        polls = [pool.submit(api.changes, 0, 30) for _ in range(8)]
        time_of_commit = time.monotonic()
        other.new_file(b"news")
        for poll in polls:
            assert [commit.client for commit in poll.result().commits] == [other.client]
        assert time.monotonic() - time_of_commit < 10


def test_a_long_poll_ends_without_news(api: Api) -> None:
    before = time.monotonic()
    assert api.changes(0, wait=0.3).commits == []
    assert 0.3 <= time.monotonic() - before < 5


def test_a_long_poll_ends_when_its_bucket_does(api: Api) -> None:
    answers: list[httpx.Response] = []
    poll = threading.Thread(target=lambda: answers.append(api.request("GET", "/changes?since=0&wait=30")))
    poll.start()
    assert api.request("DELETE", "").status_code == 204
    poll.join(10)
    problem(answers[0], Code.NO_BUCKET)


def test_buckets(api: Api) -> None:
    new = NewBucket(new_id(), quota_bytes=5, uid=7, gid=8, mode=0o2750)
    path = f"/buckets/{api.name}-2"
    first = unpack(api.http.put(path, content=pack(new)).content, Bucket)
    again = unpack(api.http.put(path, content=pack(new)).content, Bucket)
    assert (again.id, again.root, again.chunk_key) == (first.id, first.root, first.chunk_key)
    assert first.id == new.id
    assert first.usage.quota_bytes == 5
    root = unpack(api.http.get(f"{path}/files/{first.root.hex()}").content, FileAnswer).file
    assert root is not None
    assert (root.mode, root.uid, root.gid, root.nlink) == (0o42750, 7, 8, 2)
    assert first.chunk_key != api.bucket.chunk_key
    problem(api.http.put(path, content=pack(NewBucket(new_id()))), Code.BUCKET_EXISTS)
    problem(api.http.put(path + "x", content=pack(new)), Code.BUCKET_EXISTS)
    listed = [bucket.name for bucket in unpack(api.http.get("/buckets").content, Buckets).buckets]
    assert {api.name, api.name + "-2"} <= set(listed)
    assert listed == sorted(listed)
    assert api.http.delete(path).status_code == 204
    problem(api.http.get(path), Code.NO_BUCKET)
    problem(api.http.delete(path), Code.NO_BUCKET)


def test_only_an_empty_bucket_can_be_deleted_and_its_name_is_free_then(api: Api) -> None:
    id_ = api.new_file(b"f", b"content of the first bucket")
    problem(api.request("DELETE", ""), Code.BUCKET_NOT_EMPTY)
    chunks = api.node.data / "chunks"
    assert list(chunks.rglob(f"*{api.bucket.id.hex()}*"))
    api.commit(Unlink(api.root, b"f", id_, 1))
    problem(api.request("DELETE", ""), Code.HAS_HISTORY)
    assert api.request("DELETE", "?history=destroy").status_code == 204
    again = unpack(api.http.put(f"/buckets/{api.name}", content=pack(NewBucket(new_id()))).content, Bucket)
    assert again.root != api.root
    assert (again.seq, again.usage.used_files) == (0, 0)
    problem(api.request("GET", f"/files/{id_.hex()}"), Code.NO_FILE)
    eventually(lambda: not list(chunks.rglob(f"*{api.bucket.id.hex()}*")), what="the chunks are gone")


def test_a_bucket_is_closed_to_the_ids_of_another(api: Api) -> None:
    id_ = api.new_file(b"f", b"secret")
    chunk = api.put_chunk(b"secret")
    other = Api(api.node, api.name + "-other")
    problem(other.request("GET", f"/files/{id_.hex()}"), Code.NO_FILE)
    problem(other.request("GET", f"/chunks/{chunk.hex()}"), Code.NO_CHUNK)
    problem(other.request("GET", f"/files/{api.root.hex()}/entries"), Code.NO_FILE)
    [result] = other.commit(Write(id_, new_id(), 1, bytes(32), Manifest([Slice(b"", 0, 1)]), 1, 1))
    assert result.status == "dropped"
    assert api.content(id_) == b"secret"
    other.http.close()


def test_health_and_server(api: Api) -> None:
    assert httpx.get(api.node.url + "/v1/health", trust_env=False).json() == {"status": "ok"}
    found = unpack(api.http.get("/server").content, Server)
    assert (len(found.id), found.protocol) == (16, 1)
    assert abs(found.time_ns - time.time_ns()) < 10e9
    assert 0 < found.free_bytes <= found.capacity_bytes
    as_json = api.http.get("/server", headers={"accept": "*/*"})
    assert msgspec.json.decode(as_json.content, type=Server).id == found.id
