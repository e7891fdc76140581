"""Commits that are made to stop a server: each is refused, or costs no more than any other."""

from __future__ import annotations

import itertools
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from nodeserver.content.codec import MAX_CHUNK
from nodeserver.content.manifest import content_hash, pack_slices
from nodeserver.metadata import apply as applying
from nodeserver.metadata.apply import apply
from nodeserver.metadata.checks import Invalid, TooLarge, check_commit
from nodeserver.metadata.tree import Inode, Tree
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import BucketSettings, Commit, Create, File, Manifest, Op, SetAttr, Slice, Write, pack
from tests.harness import Node
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, problem

HOLE = [Slice(b"", 0, 1000)]


def _write(api: Api, file: bytes, version: bytes, base: bytes) -> Write:
    hash_ = content_hash(api.bucket.chunk_key, HOLE)
    return Write(file, version, 1000, hash_, Manifest(HOLE), 0, 0, base)


def _quota(api: Api, quota: int) -> None:
    answer = api.http.patch(f"/buckets/{api.name}", content=pack(BucketSettings(quota_bytes=quota)))
    assert answer.status_code == 200, answer.text


def test_versions_made_from_each_other_are_refused(api: Api) -> None:
    """Over quota, so that nothing of them is stored and each is looked up by what takes its place."""
    file = api.new_file(b"f")
    _quota(api, 10)
    one, other, third = new_id(), new_id(), new_id()
    for ops in (
        [_write(api, file, one, one), _write(api, file, other, one)],
        [_write(api, file, one, other), _write(api, file, other, one), _write(api, file, third, one)],
        [_write(api, file, one, other), _write(api, file, other, third), _write(api, file, third, one)],
    ):
        problem(api.request("POST", "/commits", api.batch(*ops)), Code.MALFORMED)
    assert api.refresh().seq == 1
    assert api.commit(_write(api, file, one, b""))[0].status == "quota"


def test_a_long_chain_of_refused_versions_is_gone_through_once(api: Api) -> None:
    file = api.new_file(b"f")
    _quota(api, 10)
    versions = [new_id() for _ in range(2001)]
    chain = [_write(api, file, version, base) for base, version in itertools.pairwise(versions)]
    last = [_write(api, file, new_id(), versions[-1]) for _ in range(2000)]
    results = api.commit(*reversed(chain), *last)
    assert {result.status for result in results} == {"quota"}


def test_thousands_of_files_with_one_name_cost_what_others_do(api: Api) -> None:
    count = 2000
    others = [api.create(b"n%d" % number) for number in range(count)]
    same = [api.create(b"same.txt") for _ in range(count)]
    begun = time.perf_counter()
    api.commit(*others)
    usual = time.perf_counter() - begun
    results = api.commit(*same)
    took = time.perf_counter() - begun - usual
    assert len({result.name for result in results if result.status == "conflict"}) == count - 1
    assert took < 20 * usual + 2, f"{took:.1f} s for one name, {usual:.1f} s for {count} names"


@pytest.mark.parametrize(
    "attributes",
    [
        {"rdev": -1},
        {"rdev": 1 << 32},
        {"rdev": (1 << 64) - 1},
        {"uid": -1},
        {"gid": 1 << 32},
        {"atime_ns": 1 << 63},
        {"mtime_ns": (1 << 64) - 1},
        {"mode": 1 << 32},
        {"mode": stat.S_IFREG | 1 << 20},
    ],
)
def test_numbers_that_no_kernel_takes_are_refused(api: Api, attributes: dict[str, Any]) -> None:
    create = api.create(b"f")
    create.file = File(new_id(), **({"mode": REGULAR} | attributes))
    answer = api.request("POST", "/commits", api.batch(create))
    problem(answer, Code.MALFORMED)
    assert api.names() == []


@pytest.mark.parametrize(
    ("xattrs", "code"),
    [
        ({b"user.%d" % n + b"x" * 200: b"" for n in range(400)}, Code.TOO_LARGE),
        ({b"user.a": bytes(65_537)}, Code.TOO_LARGE),
        ({b"user.%d" % n: bytes(65_536) for n in range(4)}, Code.TOO_LARGE),
        ({b"u" * 256: b""}, Code.INVALID_NAME),
    ],
)
def test_extended_attributes_beyond_what_linux_takes_are_refused(
    api: Api, xattrs: dict[bytes, bytes], code: Code
) -> None:
    file = api.new_file(b"f")
    for op in (api.create(b"g", xattrs=xattrs), SetAttr(file, 0, xattrs=xattrs)):
        problem(api.request("POST", "/commits", api.batch(op)), code)
    most = {b"user.a": bytes(40_000), b"user.b": bytes(65_536)}
    assert api.commit(SetAttr(file, 0, xattrs=most))[0].status == "ok"
    assert api.file(file).xattrs == most


def _indirect(api: Api, file: bytes, outer: list[Slice], size: int) -> Write:
    return Write(file, new_id(), size, bytes(32), Manifest(outer, indirect=True), 0, 0)


def test_lists_of_slices_that_swell_are_refused_in_little_memory(api: Api) -> None:
    """They compress a thousand times, and a commit may name the same part of one again and again."""
    file = api.new_file(b"f")
    part = b"\x93\xc4\x00\x00\x01" * (MAX_CHUNK // 5)
    head = api.put_chunk(b"\xdd" + (1 << 31).to_bytes(4, "big") + part[:-5])
    body = api.put_chunk(part)
    before = peak(api.node)
    for repeats in (1, 11):
        outer = [Slice(head, 0, len(part)), *[Slice(body, 0, len(part))] * repeats]
        write = _indirect(api, file, outer, (len(part) // 5) * (repeats + 1) - 1)
        problem(api.request("POST", "/commits", api.batch(write)), Code.MALFORMED)
    outer = [Slice(head, 0, len(part)), *[Slice(body, 0, len(part))] * 999]
    problem(api.request("POST", "/commits", api.batch(_indirect(api, file, outer, 1))), Code.TOO_LARGE)
    several = [_indirect(api, file, [Slice(body, 0, len(part))] * 12, 1) for _ in range(5)]
    problem(api.request("POST", "/commits", api.batch(*several)), Code.TOO_LARGE)
    problem(api.request("POST", "/commits", api.batch(_indirect(api, file, [Slice(b"", 0, 99)], 1))), Code.TOO_LARGE)
    assert peak(api.node) - before < 200, "MiB"


def test_a_list_of_slices_makes_up_the_size_that_is_said(api: Api) -> None:
    file = api.new_file(b"f")
    chunk = api.put_chunk(b"content")
    packed = pack_slices([Slice(chunk, 0, 7)] * 2000)
    outer = [Slice(api.put_chunk(packed), 0, len(packed))]
    problem(api.request("POST", "/commits", api.batch(_indirect(api, file, outer, 13_999))), Code.MALFORMED)
    problem(
        api.request("POST", "/commits", api.batch(_indirect(api, file, [Slice(outer[0].chunk, 0, 8)], 14_000))),
        Code.MALFORMED,
    )
    assert api.commit(_indirect(api, file, outer, 14_000))[0].status == "ok"


def peak(node: Node) -> int:
    """The most memory that a server took until now, in MiB."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


class _Nothing:
    """A bucket with a root directory and nothing in it."""

    def __init__(self, *directories: Inode) -> None:
        self._directories = {inode.id: inode for inode in directories}

    def inodes(self, ids: Any) -> dict[bytes, Inode]:
        return {id_: self._directories[id_] for id_ in ids if id_ in self._directories}

    def entries(self, _: Any) -> dict[Any, Any]:
        return {}

    versions = left = places = entries

    def places_left(self, _: Any) -> list[Any]:
        return []

    def begun(self, _file: bytes, _seq: int) -> list[Any]:
        return []

    def oldest_number(self, _: bytes) -> None:
        return None

    def last_place(self, _: bytes) -> None:
        return None


def test_a_commit_has_a_time_in_which_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    root = new_id()
    tree = Tree(_Nothing(Inode(root, DIRECTORY, nlink=2)), root, 1)
    ops: list[Op] = [Create(root, b"f", File(new_id(), REGULAR), 0)]
    monkeypatch.setattr(applying, "SECONDS", -1.0)
    with pytest.raises(TooLarge):
        apply(tree, Commit(new_id(), new_id(), ops), time_ns=0)


def test_a_version_is_not_made_from_itself() -> None:
    version = new_id()
    write = Write(new_id(), version, 1000, bytes(32), Manifest(HOLE), 0, 0, version)
    with pytest.raises(Invalid):
        check_commit(Commit(new_id(), new_id(), [write]))
