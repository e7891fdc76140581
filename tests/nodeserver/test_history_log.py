"""The log of a file, and of what is below a directory: what happened, to which paths as they were then."""

from __future__ import annotations

import stat
from collections.abc import Iterable

import pytest

from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Create,
    Event,
    Events,
    Exchange,
    File,
    FileId,
    Link,
    Rename,
    SetAttr,
    Unlink,
    Write,
)
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, problem

BOTH_ENGINES = True


def log(api: Api, file: FileId = b"", limit: int = 1000) -> list[Event]:
    """The whole log, newest first."""
    found: list[Event] = []
    before = 0
    while True:
        page = api.get(f"/files/{(file or api.root).hex()}/log?before={before}&limit={limit}", Events)
        assert not found or not page.events or page.events[0].seq < found[-1].seq
        found += page.events
        if not page.before:
            return found
        assert not before or page.before < before
        before = page.before


def told(events: Iterable[Event]) -> list[str]:
    """Events, oldest first, in a line each."""
    return [
        " ".join([event.kind, event.path.decode(), *filter(None, [event.new_path.decode(), event.detail])])
        for event in reversed(list(events))
    ]


def test_what_happened_with_paths_as_they_were(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    file = api.new_file(b"f", b"1", parent=top)
    api.commit(Rename(api.root, b"top", top, api.root, b"new", 1))
    api.commit(Rename(top, b"f", file, top, b"g", 1))
    api.commit(Link(api.root, b"h", file, 1))
    api.commit(Exchange(api.root, b"new", top, api.root, b"h", file, 1))
    api.commit(Unlink(api.root, b"new", file, 1))
    assert told(log(api)) == [
        "create top",
        "create top/f",
        "write top/f",
        "rename top new",
        "rename new/f new/g",
        "link new/g h",
        "exchange new h",
        "unlink new",
    ]
    assert told(log(api, top)) == [
        "create top",
        "create top/f",
        "write top/f",
        "rename top new",
        "rename new/f new/g",
        "link new/g h",
        "exchange new h",
    ]
    assert told(log(api, file)) == [
        "create top/f",
        "write top/f",
        "rename new/f new/g",
        "link new/g h",
        "exchange new h",
        "unlink new",
    ]


def test_within_one_commit_paths_are_those_of_the_moment(api: Api) -> None:
    directory = api.create(b"d", DIRECTORY)
    file = api.create(b"f", parent=directory.file.id)
    top, id_ = directory.file.id, file.file.id
    api.commit(
        directory,
        file,
        Rename(api.root, b"d", top, api.root, b"e", 1),
        SetAttr(id_, 1, mode=stat.S_IFREG | 0o600),
        Unlink(top, b"f", id_, 1),
        Unlink(api.root, b"e", top, 1),
    )
    expected = ["create d", "create d/f", "rename d e", "setattr e/f mode 0600", "unlink e/f", "unlink e"]
    assert told(log(api)) == told(log(api, top)) == expected
    assert told(log(api, id_)) == [expected[1], expected[3], expected[4]]


def test_who_and_when(api: Api) -> None:
    answer = api.send(api.batch(create := api.create(b"f"), write := api.write(create.file.id, b"12345")))
    laptop = api.another("laptop")
    laptop.commit(SetAttr(create.file.id, 1, uid=5, gid=6, mtime_ns=7, xattrs={}))
    changed, written, created = log(api)
    assert (created.kind, created.seq, created.time_ns, created.mode) == ("create", 1, answer.time_ns, REGULAR)
    assert (created.author, created.client, created.client_name) == ("admin", api.client, "desk")
    assert (written.version, written.size, written.file) == (write.version, 5, create.file.id)
    assert (changed.client, changed.client_name) == (laptop.client, "laptop")
    assert changed.detail == "owner 5, group 6, times, extended attributes"


def test_the_log_of_a_file_has_those_it_continues(api: Api) -> None:
    first = api.new_file(b"doc", b"1")
    second = api.new_file(b"tmp", b"2")
    api.commit(Rename(api.root, b"tmp", second, api.root, b"doc", 1, first))
    api.new_file(b"unrelated", b"3")
    whole = ["create doc", "write doc", "create tmp", "write tmp", "rename tmp doc"]
    assert told(log(api, second)) == whole
    assert told(log(api, first)) == [*whole[:2], whole[4]], "it was replaced"


def test_what_had_no_effect_or_another(api: Api) -> None:
    file = api.new_file(b"f", b"1")
    base = api.file(file).version
    api.commit(Unlink(api.root, b"f", new_id(), 1), api.write(file, b"1", base), api.write(file, b"2", base))
    laptop = api.another("laptop")
    [_, conflict] = laptop.commit(api.create(b"f"), api.write(file, b"3", base))
    created, written = (event for event in log(api)[1::-1])
    assert created.path.startswith(b"f (conflict laptop")
    assert (written.path, written.file) == (conflict.name, conflict.file)
    assert told(log(api))[:3] == ["create f", "write f", "write f"]
    assert told(log(api, conflict.file)) == ["create f", "write f", "write f", f"write {conflict.name.decode()}"]


def test_a_file_that_comes_back(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    file = api.new_file(b"f", b"1", parent=top)
    base = api.file(file).version
    api.commit(Unlink(top, b"f", file, 1))
    api.commit(api.write(file, b"22", base), SetAttr(file, 1, mode=REGULAR))
    assert told(log(api, file))[-3:] == ["unlink top/f", "write top/f", "setattr top/f mode 0644"]


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
def test_pages(api: Api, limit: int) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    for number in range(5):
        api.new_file(b"%d" % number, parent=top)
        api.new_file(b"other%d" % number)
        api.commit(*(api.create(b"%d-%d" % (number, n), parent=top) for n in range(3)))
    assert len(log(api, limit=limit)) == 26
    assert len(log(api, top, limit=limit)) == 21
    page = api.get(f"/files/{top.hex()}/log?limit={limit}", Events)
    assert len(page.events) <= max(limit, 3), "more than the limit only for one commit"


def test_a_large_commit_is_a_page_of_its_own(api: Api) -> None:
    api.commit(*(api.create(b"%d" % number) for number in range(4096)))
    api.new_file(b"last")
    first = api.get(f"/files/{api.root.hex()}/log?limit=10", Events)
    assert (len(first.events), first.before) == (1, 2)
    second = api.get(f"/files/{api.root.hex()}/log?limit=10&before=2", Events)
    assert (len(second.events), second.before) == (4096, 0)


def test_directories_and_links_are_told_by_their_mode(api: Api) -> None:
    api.new_file(b"d", mode=DIRECTORY)
    api.commit(Create(api.root, b"l", File(new_id(), 0o120777, target=b"d"), 1))
    assert [event.mode for event in log(api)] == [0o120777, DIRECTORY]


def test_bad_questions(api: Api) -> None:
    file = api.new_file(b"f")
    problem(api.request("GET", f"/files/{new_id().hex()}/log"), Code.NO_FILE)
    problem(api.request("GET", f"/files/{file.hex()}/log?before=x"), Code.MALFORMED)
    problem(api.request("GET", f"/files/{file.hex()}/log?limit=0"), Code.MALFORMED)
    assert api.get(f"/files/{file.hex()}/log?before=1", Events) == Events([], 0)
    assert len(api.get(f"/files/{file.hex()}/log?before=99", Events).events) == 1


def test_the_same_content_is_not_told(api: Api) -> None:
    """A write of what is there already is no event."""
    file = api.new_file(b"f", b"1")
    same = api.write(file, b"1", api.file(file).version)
    assert isinstance(same, Write)
    api.commit(same)
    assert told(log(api, file)) == ["create f", "write f"]
