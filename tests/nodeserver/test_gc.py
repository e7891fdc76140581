"""Garbage collection on a real server: what goes, when, and what is left after it was killed."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import Policy, Unlink
from tests.conftest import MakeNode
from tests.harness import Node, command, disk_use, eventually
from tests.nodeserver.api import Api, problem
from tests.nodeserver.keeping import (
    SOON,
    collect,
    manifests,
    needed,
    purge,
    read_manifest,
    rows,
    save,
    set_policy,
    shelf,
    stored,
    worker,
)

BOTH_ENGINES = True

MakeApi = Callable[[Node], Api]


@pytest.fixture(scope="module")
def soon(tmp_path_factory: pytest.TempPathFactory, metadata_engine: str) -> Iterator[Node]:
    """A server whose garbage goes soon."""
    node = Node(tmp_path_factory.mktemp("soon") / "node", options=SOON).start()
    yield node
    node.destroy()


def test_what_no_version_needs_goes_and_gives_its_room_back(soon: Node, make_api: MakeApi) -> None:
    api = make_api(soon)
    kept = [api.new_file(b"kept%d" % number, os.urandom(size)) for number, size in enumerate([0, 500, 3000, 90_000])]
    before = disk_use(shelf(api))
    file = api.new_file(b"f")
    contents = [os.urandom(size) for size in (200, 5000, 60_000, 70_000, 300_000) for _ in range(10)]
    save(api, file, *contents)
    assert disk_use(shelf(api)) > before + 4_000_000
    collect(api)
    assert len(stored(api)) == len(contents) + 3, "all are content of versions"
    purge(api, b"f")
    collect(api)
    assert stored(api) == needed(api)
    assert api.content(file) == contents[-1]
    api.commit(Unlink(api.root, b"f", file, 1))
    purge(api, b"f")
    collect(api)
    assert disk_use(shelf(api)) < before + 100_000
    assert all(api.content(id_) is not None for id_ in kept)
    soon.restart()
    assert stored(api) == needed(api)


def test_an_upload_without_a_commit_goes_after_the_grace_period_and_not_before(
    soon: Node, make_node: MakeNode, make_api: MakeApi
) -> None:
    api, patient = make_api(soon), make_api(make_node())
    for where in api, patient:
        for size in (100, 100_000):
            where.put_chunk(os.urandom(size))
    collect(api)
    assert stored(api) == set()
    for _ in range(3):
        worker(patient, "gc")
    assert len(stored(patient)) == 2
    assert not rows(patient, "condemned")


def test_deleted_files_and_versions_keep_their_chunks(soon: Node, make_api: MakeApi) -> None:
    api = make_api(soon)
    file = api.new_file(b"f", b"first")
    save(api, file, b"second")
    api.commit(Unlink(api.root, b"f", file, 1))
    before = stored(api)
    collect(api)
    assert stored(api) == before == needed(api)
    assert {read_manifest(api, manifest) for manifest in manifests(api).values()} == {b"first", b"second"}


def test_it_runs_by_itself_when_something_came_free(make_node: MakeNode, make_api: MakeApi) -> None:
    node = make_node(options=["--gc-grace", "0.3s", "--retention-interval", "0.2s"])
    api = make_api(node)
    file = api.new_file(b"f")
    save(api, file, *(os.urandom(1000) for _ in range(5)))
    set_policy(api, Policy(max_versions=2))
    eventually(lambda: len(stored(api)) == 2, 20, "chunks of versions that are gone are gone")
    assert stored(api) == needed(api)


def test_deleted_buckets_go(soon: Node, make_api: MakeApi) -> None:
    api, other = make_api(soon), make_api(soon)
    file = api.new_file(b"f", os.urandom(100_000))
    other.new_file(b"f", os.urandom(2000))
    purge(api, b"f")
    worker(api, "gc")
    api.commit(Unlink(api.root, b"f", file, 1))
    assert api.request("DELETE", "?history=destroy").status_code == 204
    worker(other, "purge-buckets")
    for table in ("bucket", "version", "file", "commit_log"):
        assert not rows(api, table)
    assert not shelf(api).exists()
    collect(other)
    assert stored(other) == needed(other) != set()


def test_workers_are_listed_and_take_orders(soon: Node, make_api: MakeApi) -> None:
    api = make_api(soon)
    listed = api.http.get("/workers")
    names = {one["name"] for one in api.node.api("GET", "/workers")["workers"]}
    assert names >= {"purge-buckets", "retention", "gc"}
    assert listed.status_code == 200
    assert worker(api, "gc", "pause").state == "paused"
    api.put_chunk(b"x")
    status = worker(api, "gc")
    assert (status.state, status.error) == ("paused", ""), "an order outranks a pause"
    assert status.last_ns
    assert not status.next_ns
    assert worker(api, "gc", "resume").state != "paused"
    for path in ("/workers/nobody/run", "/workers/gc/dance"):
        problem(api.http.post(path), Code.NO_ROUTE)
    reader = {"authorization": f"Bearer {_token(soon)}"}
    assert api.http.get("/workers", headers=reader).status_code == 200
    problem(api.http.post("/workers/gc/run", headers=reader), Code.FORBIDDEN)


def _token(node: Node) -> str:
    return command("nodeserver", "token", "--data", node.data).stdout.strip()


def test_a_failure_is_told_and_tried_again(soon: Node, make_api: MakeApi) -> None:
    api = make_api(soon)
    file = api.new_file(b"f", os.urandom(100_000))
    files = shelf(api) / "files"
    some = next(files.iterdir())
    content = api.file(file).manifest
    assert content
    some.rename(files / "away")
    some.write_bytes(b"no directory")
    status = worker(api, "gc")
    assert "NotADirectoryError" in status.error
    assert status.next_ns
    some.unlink()
    (files / "away").rename(some)
    assert not worker(api, "gc").error
    assert read_manifest(api, content)


def test_killed_at_any_moment_every_file_is_whole_and_garbage_goes_in_the_end(
    make_node: MakeNode, make_api: MakeApi, soak: int
) -> None:
    node = make_node(options=["--gc-grace", "0.05s", "--gc-interval", "0.05s", "--retention-interval", "0.1s"])
    api, rng = make_api(node), random.Random(6)
    set_policy(api, Policy(max_versions=3))
    names = [b"f%d" % number for number in range(12)]
    files = {name: api.new_file(name) for name in names}
    heads: dict[bytes, bytes] = {}
    for _ in range(6 * soak):
        killer = threading.Timer(rng.uniform(0.05, 0.6), node.kill)
        killer.start()
        with contextlib.suppress(httpx.TransportError):
            while True:
                name = rng.choice(names)
                data = os.urandom(rng.choice([500, 3000, 3000, 20_000, 80_000]))
                heads.pop(name, None)  # unknown until it is acknowledged
                save(api, files[name], data)
                heads[name] = data
        killer.join()
        node.start()
        for name, data in heads.items():
            assert api.content(files[name]) == data
        for manifest in manifests(api).values():
            assert read_manifest(api, manifest)
    set_policy(api, None)
    collect(api)
    assert stored(api) == needed(api)
    for manifest in manifests(api).values():
        assert read_manifest(api, manifest)
    live = sum(len(data) for data in heads.values())
    assert disk_use(shelf(api)) < 4 * live + 3 * 300_000
    assert "lost" not in node.log.read_text()


def test_the_intervals_are_options(make_node: MakeNode) -> None:
    node = make_node(options=["--gc-interval", "2h", "--retention-interval", "30m"])

    def due() -> dict[str, float]:
        statuses = {one["name"]: one for one in node.api("GET", "/workers")["workers"]}
        return {name: (one["next_ns"] - one["last_ns"]) / 1e9 for name, one in statuses.items() if one["last_ns"]}

    found = eventually(lambda: due() if due().keys() >= {"gc", "retention"} else {})
    assert found["gc"] == pytest.approx(7200, abs=5)
    assert found["retention"] == pytest.approx(1800, abs=5)
