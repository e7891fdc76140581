"""What commits do, seen over HTTP."""

from __future__ import annotations

import os
import re
import stat

import msgspec
import pytest

from nodeserver.content.codec import HEADER, chunk_id, encode
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    MAX_COMMIT_CHUNKS,
    BucketSettings,
    ChunkIds,
    Commit,
    Committed,
    Events,
    Exchange,
    Link,
    Manifest,
    Rename,
    SetAttr,
    Slice,
    Unlink,
    Write,
    unpack,
)
from tests.nodeserver.api import DIRECTORY, Api, problem

BOTH_ENGINES = True
STAMP = rb"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ"


def test_a_file_with_content_comes_back(api: Api) -> None:
    id_ = api.new_file(b"report.odt", b"hello")
    found = api.file(id_)
    assert (found.size, found.nlink, found.mode) == (5, 1, stat.S_IFREG | 0o644)
    assert api.content(id_) == b"hello"
    assert api.names() == [b"report.odt"]
    usage = api.refresh().usage
    assert (usage.used_bytes, usage.used_files) == (5, 1)


def test_a_repeated_batch_gets_the_first_answer_and_changes_nothing(api: Api) -> None:
    batch = api.batch(api.create(b"one"), api.create(b"one"))
    first = api.send(batch)
    api.commit(Unlink(api.root, b"one", batch.ops[0].file.id, 1))  # type: ignore[union-attr]
    assert api.send(batch) == first
    assert first.results[1].status == "conflict"
    assert api.refresh().seq == first.seq + 1


def test_the_same_batch_id_of_another_client_is_another_batch(api: Api) -> None:
    batch = api.batch(api.create(b"one"))
    other = api.another("laptop").batch(api.create(b"two"))
    other.batch = batch.batch
    assert api.send(other).seq == api.send(batch).seq - 1
    assert api.names() == [b"one", b"two"]


def test_operations_sent_again_in_a_new_batch_have_no_effect(api: Api) -> None:
    create = api.create(b"a")
    write = api.write(create.file.id, b"x")
    api.commit(create, write)
    assert [result.status for result in api.commit(create, write)] == ["ok", "ok"]
    assert api.names() == [b"a"]
    assert api.file(create.file.id).version == write.version


def test_all_kinds_of_files(api: Api) -> None:
    kinds = [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR]
    creates = [api.create(b"%o" % kind, kind | 0o600, rdev=259) for kind in kinds]
    link = api.create(b"link", stat.S_IFLNK | 0o777, target=b"../\xff/there", xattrs={b"user.a": b"\0"})
    assert all(result.status == "ok" for result in api.commit(*creates, link))
    found = api.lookup(b"link")
    assert found is not None
    assert (found.target, found.size, found.xattrs) == (b"../\xff/there", 10, {b"user.a": b"\0"})
    assert sorted(entry.file.mode for entry in api.entries()) == sorted([*(k | 0o600 for k in kinds), 0o120777])
    assert api.refresh().usage.used_bytes == 0


def test_a_taken_name_gives_a_conflict_name(api: Api) -> None:
    api.new_file(b"report.tar.gz")
    laptop = api.another("laptop/1")
    [result] = laptop.commit(laptop.create(b"report.tar.gz"))
    assert result.status == "conflict"
    assert re.fullmatch(rb"report\.tar \(conflict laptop1 " + STAMP + rb"\)\.gz", result.name)
    assert result.parent == api.root
    assert api.names() == [result.name, b"report.tar.gz"]


def test_a_directory_that_meets_a_directory_becomes_that(api: Api) -> None:
    desk = api.new_file(b"p", mode=DIRECTORY)
    inner = api.new_file(b"q", parent=desk, mode=DIRECTORY)
    api.new_file(b"file", parent=inner)
    laptop = api.another("laptop")
    p, q = laptop.create(b"p", stat.S_IFDIR | 0o700), laptop.create(b"q", DIRECTORY)
    q.parent = p.file.id
    file, own = laptop.create(b"file", parent=q.file.id), laptop.create(b"own", parent=q.file.id)
    met_p, met_q, conflict, ok = laptop.commit(p, q, file, own)
    assert (met_p.status, met_p.parent, met_p.name, met_p.file) == ("conflict", api.root, b"p", desk)
    assert (met_q.status, met_q.parent, met_q.name, met_q.file) == ("conflict", desk, b"q", inner)
    assert (conflict.status, conflict.parent, ok.status) == ("conflict", inner, "ok")
    assert (api.names(), api.names(desk)) == ([b"p"], [b"q"])
    assert set(api.names(inner)) == {b"file", b"own", conflict.name}
    assert api.file(desk).mode == DIRECTORY, "it stays as it was"
    # What names it later means the other: as a parent, to move it. Not to change its attributes, or to delete it.
    late = laptop.create(b"late", parent=q.file.id)
    moved = Rename(q.file.id, b"own", own.file.id, p.file.id, b"own", 7)
    results = laptop.commit(
        late, moved, SetAttr(p.file.id, 8, mode=DIRECTORY | 0o777), Unlink(api.root, b"p", p.file.id, 9)
    )
    assert [result.status for result in results] == ["ok", "ok", "dropped", "dropped"]
    assert (set(api.names(desk)), b"late" in api.names(inner)) == ({b"q", b"own"}, True)
    assert [result.status for result in laptop.commit(Rename(api.root, b"p", p.file.id, api.root, b"renamed", 10))] == [
        "ok"
    ]
    [again] = laptop.commit(p)
    assert (again.status, again.name, again.file) == ("conflict", b"renamed", desk)
    assert api.names() == [b"renamed"]
    assert api.refresh().usage.used_files == 6
    events = api.get(f"/files/{api.root.hex()}/log?before=0&limit=100", Events).events
    told = [(event.kind, event.path, event.new_path) for event in reversed(events) if event.client == laptop.client]
    assert told == [
        ("create", b"p/q/" + conflict.name, b""),
        ("create", b"p/q/own", b""),
        ("create", b"p/q/late", b""),
        ("rename", b"p/q/own", b"p/own"),
        ("rename", b"p", b"renamed"),
    ]


def test_only_a_directory_in_its_own_place_meets_another(api: Api) -> None:
    """Not a file that meets a directory or the other way round, nor what comes from a deleted directory."""
    api.new_file(b"directory", mode=DIRECTORY)
    api.new_file(b"file")
    for create in api.create(b"directory"), api.create(b"file", DIRECTORY):
        [result] = api.commit(create)
        assert (result.status, result.file) == ("conflict", create.file.id)
    gone = api.new_file(b"gone", mode=DIRECTORY)
    create = api.create(b"directory", DIRECTORY, parent=gone)
    unlinked, result = api.commit(Unlink(api.root, b"gone", gone, 1), create)
    assert (unlinked.status, result.status, result.file) == ("ok", "conflict", create.file.id)
    assert result.name != b"directory"


def test_conflict_names_fit_and_do_not_collide(api: Api) -> None:
    name = "ä".encode() * 125 + b".jpeg"
    api.new_file(name)
    results = api.commit(api.create(name), api.create(name), api.create(name))
    names = {result.name for result in results}
    assert len(names) == 3
    for other in names:
        assert len(other) <= 255
        assert other.decode().endswith(").jpeg")


def test_links_are_counted(api: Api) -> None:
    id_ = api.new_file(b"a", b"xyz")
    assert [r.status for r in api.commit(Link(api.root, b"b", id_, 5), Link(api.root, b"b", id_, 5))] == ["ok", "ok"]
    assert (api.file(id_).nlink, api.file(id_).ctime_ns) == (2, 5)
    assert api.refresh().usage.used_bytes == 3
    api.commit(Unlink(api.root, b"a", id_, 6))
    assert api.file(id_).nlink == 1
    api.commit(Unlink(api.root, b"b", id_, 7))
    assert api.file(id_).nlink == 0
    usage = api.refresh().usage
    assert (usage.used_bytes, usage.used_files) == (0, 0)


def test_directories_count_their_subdirectories(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    sub = api.new_file(b"sub", parent=top, mode=DIRECTORY)
    assert (api.file(api.root).nlink, api.file(top).nlink, api.file(sub).nlink) == (3, 3, 2)
    api.commit(Rename(top, b"sub", sub, api.root, b"sub", 9))
    assert (api.file(api.root).nlink, api.file(top).nlink, api.file(top).mtime_ns) == (4, 2, 9)


def test_unlink_is_dropped_when_it_no_longer_fits(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    id_ = api.new_file(b"f", parent=top)
    results = api.commit(Unlink(api.root, b"top", top, 1), Unlink(top, b"f", new_id(), 1), Unlink(top, b"g", id_, 1))
    assert [result.status for result in results] == ["dropped"] * 3
    results = api.commit(Unlink(top, b"f", id_, 1), Unlink(api.root, b"top", top, 1))
    assert [result.status for result in results] == ["ok"] * 2
    assert api.names() == []


def test_rename_replaces_what_it_was_told_to(api: Api) -> None:
    old, new = api.new_file(b"doc", b"old"), api.new_file(b"doc.tmp", b"new")
    [result] = api.commit(Rename(api.root, b"doc.tmp", new, api.root, b"doc", 1, replaces=old))
    assert result.status == "ok"
    assert api.names() == [b"doc"]
    assert api.content(api.entries()[0].file.id) == b"new"
    assert api.file(old).nlink == 0


def test_rename_onto_another_file_makes_a_conflict_name(api: Api) -> None:
    theirs, mine = api.new_file(b"doc", b"theirs"), api.new_file(b"doc.tmp", b"mine")
    [result] = api.commit(Rename(api.root, b"doc.tmp", mine, api.root, b"doc", 1))
    assert result.status == "conflict"
    assert {entry.name: entry.file.id for entry in api.entries()} == {b"doc": theirs, result.name: mine}
    [result] = api.commit(Rename(api.root, b"doc.tmp", mine, api.root, b"other", 1))
    assert result.status == "dropped"


def test_rename_of_a_directory_over_one_that_filled_up(api: Api) -> None:
    full, empty = api.new_file(b"full", mode=DIRECTORY), api.new_file(b"empty", mode=DIRECTORY)
    api.new_file(b"f", parent=full)
    [result] = api.commit(Rename(api.root, b"empty", empty, api.root, b"full", 1, replaces=full))
    assert result.status == "conflict"
    assert {entry.file.id for entry in api.entries()} == {full, empty}


def test_no_directory_gets_into_itself(api: Api) -> None:
    a = api.new_file(b"a", mode=DIRECTORY)
    b = api.new_file(b"b", parent=a, mode=DIRECTORY)
    c = api.new_file(b"c", parent=b, mode=DIRECTORY)
    x = api.new_file(b"x")
    results = api.commit(
        Rename(api.root, b"a", a, c, b"a", 1),
        Rename(api.root, b"a", a, a, b"a", 1),
        Exchange(api.root, b"a", a, b, b"c", c, 1),
        Exchange(b, b"c", c, api.root, b"a", a, 1),
        Exchange(api.root, b"x", x, b, b"c", c, 1),
    )
    assert [result.status for result in results] == ["dropped"] * 4 + ["ok"]
    assert {entry.name: entry.file.id for entry in api.entries()} == {b"a": a, b"x": c}
    assert [api.file(id_).nlink for id_ in (api.root, a, b, c, x)] == [4, 3, 2, 2, 1]


def test_what_goes_into_a_deleted_directory_goes_above_it(api: Api) -> None:
    a = api.new_file(b"a", mode=DIRECTORY)
    b = api.new_file(b"b", parent=a, mode=DIRECTORY)
    f = api.new_file(b"f", parent=a)
    api.commit(Unlink(a, b"b", b, 1))
    create, results = api.create(b"new", parent=b), []
    results += api.commit(create, Link(b, b"linked", f, 1), Rename(a, b"f", f, b, b"moved", 1))
    assert [(r.status, r.parent, r.name) for r in results] == [
        ("conflict", a, name) for name in (b"new", b"linked", b"moved")
    ]
    [result] = api.commit(api.create(b"orphan", parent=new_id()))
    assert (result.status, result.parent) == ("conflict", api.root)


def test_setattr(api: Api) -> None:
    id_ = api.new_file(b"f", b"1")
    [result] = api.commit(SetAttr(id_, 9, mode=DIRECTORY & ~0o777 | 0o4600, uid=4294967294, gid=7, mtime_ns=-1))
    found = api.file(id_)
    assert result.status == "ok"
    assert (found.mode, found.uid, found.gid, found.mtime_ns, found.ctime_ns) == (0o104600, 4294967294, 7, -1, 9)
    api.commit(SetAttr(id_, 10, xattrs={b"user.x": b"1"}), SetAttr(id_, 11, atime_ns=5))
    assert (api.file(id_).xattrs, api.file(id_).atime_ns) == ({b"user.x": b"1"}, 5)
    api.commit(SetAttr(id_, 12, xattrs={}), Unlink(api.root, b"f", id_, 13))
    assert api.file(id_).xattrs == {}
    assert api.commit(SetAttr(id_, 14, mode=0o100600))[0].status == "dropped"


def test_a_write_from_an_old_base_is_kept_beside_the_file(api: Api) -> None:
    id_ = api.new_file(b"doc.txt", b"base")
    base = api.file(id_).version
    laptop = api.another("laptop")
    api.commit(api.write(id_, b"mine", base))
    late = laptop.write(id_, b"theirs", base)
    [result] = laptop.commit(late)
    assert result.status == "conflict"
    assert re.fullmatch(rb"doc \(conflict laptop " + STAMP + rb"\)\.txt", result.name)
    assert api.content(id_) == b"mine"
    assert api.content(result.file) == b"theirs"

    # who wrote it may go on from there without knowing of the conflict
    [again] = laptop.commit(laptop.write(id_, b"theirs, too", late.version))
    assert (again.status, again.file, again.name) == ("conflict", result.file, result.name)
    assert api.content(result.file) == b"theirs, too"
    assert len(api.entries()) == 2


def test_a_write_to_a_deleted_file_brings_it_back(api: Api) -> None:
    id_ = api.new_file(b"doc", b"base")
    base = api.file(id_).version
    write = api.write(id_, b"more", base)
    api.commit(Unlink(api.root, b"doc", id_, 1))
    [result] = api.commit(write)
    assert (result.status, result.name, result.file) == ("conflict", b"doc", id_)
    assert api.content(id_) == b"more"
    assert api.refresh().usage.used_bytes == 4


def test_a_write_to_a_deleted_file_whose_name_is_taken(api: Api) -> None:
    id_ = api.new_file(b"doc", b"base")
    write = api.write(id_, b"more", api.file(id_).version)
    api.commit(Unlink(api.root, b"doc", id_, 1), api.create(b"doc"))
    [result] = api.commit(write)
    assert result.status == "conflict"
    assert result.name.startswith(b"doc (conflict desk ")
    assert api.content(id_) == b"more"


def test_one_session_leaves_one_version(api: Api) -> None:
    id_ = api.new_file(b"db", b"0")
    base, session = api.file(id_).version, new_id()
    first = api.write(id_, b"1", base, session)
    second = api.write(id_, b"2", first.version, session)
    third = api.write(id_, b"3", second.version, new_id())
    for write in (first, second):
        assert api.commit(write)[0].status == "ok"
    # the version that was replaced is gone: content made from it is content made from nothing that is known
    assert api.commit(api.write(id_, b"x", first.version))[0].status == "conflict"
    assert api.commit(third)[0].status == "ok"
    assert api.content(id_) == b"3"


def test_an_empty_file_and_holes_and_indirect_manifests(api: Api) -> None:
    id_ = api.new_file(b"f")
    assert api.commit(api.write(id_, b""))[0].status == "ok"
    listed = pack_slices([Slice(b"", 0, 1 << 40)])
    indirect = Manifest([Slice(api.put_chunk(listed), 0, len(listed))], True)
    for size, manifest in ((10, Manifest([Slice(b"", 0, 10)])), (1 << 40, indirect)):
        write = Write(id_, new_id(), size, bytes(32), manifest, 1, 1, api.file(id_).version)
        assert api.commit(write)[0].status == "ok"
        assert (api.file(id_).size, api.file(id_).manifest) == (size, manifest)


def test_unknown_chunks_refuse_the_whole_commit(api: Api) -> None:
    create = api.create(b"f")
    write = api.write(create.file.id, b"abc")
    unknown = bytes(range(32))
    bad = Write(create.file.id, new_id(), 3, bytes(32), Manifest([Slice(unknown, 0, 3)]), 1, 1)
    batch = api.batch(create, write, bad)
    assert problem(api.request("POST", "/commits", batch), Code.MISSING_CHUNKS).ids == [unknown.hex()]
    assert (api.names(), api.refresh().seq) == ([], 0)
    batch.ops.pop()
    assert api.send(batch).seq == 1


def carrying(api: Api, *contents: bytes) -> Commit:
    """A commit of files with these contents, in chunks that come with it."""
    stored = {chunk_id(api.bucket.chunk_key, data): encode(data) for data in contents}
    batch = api.batch()
    for number, (chunk, data) in enumerate(zip(stored, contents, strict=True)):
        create, manifest = api.create(b"%d" % number), Manifest([Slice(chunk, 0, len(data))])
        batch.ops += [create, Write(create.file.id, new_id(), len(data), bytes(32), manifest, 1, 1)]
    batch.chunks = list(stored.items())
    return batch


def test_a_commit_carries_its_chunks(api: Api) -> None:
    contents = [b"small", os.urandom(100_000)]
    batch = carrying(api, *contents)
    first = api.send(batch)
    assert [api.content(entry.file.id) for entry in api.entries()] == contents
    # a repeat stores nothing again, with its chunks or without
    chunks = api.node.data / "chunks" / api.bucket.id.hex()
    before = sorted((path, path.stat().st_size, path.stat().st_mtime_ns) for path in chunks.rglob("*"))
    assert api.send(batch) == first
    batch.chunks = []
    assert api.send(batch) == first
    assert sorted((path, path.stat().st_size, path.stat().st_mtime_ns) for path in chunks.rglob("*")) == before


def test_a_damaged_chunk_in_a_commit_refuses_all_of_it(api: Api) -> None:
    batch = carrying(api, b"good", b"bad")
    ids = [chunk for chunk, _ in batch.chunks]
    good = batch.chunks[1]
    batch.chunks[1] = (good[0], good[1][:-1] + b"?")
    assert problem(api.request("POST", "/commits", batch), Code.CHECKSUM).ids == [ids[1].hex()]
    batch.chunks[1] = (b"short", good[1])
    problem(api.request("POST", "/commits", batch), Code.MALFORMED)
    assert (api.names(), api.refresh().seq) == ([], 0)
    assert unpack(api.request("POST", "/chunks/missing", ChunkIds(ids)).content, ChunkIds).ids == ids
    batch.chunks.pop()
    assert problem(api.request("POST", "/commits", batch), Code.MISSING_CHUNKS).ids == [ids[1].hex()]
    batch.chunks.append(good)
    assert api.send(batch).seq == 1


def test_a_commit_carries_chunks_up_to_a_limit(api: Api) -> None:
    data = os.urandom(MAX_COMMIT_CHUNKS - HEADER)
    problem(api.request("POST", "/commits", carrying(api, data, b"")), Code.TOO_LARGE)
    assert api.refresh().seq == 0
    assert api.send(carrying(api, data)).seq == 1


def test_quota(api: Api) -> None:
    assert api.request("PATCH", "", BucketSettings(quota_bytes=10)).status_code == 200
    one = api.new_file(b"one", b"12345678")
    create = api.create(b"two")
    results = api.commit(create, api.write(create.file.id, b"123"), api.create(b"three"))
    assert [result.status for result in results] == ["ok", "quota", "ok"]
    assert api.file(create.file.id).size == 0

    # what fits goes in, also after a refused version that it was made from; shrinking always does
    refused = api.write(create.file.id, b"123")
    results = api.commit(refused, api.write(create.file.id, b"12", refused.version))
    assert [result.status for result in results] == ["quota", "ok"]
    api.request("PATCH", "", BucketSettings(quota_bytes=1))
    assert api.commit(api.write(one, b"1234567", api.file(one).version))[0].status == "ok"
    assert api.commit(api.write(one, b"12345678", api.file(one).version))[0].status == "quota"
    usage = api.refresh().usage
    assert (usage.used_bytes, usage.used_files, usage.quota_bytes) == (9, 3, 1)
    api.request("PATCH", "", BucketSettings(None))
    assert api.refresh().usage.quota_bytes is None


def test_json_does_the_same(api: Api) -> None:
    headers = {"content-type": "application/json", "accept": "application/json"}
    batch = msgspec.json.encode(api.batch(api.create(b"f\xff", xattrs={b"user.\xff": b"\xfe"})))
    answer = api.http.post(f"/buckets/{api.name}/commits", content=batch, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.decode(answer.content, type=Committed).results[0].status == "ok"
    assert api.names() == [b"f\xff"]
    assert api.entries()[0].file.xattrs == {b"user.\xff": b"\xfe"}


@pytest.mark.parametrize("ops", [0, 4096])
def test_the_smallest_and_the_largest_batch(api: Api, ops: int) -> None:
    answer = api.request("POST", "/commits", api.batch(*(api.create(b"%d" % n) for n in range(ops))))
    assert len(unpack(answer.content, Committed).results) == ops
    assert api.refresh().usage.used_files == ops
