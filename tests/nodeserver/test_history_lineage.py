"""Whose history files and names continue, as the API tells it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest

from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Create,
    Events,
    Exchange,
    FileId,
    Link,
    Manifest,
    Occupants,
    Op,
    PastNames,
    Rename,
    SetAttr,
    Slice,
    Unlink,
    Version,
    Versions,
    Write,
)
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, base64url, problem


class Desk:
    """Files in a bucket's root, by name, whose contents are holes: a content is its size."""

    def __init__(self, api: Api, *, together: bool) -> None:
        self.api = api
        self.together = together
        """Whether all operations of a step go in one commit."""
        self.files: dict[str, FileId] = {}
        self.heads: dict[FileId, bytes] = {}
        self.pending: list[Op] = []

    def done(self) -> None:
        """The end of a step."""
        if self.together:
            results = self.api.commit(*self.pending)
        else:
            results = [result for op in self.pending for result in self.api.commit(op)]
        assert {result.status for result in results} <= {"ok"}, results
        self.pending = []

    def create(self, name: str, size: int = 0) -> None:
        create = self.api.create(name.encode())
        self.files[name] = create.file.id
        self.pending.append(create)
        if size:
            self.write(name, size)

    def write(self, name: str, size: int) -> None:
        file = self.files[name]
        hashed = size.to_bytes(32, "big")
        write = Write(file, new_id(), size, hashed, Manifest([Slice(b"", 0, size)]), 1, 1, self.heads.get(file, b""))
        self.heads[file] = write.version
        self.pending.append(write)

    def rename(self, old: str, new: str) -> None:
        replaced = self.files.get(new, b"")
        root = self.api.root
        self.pending.append(Rename(root, old.encode(), self.files[old], root, new.encode(), 1, replaced))
        self.files[new] = self.files.pop(old)

    def exchange(self, one: str, other: str) -> None:
        root, files = self.api.root, self.files
        self.pending.append(Exchange(root, one.encode(), files[one], root, other.encode(), files[other], 1))
        files[one], files[other] = files[other], files[one]

    def unlink(self, name: str) -> None:
        self.pending.append(Unlink(self.api.root, name.encode(), self.files.pop(name), 1))

    def save(self, name: str, *sizes: int, via: str = "tmp") -> None:
        """Save by rename, each a step."""
        for size in sizes:
            self.create(via, size)
            self.rename(via, name)
            self.done()

    def lists(self, name: str, *sizes: int) -> None:
        """The history of a name, which must be told consistently."""
        found = history(self.api, name.encode())
        assert [version.size for version in found] == list(sizes)
        numbers = [version.number for version in found]
        assert numbers == sorted(set(numbers)), "numbers do not count along"
        assert all(one.seq <= other.seq for one, other in itertools.pairwise(found))
        current = [version.size for version in found if version.current]
        assert current == ([sizes[-1]] if name in self.files and sizes else [])


BOTH_ENGINES = True


def history(api: Api, name: bytes, directory: FileId = b"", limit: int = 10_000) -> list[Version]:
    """The whole history of a name, page by page."""
    found: list[Version] = []
    more = True
    while more:
        after = found[-1].id.hex() if found else ""
        path = f"/files/{(directory or api.root).hex()}/versions?name={base64url(name)}&limit={limit}&after={after}"
        page = api.get(path, Versions)
        assert len(page.versions) == limit or not page.more
        found += page.versions
        more = page.more
    return found


@pytest.fixture(params=[True, False], ids=["in one commit", "each in its own"])
def desk(request: pytest.FixtureRequest, api: Api) -> Desk:
    return Desk(api, together=request.param)


def test_saved_by_rename(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    desk.save("doc", 2, 3)
    desk.write("doc", 4)
    desk.done()
    desk.lists("doc", 1, 2, 3, 4)
    desk.lists("tmp", *([] if desk.together else [2, 3]))
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 1, 2, 3, 4)
    desk.lists("doc", 1, 2, 3, 4)


def test_one_temporary_name_for_two_files(desk: Desk) -> None:
    for name, size in (("a", 1), ("b", 11), ("a", 2), ("b", 12)):
        desk.save(name, size)
    desk.lists("a", 1, 2)
    desk.lists("b", 11, 12)


def test_a_temporary_file_that_was_deleted_does_not_leak(desk: Desk) -> None:
    desk.save("a", 1)
    desk.unlink("a")
    desk.done()
    desk.save("b", 2)
    desk.lists("b", 2)


@pytest.mark.parametrize("backup", ["doc~", "doc.bak", "doc.1"])
def test_backup_by_rename(desk: Desk, backup: str) -> None:
    desk.create("doc", 1)
    desk.done()
    for size in (2, 3):
        desk.rename("doc", backup)
        desk.create("doc", size)
        desk.done()
    desk.lists("doc", 1, 2, 3)
    desk.lists(backup, 1, 2)
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 1, 2, 3)


def test_a_backup_put_back(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    desk.rename("doc", "doc~")
    desk.create("doc", 2)
    desk.done()
    desk.rename("doc~", "doc")
    desk.done()
    desk.write("doc", 3)
    desk.done()
    found = history(desk.api, b"doc")
    assert [(version.size, version.number) for version in found] == [(1, 1), (2, 2), (3, 3)]


def test_moved_away_and_another_made(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    desk.rename("doc", "old")
    desk.create("doc", 2)
    desk.done()
    assert [version.size for version in history(desk.api, b"doc")] == [1, 2]
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 2)
    desk.lists("old", 1)


def test_deleted_and_made_again(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    desk.unlink("doc")
    desk.done()
    desk.lists("doc", 1)
    desk.create("doc", 2)
    desk.done()
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 1, 2)


def test_exchanged_again_and_again(desk: Desk) -> None:
    """Numbers stay small."""
    desk.create("doc", 1)
    desk.create("new", 2)
    desk.done()
    for _ in range(100):
        desk.exchange("doc", "new")
        desk.done()
    for name in ("doc", "new"):
        assert max(version.number for version in history(desk.api, name.encode())) < 5


def test_saved_by_exchange(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    for size in (2, 3, 4):
        desk.create("new", size)
        desk.exchange("new", "doc")
        desk.unlink("new")
        desk.done()
    desk.lists("doc", 1, 2, 3, 4)
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 1, 2, 3, 4)


def test_set_aside_and_deleted(desk: Desk) -> None:
    desk.create("doc", 1)
    desk.done()
    for size in (2, 3):
        desk.create("new", size)
        desk.rename("doc", "aside")
        desk.rename("new", "doc")
        desk.unlink("aside")
        desk.done()
    desk.rename("doc", "moved")
    desk.done()
    desk.lists("moved", 1, 2, 3)


def test_the_same_content_is_no_version(api: Api) -> None:
    file = api.new_file(b"f", b"one")
    head = api.file(file)
    same = api.write(file, b"one", head.version)
    more = api.write(file, b"two", same.version)  # which the batch was made of before the server said so
    first, second = api.commit(same, more)
    assert (first.status, first.version, second.status) == ("same", head.version, "ok")
    assert [(version.size, version.base) for version in history(api, b"f")] == [(3, b""), (3, head.version)]
    again = api.write(file, b"two", more.version)
    again.mtime_ns = 77
    [result] = api.commit(again)
    assert (result.status, result.version) == ("same", more.version)
    assert (api.file(file).version, api.file(file).mtime_ns) == (more.version, 77)
    api.commit(SetAttr(file, time.time_ns(), mode=REGULAR & ~0o044))
    assert len(history(api, b"f")) == 2


def test_the_same_content_needs_no_quota(api: Api) -> None:
    file = api.new_file(b"f", b"12345")
    api.request("PATCH", "", {"quota_bytes": 1})
    [result] = api.commit(api.write(file, b"12345", api.file(file).version))
    assert result.status == "same"


def test_the_same_content_of_a_deleted_file_brings_it_back(api: Api) -> None:
    file = api.new_file(b"f", b"1")
    head = api.file(file).version
    api.commit(Unlink(api.root, b"f", file, 1))
    [result] = api.commit(api.write(file, b"1", head))
    assert (result.status, result.name) == ("conflict", b"f")
    assert api.content(file) == b"1"


def test_a_conflict_copy_continues_the_file_beside_it(api: Api) -> None:
    file = api.new_file(b"f.txt", b"base")
    base = api.file(file).version
    api.commit(api.write(file, b"theirs", base))
    [result] = api.another("laptop").commit(api.write(file, b"ours", base))
    assert result.status == "conflict"
    found = history(api, result.name)
    assert [(version.number, version.size) for version in found] == [(1, 4), (2, 6), (3, 4)]
    assert [version.current for version in found] == [False, False, True]
    assert len(history(api, b"f.txt")) == 2


def test_two_save_by_rename_at_once(api: Api) -> None:
    first = api.new_file(b"f", b"1")
    laptop = api.another("laptop")
    one, other = api.create(b"tmp1"), laptop.create(b"tmp2")
    for it, create, data in ((api, one, b"22"), (laptop, other, b"333")):
        rename = Rename(it.root, create.name, create.file.id, it.root, b"f", 1, first)
        *_, result = it.commit(create, it.write(create.file.id, data), rename)
    assert result.status == "conflict"
    assert [version.size for version in history(api, b"f")] == [1, 2]
    assert [version.size for version in history(api, result.name)] == [1, 2, 3]


def test_a_link_takes_nothing_over(api: Api) -> None:
    api.commit(Unlink(api.root, b"b", api.new_file(b"b", b"1"), 1))
    file = api.new_file(b"a", b"22")
    api.commit(Link(api.root, b"b", file, 1))
    assert [version.size for version in history(api, b"a")] == [2]
    assert [version.size for version in history(api, b"b")] == [1, 2]
    api.commit(Unlink(api.root, b"a", file, 1))
    [at_a, _] = [history(api, name) for name in (b"a", b"b")]
    assert not at_a[0].current
    assert history(api, b"b")[-1].current


def test_only_regular_files_continue_others(api: Api) -> None:
    api.commit(Unlink(api.root, b"x", api.new_file(b"x", b"1"), 1))
    directory = api.new_file(b"x", mode=DIRECTORY)
    assert [version.current for version in history(api, b"x")] == [False]
    api.commit(Unlink(api.root, b"x", directory, 1))
    api.new_file(b"x", b"22")
    assert [version.size for version in history(api, b"x")] == [1, 2]


def test_a_deleted_directory_comes_back_with_its_past(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    directory = api.new_file(b"dir", parent=top, mode=DIRECTORY)
    file = api.new_file(b"file", b"one", parent=directory)
    back = Link(api.root, b"back", directory, 1)
    assert [result.status for result in api.commit(back)] == ["dropped"], "it has a name"
    gone = (Unlink(directory, b"file", file, 1), Unlink(top, b"dir", directory, 1), Unlink(api.root, b"top", top, 1))
    api.commit(*gone)
    again = api.create(b"file", parent=directory)
    statuses = [result.status for result in api.commit(back, again, api.write(again.file.id, b"two"), back)]
    assert statuses == ["ok"] * 4, "once is enough"
    assert api.names() == [b"back"]
    assert [version.size for version in history(api, b"file", directory)] == [3, 3]
    events = api.get(f"/files/{directory.hex()}/log", Events).events
    assert [(event.kind, event.path) for event in events[:3]] == [
        ("write", b"back/file"),
        ("create", b"back/file"),
        ("create", b"back"),
    ]


def test_a_file_continues_what_was_in_another_directory(api: Api) -> None:
    old, new = api.new_file(b"old", mode=DIRECTORY), api.new_file(b"new", mode=DIRECTORY)
    file = api.new_file(b"file", b"one", parent=old)
    for name in (b"file", b"other"):
        create = api.create(name, parent=new)
        create.was_in = old
        api.commit(create, api.write(create.file.id, b"two"))
    assert len(history(api, b"file", new)) == 1, "not a file that is there still"
    api.commit(Unlink(old, b"file", file, 1))
    held = api.lookup(b"file", new)
    assert held
    again = api.create(b"file", parent=new)
    again.was_in = old
    api.commit(Unlink(new, b"file", held.id, 1), again, api.write(again.file.id, b"three"))
    assert [version.size for version in history(api, b"file", new)] == [3, 5], "what was deleted here comes first"
    third = api.new_file(b"third", mode=DIRECTORY)
    again = api.create(b"file", parent=third)
    again.was_in = old
    api.commit(again, api.write(again.file.id, b"4444"))
    assert [version.size for version in history(api, b"file", third)] == [3, 4]


def test_who_had_a_name(api: Api) -> None:
    first = api.new_file(b"x", b"1")
    api.commit(Unlink(api.root, b"x", first, 1))
    second = api.new_file(b"x", mode=DIRECTORY)
    api.commit(Rename(api.root, b"x", second, api.root, b"y", 1))
    third = api.new_file(b"x")
    found = api.get(f"/files/{api.root.hex()}/occupants?name={base64url(b'x')}", Occupants)
    assert found.seq == 5
    spans = [(it.file, it.mode, it.since_seq, it.until_seq) for it in found.occupants]
    assert spans == [(first, REGULAR, 1, 2), (second, DIRECTORY, 3, 4), (third, REGULAR, 5, 0)]
    times = [time for it in found.occupants for time in (it.since_ns, it.until_ns)]
    assert times[:-1] == sorted(times[:-1])
    assert times[-1] == 0
    never = api.get(f"/files/{api.root.hex()}/occupants?name={base64url(b'never')}", Occupants)
    assert never.occupants == []


def names(api: Api, directory: FileId, limit: int) -> list[tuple[bytes, int, bool]]:
    found: list[tuple[bytes, int, bool]] = []
    more = True
    while more:
        after = base64url(found[-1][0]) if found else ""
        page = api.get(f"/files/{directory.hex()}/names?limit={limit}&after={after}", PastNames)
        assert len(page.names) == limit or not page.more
        found += [(it.name, it.versions, it.live) for it in page.names]
        more = page.more
    return found


def test_names_that_had_content(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    for name in (b"a", b"\xff", b"gone", b"B"):
        api.new_file(name, b"1", parent=top)
    api.new_file(b"empty", parent=top)
    api.new_file(b"sub", mode=DIRECTORY, parent=top)
    api.commit(Create(top, b"link", api.create(b"", 0o120777, target=b"a").file, 1))
    gone = api.lookup(b"gone", top)
    moved = api.lookup(b"a", top)
    assert gone
    assert moved
    api.commit(api.write(moved.id, b"22", moved.version))
    api.commit(Unlink(top, b"gone", gone.id, 1), Rename(top, b"a", moved.id, api.root, b"a", 1))
    api.new_file(b"gone", mode=DIRECTORY, parent=top)
    expected = [(b"B", 1, True), (b"a", 2, False), (b"gone", 1, False), (b"\xff", 1, True)]
    for limit in (1, 2, 3, 4, 100):
        assert names(api, top, limit) == sorted(expected)
    page = api.get(f"/files/{top.hex()}/names", PastNames)
    newest = {name: history(api, name, top)[-1].committed_ns for name, _, _ in expected}
    assert {it.name: it.committed_ns for it in page.names} == newest


def test_names_of_a_directory_that_is_gone(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    file = api.new_file(b"f", b"1", parent=top)
    api.commit(Unlink(top, b"f", file, 1), Unlink(api.root, b"top", top, 1))
    assert names(api, top, 10) == [(b"f", 1, False)]
    [version] = history(api, b"f", top)
    assert api.request("GET", f"/versions/{version.id.hex()}").status_code == 200


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_of_versions(api: Api, limit: int) -> None:
    desk = Desk(api, together=True)
    desk.create("doc", 1)
    desk.done()
    desk.save("doc", *range(2, 12))
    assert history(api, b"doc", limit=limit) == history(api, b"doc")
    assert len(history(api, b"doc")) == 11


def check_bad(api: Api, requests: Sequence[tuple[str, Code]]) -> None:
    for path, code in requests:
        problem(api.request("GET", path), code)


def test_bad_questions(api: Api) -> None:
    file, root, name = api.new_file(b"f", b"1").hex(), api.root.hex(), base64url(b"f")
    check_bad(
        api,
        [
            (f"/files/{root}/versions", Code.INVALID_NAME),
            (f"/files/{root}/versions?name=!", Code.MALFORMED),
            (f"/files/{root}/versions?name={base64url(b'a/b')}", Code.INVALID_NAME),
            (f"/files/{root}/versions?name={name}&after=12", Code.MALFORMED),
            (f"/files/{root}/versions?name={name}&after={new_id().hex().upper()}", Code.MALFORMED),
            (f"/files/{root}/versions?name={name}&after={new_id().hex()}", Code.NO_FILE),
            (f"/files/{root}/versions?name={name}&limit=0", Code.MALFORMED),
            (f"/files/{root}/names?limit=0", Code.MALFORMED),
            (f"/files/{root}/names?after=!", Code.MALFORMED),
            (f"/files/{root}/occupants?name={base64url(b'..')}", Code.INVALID_NAME),
            (f"/files/{file}/names", Code.NO_FILE),
            (f"/files/{file}/versions?name={name}", Code.NO_FILE),
            (f"/files/{file}/occupants?name={name}", Code.NO_FILE),
            (f"/files/{new_id().hex()}/names", Code.NO_FILE),
            (f"/versions/{new_id().hex()}", Code.NO_FILE),
            ("/versions/12", Code.MALFORMED),
        ],
    )
