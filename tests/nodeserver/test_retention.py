"""Retention on a real server: whose policy counts, what goes, and what a preview says before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from nodeserver.metadata.thinning import DEFAULT
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import BucketSettings, FileId, Link, Policy, Rename, Retention, RetentionReport, Unlink
from tests.harness import Node
from tests.nodeserver.api import DIRECTORY, Api, problem
from tests.nodeserver.keeping import (
    SOON,
    collect,
    hold,
    needed,
    preview,
    release,
    rows,
    save,
    set_policy,
    shelf,
    stored,
    thin,
    versions,
    worker,
)

BOTH_ENGINES = True
NOTHING = RetentionReport(0, 0, 0)
ONE = Policy(max_versions=1)


@pytest.fixture(scope="module")
def soon(tmp_path_factory: pytest.TempPathFactory, metadata_engine: str) -> Iterator[Node]:
    """A server whose garbage goes soon."""
    node = Node(tmp_path_factory.mktemp("soon") / "node", options=SOON).start()
    yield node
    node.destroy()


@pytest.fixture
def api(soon: Node, make_api: Callable[[Node], Api]) -> Api:
    return make_api(soon)


def folder(api: Api, name: bytes, parent: FileId = b"") -> FileId:
    return api.new_file(name, parent=parent, mode=DIRECTORY)


def saved(api: Api, name: bytes, count: int, parent: FileId = b"", size: int = 1000) -> FileId:
    """A file that was saved so often, each time with other content."""
    file = api.new_file(name, parent=parent)
    save(api, file, *(os.urandom(size) for _ in range(count)))
    return file


def replace(api: Api, name: bytes, content: bytes) -> FileId:
    """Save as editors do: write a new file and rename it over the old one."""
    old = api.lookup(name)
    assert old
    create = api.create(b"%s.new" % name)
    write = api.write(create.file.id, content)
    rename = Rename(api.root, b"%s.new" % name, create.file.id, api.root, name, time.time_ns(), old.id)
    assert [result.status for result in api.commit(create, write, rename)] == ["ok"] * 3
    return create.file.id


def count(api: Api, name: bytes, parent: FileId = b"") -> int:
    return len(versions(api, name, parent))


def test_without_a_policy_the_default_keeps_what_is_new(api: Api) -> None:
    saved(api, b"f", 20)
    assert api.get("/retention", Retention) == Retention([], DEFAULT)
    assert preview(api) == thin(api) == NOTHING
    assert count(api, b"f") == 20


def test_a_preview_says_what_goes_and_what_comes_free(api: Api) -> None:
    file = api.new_file(b"f")
    shared, kept = os.urandom(3000), os.urandom(5000)
    save(api, file, b"1" * 100_000, shared, os.urandom(150_000), kept, os.urandom(70_000))
    api.new_file(b"other", shared)
    set_policy(api, Policy(max_versions=2))
    before = stored(api)
    report = preview(api)
    assert (report.versions, report.files) == (3, 1)
    assert 150_000 < report.bytes < 152_000, "the first compresses well, the second is needed elsewhere"
    assert count(api, b"f") == 5
    assert preview(api) == report
    assert thin(api) == report
    assert [version.size for version in versions(api, b"f")] == [5000, 70_000]
    assert thin(api) == NOTHING
    gone = sum(path.stat().st_size for path in shelf(api).glob("files/*/*"))
    collect(api)
    assert stored(api) == needed(api) < before
    assert gone - sum(path.stat().st_size for path in shelf(api).glob("files/*/*")) > 150_000


def test_the_policy_of_the_nearest_directory_counts(api: Api) -> None:
    outer = folder(api, b"outer")
    inner = folder(api, b"inner", outer)
    for parent in (b"", outer, inner):
        saved(api, b"f", 5, parent)
    set_policy(api, ONE)
    set_policy(api, Policy(max_versions=3), outer)
    found = set_policy(api, Policy(max_versions=2), inner)
    assert {id_: policy.max_versions for id_, policy in found.policies} == {api.root: 1, outer: 3, inner: 2}
    assert thin(api, inner).versions == 3
    assert [count(api, b"f", parent) for parent in (b"", outer, inner)] == [5, 5, 2]
    assert preview(api, outer).versions == 2
    assert thin(api).versions == 4 + 2
    assert [count(api, b"f", parent) for parent in (b"", outer, inner)] == [1, 3, 2]
    set_policy(api, None, inner)
    set_policy(api, None, inner)
    set_policy(api, ONE, outer)
    assert thin(api).versions == 2 + 1
    assert api.get("/retention", Retention).policies == [(api.root, ONE), (outer, ONE)]


def test_of_excluded_names_only_the_newest_stays_while_the_file_exists(api: Api) -> None:
    set_policy(api, Policy(keep=DEFAULT.keep, exclude=["*.swp", "*.part"]))
    swap, text, part = (saved(api, name, 4) for name in (b"x.swp", b"x.txt", b"x.part"))
    assert thin(api).versions == 6
    assert api.content(swap)
    api.commit(Unlink(api.root, b"x.swp", swap, 1), Unlink(api.root, b"x.txt", text, 1))
    now = Rename(api.root, b"x.part", part, api.root, b"film", 1)
    assert api.commit(now)[0].status == "ok"
    assert thin(api).versions == 1
    assert (count(api, b"x.swp"), count(api, b"x.txt"), count(api, b"film")) == (0, 4, 1)
    collect(api)
    assert stored(api) == needed(api)


def test_a_history_that_goes_through_many_files_is_thinned_as_one(api: Api) -> None:
    saved(api, b"report.odt", 1)
    for _ in range(6):
        replace(api, b"report.odt", os.urandom(500))
    assert count(api, b"report.odt") == 7
    before = [version.id for version in versions(api, b"report.odt")]
    set_policy(api, Policy(max_versions=3))
    assert thin(api).versions == 4
    assert [version.id for version in versions(api, b"report.odt")] == before[-3:]
    replace(api, b"report.odt", b"latest")
    assert thin(api).versions == 1
    assert [version.id for version in versions(api, b"report.odt")][:2] == before[-2:]


def test_two_files_with_one_past_each_keep_their_own(api: Api) -> None:
    """A log that is rotated: the old one goes on under another name, the new one continues its history."""
    log = saved(api, b"log", 3)
    assert api.commit(Rename(api.root, b"log", log, api.root, b"log.1", time.time_ns()))[0].status == "ok"
    new = saved(api, b"log", 3)
    save(api, log, b"one more line")
    assert count(api, b"log") == 6
    set_policy(api, Policy(max_versions=2))
    thin(api)
    assert [version.file for version in versions(api, b"log.1")] == [log, log]
    assert [version.file for version in versions(api, b"log")] == [log, new, new], "what one of both keeps stays"


def test_what_is_held_stays(api: Api) -> None:
    outer = folder(api, b"outer")
    inner = folder(api, b"inner", outer)
    deleted, single = saved(api, b"deleted", 4, inner), saved(api, b"single", 4)
    saved(api, b"below", 4, inner)
    saved(api, b"free", 4)
    api.commit(Unlink(inner, b"deleted", deleted, 1))
    assert hold(api, outer, "the audit").note == "the audit"
    hold(api, single)
    set_policy(api, Policy(max_age=0))
    assert preview(api).versions == 3
    assert thin(api).versions == 3
    assert [count(api, b"deleted", inner), count(api, b"below", inner), count(api, b"single")] == [4, 4, 4]
    release(api, single)
    assert thin(api).versions == 3
    release(api, outer)
    assert thin(api).versions == 3 + 4
    assert count(api, b"deleted", inner) == 0


def test_a_hold_covers_the_whole_history_of_a_file(api: Api) -> None:
    saved(api, b"f", 2)
    new = replace(api, b"f", b"new")
    hold(api, new)
    set_policy(api, Policy(max_age=0))
    assert thin(api).versions == 0
    assert count(api, b"f") == 3


def test_a_share_of_the_quota_takes_the_oldest(api: Api) -> None:
    contents = [os.urandom(100_000) for _ in range(10)]
    file, other = api.new_file(b"f"), api.new_file(b"g")
    save(api, file, *contents)
    save(api, other, contents[0], b"head")
    set_policy(api, Policy(max_share=0.35))
    assert thin(api) == NOTHING, "there is no quota"
    api.request("PATCH", "", BucketSettings(1_000_000))
    report = preview(api)
    assert thin(api) == report
    # Contents 8, 7 and the first one, which the other file had last, fit.
    assert [version.size for version in versions(api, b"f")] == [100_000] * 3
    assert count(api, b"g") == 2
    assert report.versions == 7
    assert thin(api) == NOTHING
    hold(api, file)
    set_policy(api, Policy(max_share=0.0))
    assert thin(api).versions == 1
    release(api, file)
    assert thin(api).versions == 2
    assert count(api, b"f") == count(api, b"g") == 1


def test_the_newest_of_files_that_exist_never_goes(api: Api) -> None:
    files = [saved(api, b"f%d" % number, 3) for number in range(5)]
    assert api.commit(Link(api.root, b"second name", files[0], 1))[0].status == "ok"
    set_policy(api, Policy(max_age=0, max_versions=0, exclude=["*"]))
    assert thin(api).versions == 10
    assert all(api.content(file) for file in files)
    assert worker(api, "retention").error == ""
    collect(api)
    assert all(api.content(file) for file in files)


def test_a_deleted_file_goes_with_its_last_version_and_may_come_back_empty(api: Api) -> None:
    file = saved(api, b"f", 3)
    api.commit(Unlink(api.root, b"f", file, 1))
    set_policy(api, Policy(max_age=0))
    assert thin(api).versions == 3
    gone = api.file(file)
    assert (gone.nlink, gone.size, gone.version, gone.manifest) == (0, 0, b"", None)
    # A late write to it, by who does not know that it was deleted, is kept.
    [result] = api.commit(api.write(file, b"late"))
    assert result.status == "conflict"
    assert api.content(file) == b"late"
    assert len(rows(api, "version")) == 1


def test_wrong_policies_are_refused(api: Api) -> None:
    directory, file = folder(api, b"d"), api.new_file(b"f")
    path = f"/retention/{api.root.hex()}"
    for bad in (
        Policy(keep=[(0, 60), (60, 60)]),
        Policy(keep=[(-1, 60)]),
        Policy(max_versions=-1),
        Policy(max_age=1 << 40),
        Policy(max_share=1.5),
        Policy(exclude=[""]),
        Policy(exclude=["x" * 300]),
    ):
        problem(api.request("PUT", path, bad), Code.MALFORMED)
    problem(api.request("PUT", path, Policy(exclude=["x"] * 2000)), Code.TOO_LARGE)
    problem(api.request("PUT", path, b"no policy"), Code.MALFORMED)
    problem(api.request("PUT", f"/retention/{directory.hex()}", Policy(max_share=0.5)), Code.MALFORMED)
    problem(api.request("PUT", f"/retention/{file.hex()}", ONE), Code.NO_FILE)
    problem(api.request("PUT", f"/retention/{new_id().hex()}", ONE), Code.NO_FILE)
    problem(api.request("GET", "/retention/preview?under=xyz"), Code.MALFORMED)
    assert api.get("/retention", Retention).policies == []
