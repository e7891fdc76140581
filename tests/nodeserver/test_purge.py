"""Holds, and history that is destroyed for good."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import Events, Holds, NewHold, Purge, Rename, Unlink
from tests.harness import Node, command
from tests.nodeserver.api import DIRECTORY, Api, problem
from tests.nodeserver.keeping import SOON, collect, hold, needed, purge, release, rows, save, stored, versions

BOTH_ENGINES = True


@pytest.fixture(scope="module")
def soon(tmp_path_factory: pytest.TempPathFactory, metadata_engine: str) -> Iterator[Node]:
    """A server whose garbage goes soon."""
    node = Node(tmp_path_factory.mktemp("soon") / "node", options=SOON).start()
    yield node
    node.destroy()


@pytest.fixture
def api(soon: Node, make_api: Callable[[Node], Api]) -> Api:
    return make_api(soon)


def test_all_but_the_content_of_a_file_that_exists_is_destroyed(api: Api) -> None:
    file = api.new_file(b"f")
    ids = save(api, file, os.urandom(80_000), b"secret", b"now")
    done = purge(api, b"f")
    assert done.versions == 2
    assert 80_000 < done.bytes < 80_200
    assert [version.id for version in versions(api, b"f")] == ids[-1:]
    assert api.content(file) == b"now"
    collect(api)
    assert stored(api) == needed(api)
    assert purge(api, b"f").versions == 0


def test_chosen_versions_are_destroyed(api: Api) -> None:
    file = api.new_file(b"f")
    ids = save(api, file, b"1", b"2", b"3", b"4")
    assert purge(api, b"f", ids[1:3]).versions == 2
    assert [version.id for version in versions(api, b"f")] == [ids[0], ids[3]]
    assert api.request("GET", f"/versions/{ids[1].hex()}").status_code == 404


def test_the_history_before_a_rename_is_destroyed_with_the_rest(api: Api) -> None:
    old = api.new_file(b"f", b"old")
    new = api.new_file(b"f.new", b"new")
    assert api.commit(Rename(api.root, b"f.new", new, api.root, b"f", time.time_ns(), old))[0].status == "ok"
    assert len(versions(api, b"f")) == 2
    assert purge(api, b"f").versions == 1
    assert api.content(new) == b"new"
    assert len(rows(api, "version")) == 1


def test_of_a_deleted_file_nothing_is_left(api: Api) -> None:
    file = api.new_file(b"f", b"content")
    save(api, file, b"more")
    api.commit(Unlink(api.root, b"f", file, 1))
    assert purge(api, b"f").versions == 2
    assert versions(api, b"f") == []
    assert not rows(api, "version")
    assert file not in {row[0] for row in rows(api, "past", "file") + rows(api, "entry", "file")}
    collect(api)
    assert stored(api) == set()


def test_a_purge_is_in_the_log_without_content(api: Api) -> None:
    file = api.new_file(b"f")
    ids = save(api, file, b"secret one", b"secret two")
    seq = api.refresh().seq
    done = purge(api, b"f")
    assert done.seq == seq + 1 == api.refresh().seq
    [change] = api.changes(seq).commits
    assert (change.seq, change.entries, change.files) == (done.seq, [(api.root, b"f")], [file])
    [(author, ops)] = [row[1:] for row in rows(api, "commit_log", "seq, author, ops") if row[0] == done.seq]
    assert author == "admin"
    assert isinstance(ops, bytes)
    logged = msgspec.msgpack.decode(ops)["ops"]
    assert logged == [{"op": "purge", "parent": api.root, "name": b"f", "versions": ids[:1]}]
    [event] = [one for one in api.get(f"/files/{api.root.hex()}/log", Events).events if one.kind == "purge"]
    assert (event.seq, event.path, event.author) == (done.seq, b"f", "admin")
    # The log goes on behind it.
    save(api, file, b"third")
    assert api.refresh().seq == done.seq + 1


def test_what_is_held_is_not_destroyed(api: Api) -> None:
    folder = api.new_file(b"d", mode=DIRECTORY)
    file = api.new_file(b"f", parent=folder)
    ids = save(api, file, b"1", b"2")
    for held in (file, folder, api.root):
        hold(api, held)
        problem(api.request("POST", "/purge", Purge(folder, b"f")), Code.HELD)
        problem(api.request("POST", "/purge", Purge(folder, b"f", ids[:1])), Code.HELD)
        release(api, held)
    api.commit(Unlink(folder, b"f", file, 1))
    hold(api, folder)
    problem(api.request("POST", "/purge", Purge(folder, b"f")), Code.HELD)
    assert len(versions(api, b"f", folder)) == 2
    assert all(version.held for version in versions(api, b"f", folder))
    release(api, folder)
    assert purge(api, b"f", parent=folder).versions == 2


def test_what_cannot_be_destroyed_is_told(api: Api) -> None:
    file = api.new_file(b"f")
    ids = save(api, file, b"1", b"2")
    other = api.new_file(b"other", b"x")
    problem(api.request("POST", "/purge", Purge(api.root, b"f", [ids[-1]])), Code.CURRENT)
    problem(api.request("POST", "/purge", Purge(api.root, b"f", [ids[0], new_id()])), Code.NO_FILE)
    problem(api.request("POST", "/purge", Purge(api.root, b"f", [api.file(other).version])), Code.NO_FILE)
    problem(api.request("POST", "/purge", Purge(api.root, b"never was")), Code.NO_FILE)
    problem(api.request("POST", "/purge", Purge(api.root, b"a/b")), Code.INVALID_NAME)
    problem(api.request("POST", "/purge", Purge(b"short", b"f")), Code.MALFORMED)
    assert [version.id for version in versions(api, b"f")] == ids
    assert api.refresh().seq == 4


def test_holds_are_listed_with_who_made_them_and_why(api: Api) -> None:
    file, other = api.new_file(b"f"), api.new_file(b"g")
    before = time.time_ns()
    hold(api, other)
    held = hold(api, file, "the case of Smith")
    assert (held.file, held.author, held.note) == (file, "admin", "the case of Smith")
    assert before <= held.time_ns <= time.time_ns()
    assert [one.file for one in api.get("/holds", Holds).holds] == [other, file]
    hold(api, other, "again")
    assert [(one.file, one.note) for one in api.get("/holds", Holds).holds] == [
        (file, "the case of Smith"),
        (other, "again"),
    ]
    release(api, file)
    release(api, file)
    assert [one.file for one in api.get("/holds", Holds).holds] == [other]
    problem(api.request("PUT", f"/holds/{new_id().hex()}", NewHold()), Code.NO_FILE)
    problem(api.request("PUT", f"/holds/{file.hex()}", NewHold("x" * 5000)), Code.TOO_LARGE)


def test_who_may_only_read_changes_nothing(api: Api) -> None:
    file = api.new_file(b"f", b"x")
    token = command("nodeserver", "token", "--data", api.node.data).stdout.strip()
    api.http.headers["authorization"] = f"Bearer {token}"
    for method, path, body in (
        ("PUT", f"/holds/{file.hex()}", NewHold()),
        ("DELETE", f"/holds/{file.hex()}", None),
        ("PUT", f"/retention/{api.root.hex()}", {}),
        ("DELETE", f"/retention/{api.root.hex()}", None),
        ("POST", "/retention/run", None),
        ("POST", "/purge", Purge(api.root, b"f")),
    ):
        problem(api.request(method, path, body), Code.FORBIDDEN)
    for path in ("/holds", "/retention", "/retention/preview"):
        assert api.request("GET", path).status_code == 200
