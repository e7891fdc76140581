"""Pages end by bytes as well as by count, and who follows them misses nothing and gets nothing twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from nodeserver.metadata.paging import page_of
from nodeserver.protocol.wire import (
    MAX_ANSWER,
    Changes,
    Entry,
    Events,
    Listing,
    Rename,
    TreeListing,
    Unlink,
    Versions,
    unpack,
)
from tests.nodeserver.api import DIRECTORY, Api, base64url

ROOM = MAX_ANSWER + MAX_ANSWER // 8
"""Bytes that no answer exceeds, unless it has one item."""
VALUE = b"v" * 60_000


def heavy(api: Api, parent: bytes, count: int, prefix: bytes = b"f") -> list[bytes]:
    """Files whose attributes take 60 kB each; their names."""
    names = [prefix + b"%04d" % number for number in range(count)]
    for start in range(0, count, 50):
        api.commit(*(api.create(name, parent=parent, xattrs={b"user.x": VALUE}) for name in names[start : start + 50]))
    return names


def follow(api: Api, path: str, kind: Callable[[bytes], Listing | TreeListing]) -> tuple[list[Entry], int]:
    """All entries, and how many pages they took."""
    found: list[Entry] = []
    pages, more = 0, True
    while more:
        after = base64url(found[-1].name) if found else ""
        body = api.request("GET", f"{path}after={after}").content
        page = kind(body)
        assert page.entries
        assert len(body) <= ROOM or len(page.entries) == 1
        found += page.entries
        pages, more = pages + 1, page.more
    return found, pages


def listing(body: bytes) -> Listing:
    return unpack(body, Listing)


def tree(body: bytes) -> TreeListing:
    return unpack(body, TreeListing)


def test_listings_of_heavy_files_come_in_pages_of_bounded_size(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    names = heavy(api, top, 250)
    seq = api.get("/changes?since=0", Changes).seq
    api.commit(*(Unlink(top, name, api.lookup(name, top).id, 1) for name in names[::3]))  # type: ignore[union-attr]
    for path, expected in (
        (f"/files/{top.hex()}/entries?at={seq}&", names),
        (f"/files/{top.hex()}/entries?", [name for at, name in enumerate(names) if at % 3]),
    ):
        found, pages = follow(api, path, listing)
        assert [entry.name for entry in found] == expected
        assert all(entry.file.xattrs == {b"user.x": VALUE} for entry in found)
        assert pages > 2
    found, pages = follow(api, f"/files/{api.root.hex()}/tree?at={seq}&", tree)
    assert [entry.name for entry in found] == [b"top", *(b"top/" + name for name in names)]
    assert pages > 2


def test_an_item_over_the_budget_travels_alone() -> None:
    sizes = [1, 1, MAX_ANSWER + 1, MAX_ANSWER + 1, 1, MAX_ANSWER - 1, 1, 1]
    pages, rest, more = list[int](), sizes, True
    while more:
        page, more = page_of(rest, 3, lambda size: size)
        rest = rest[len(page) :]
        pages.append(len(page))
    assert pages == [2, 1, 1, 2, 2]
    assert page_of([], 3, lambda size: size) == ([], False)


def test_the_change_feed_and_the_log_come_in_pages_of_bounded_size(api: Api) -> None:
    count = 1_500
    names = [b"%0250d" % number for number in range(count)]
    creates = [api.create(name) for name in names]
    api.commit(*creates)
    for turn in range(7):
        olds, news = (names, [b"x" + name[1:] for name in names])[:: -1 if turn % 2 else 1]
        files = [create.file.id for create in creates]
        api.commit(*(Rename(api.root, o, f, api.root, n, 1) for o, n, f in zip(olds, news, files, strict=True)))
    seqs: list[int] = []
    since = 0
    while True:
        body = api.request("GET", f"/changes?since={since}").content
        page = unpack(body, Changes)
        assert len(body) <= ROOM or len(page.commits) == 1
        if not page.commits:
            break
        seqs += [change.seq for change in page.commits]
        since = page.seq
    assert seqs == list(range(1, 9))
    before, events = 0, 0
    while True:
        body = api.request("GET", f"/files/{api.root.hex()}/log?before={before}").content
        log = unpack(body, Events)
        assert len(body) <= 2 * ROOM
        events += len(log.events)
        before = log.before
        if not before:
            break
    assert events == 8 * count


def test_the_history_of_a_name_and_who_had_it_come_in_pages(api: Api) -> None:
    for number in range(7):
        file = api.new_file(b"name", b"content %d" % number)
        if number < 6:
            api.commit(Unlink(api.root, b"name", file, 1))
    path = f"/files/{api.root.hex()}"
    found, after, more = [], "", True
    while more:
        page = api.get(f"{path}/versions?name={base64url(b'name')}&limit=3&after={after}", Versions)
        found += [version.id for version in page.versions]
        after, more = found[-1].hex(), page.more
    assert len(found) == len(set(found)) == 7
    who, until, more = [], 0, True
    while more:
        answer = api.http.get(
            f"/buckets/{api.name}{path}/occupants?name={base64url(b'name')}&limit=3&after={until}",
            headers={"accept": "application/json"},
        ).json()
        who += [occupant[0] for occupant in answer["occupants"]]
        until, more = answer["occupants"][-1][4], answer.get("more", False)
    assert len(who) == len(set(who)) == 7


def test_a_listing_of_heavy_files_costs_the_server_little_memory(api: Api) -> None:
    node = api.node
    top = api.new_file(b"top", mode=DIRECTORY)
    heavy(api, top, 1_500)
    peak = Path(f"/proc/{node.pid}/clear_refs")
    peak.write_text("5")  # VmHWM begins anew
    before = _peak(node.pid)
    found, _ = follow(api, f"/files/{top.hex()}/entries?", listing)
    assert len(found) == 1_500
    # 90 MB of values; SQLite's own cache may keep as much, each value in an answer is there three times.
    assert _peak(node.pid) - before < 180 << 20


def _peak(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) << 10
