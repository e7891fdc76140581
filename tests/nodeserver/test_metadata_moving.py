"""``nodeserver metadata dump`` and ``load``: SQLite to PostgreSQL and back, broken off, damaged, refused."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from nodeserver.metadata import moving, tables
from nodeserver.metadata.dumpfile import Rows, frames
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import NewBucket, SetAttr, Unlink, pack
from tests.conftest import MakeNode
from tests.harness import Node, command
from tests.nodeserver.api import DIRECTORY, Api
from tests.nodeserver.postgres import Postgres, reading


@pytest.fixture
def busy(make_node: MakeNode) -> Node:
    """A server with a little of everything, stopped."""
    node = make_node()
    api, rng = Api(node), random.Random(8)
    directory = api.new_file(b"d", mode=DIRECTORY)
    files = [api.new_file(b"f\xff%d" % number, b"content %d" % number, directory) for number in range(40)]
    for file in rng.sample(files, 15):
        api.commit(api.write(file, b"new", api.file(file).version), SetAttr(file, 5, mode=0o100600))
    for number in range(5):
        api.commit(Unlink(directory, b"f\xff%d" % number, files[number], 7))
    api.request("PUT", f"/holds/{files[9].hex()}", {"note": "für später"})
    api.http.put("/buckets/gone", content=pack(NewBucket(new_id())))
    assert api.http.delete("/buckets/gone").status_code == 204
    api.http.post("/workers/purge-buckets/run")
    api.http.close()
    node.stop()
    return node


def content(node: Node) -> dict[str, list[tuple[object, ...]]]:
    with reading(node) as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for name, table in moving.MOVED.items()
        }


def move(*args: str | Path) -> None:
    done = command("nodeserver", "metadata", *args)
    assert done.returncode == 0, done.stderr


def refused(message: str, *args: str | Path, code: int = 1) -> None:
    done = command("nodeserver", "metadata", *args)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_to_postgresql_and_back(busy: Node, make_node: MakeNode, postgres_server: Postgres, tmp_path: Path) -> None:
    before, token = content(busy), busy.token
    there, back = tmp_path / "there", tmp_path / "back"
    url = postgres_server.create()
    move("dump", "--data", busy.data, there)
    assert there.stat().st_mode & 0o777 == 0o600
    move("load", "--metadata", url, there)
    node = Node(busy.data, options=["--metadata", url])
    assert content(node) == before

    node.start()
    assert node.token == token
    api = Api(node, "more")
    assert api.bucket.id not in {row[1] for row in before["bucket"]}
    with reading(node) as connection:  # the number of one that is gone is not used again
        assert connection.execute(select(func.max(tables.bucket.c.bucket))).scalar_one() == 3
    api.new_file(b"f", b"in PostgreSQL")
    api.http.close()
    node.stop()

    move("dump", "--metadata", url, back)
    move("load", "--data", tmp_path / "new", back)
    assert content(Node(tmp_path / "new")) == content(node)
    new = make_node(tmp_path / "new")
    assert {bucket["name"] for bucket in new.api("GET", "/buckets")["buckets"]} == {"docs", "more"}


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_load_that_was_broken_off_goes_on(
    busy: Node, target: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "FRAME_ROWS", 7)
    dump, loaded = tmp_path / "dump", list[int]()
    asyncio.run(moving.dump(f"sqlite:///{busy.data / 'metadata.sqlite'}", dump))
    whole = sum(isinstance(frame, Rows) for frame, _ in frames(dump))
    url = f"sqlite:///{tmp_path / 'metadata.sqlite'}"
    if target == "postgresql":
        url = request.getfixturevalue("postgres_server").create()
    insert, failing = moving._insert, [whole // 3, whole // 2]

    def broken(connection: object, frame: Rows, dump_id: bytes, done: int, end: int) -> None:
        insert(connection, frame, dump_id, done, end)  # type: ignore[arg-type]
        if failing and len(loaded) == failing[0]:
            failing.pop(0)
            raise RuntimeError("broken off")
        loaded.append(end)

    monkeypatch.setattr(moving, "_insert", broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken off"):
            asyncio.run(moving.load(url, dump))
        started = command("nodeserver", "serve", "--data", tmp_path / "n", "--metadata", url, "--listen", "127.0.0.1:0")
        assert (started.returncode, "repeat it" in started.stderr) == (4, True), started.stderr
    other = tmp_path / "other"
    asyncio.run(moving.dump(f"sqlite:///{busy.data / 'metadata.sqlite'}", other))
    refused("another dump", "load", "--metadata", url, other)
    rows = asyncio.run(moving.load(url, dump))
    assert len(loaded) == whole == len(set(loaded))
    assert rows["file"] == 42
    assert content(Node(tmp_path / "n", options=["--metadata", url])) == content(busy)


def test_only_an_empty_database_is_filled(busy: Node, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    move("dump", "--data", busy.data, dump)
    refused("must be empty", "load", "--data", busy.data, dump)
    busy.start()
    refused("in use", "load", "--data", busy.data, dump, code=3)
    move("dump", "--data", busy.data, dump)
    refused("either", "dump", dump, code=2)
    refused("no metadata.sqlite", "dump", "--data", tmp_path, dump)
    refused("there is no metadata", "dump", "--metadata", f"sqlite:///{tmp_path}/x", dump)


def test_a_damaged_dump_is_refused_before_anything_is_done(busy: Node, tmp_path: Path) -> None:
    dump, new = tmp_path / "dump", tmp_path / "new"
    move("dump", "--data", busy.data, dump)
    whole = dump.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], whole[:50] + b"x" + whole[51:], b"", b"#!/bin/sh\n" * 9):
        dump.write_bytes(data)
        refused("dump", "load", "--data", new, dump)
        assert not (new / "metadata.sqlite").exists()


def test_what_was_loaded_is_compared(busy: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump, url = tmp_path / "dump", f"sqlite:///{tmp_path / 'new.sqlite'}"
    asyncio.run(moving.dump(f"sqlite:///{busy.data / 'metadata.sqlite'}", dump))
    insert = moving._insert

    def wrong(connection: object, frame: Rows, *state: object) -> None:
        if frame.table == "hold":
            frame.rows[0][-1] = "spaeter"
        insert(connection, frame, *state)  # type: ignore[arg-type]

    monkeypatch.setattr(moving, "_insert", wrong)
    with pytest.raises(moving.Mismatch, match="hold"):
        asyncio.run(moving.load(url, dump))


def test_memory_is_bounded(make_node: MakeNode, tmp_path: Path) -> None:
    """Many times what a frame holds goes through, in far less memory."""
    node = make_node()
    api = Api(node)
    for number in range(15):
        names = (b"%d.%d" % (number, n) for n in range(100))
        api.commit(*(api.create(name, xattrs={b"user.a": random.randbytes(20_000)}) for name in names))
    api.http.close()
    node.stop()
    dump = tmp_path / "dump"
    program = f"""
import asyncio, pathlib, resource
from nodeserver.metadata import moving
dump = pathlib.Path({str(dump)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asyncio.run(moving.dump("sqlite:///{node.data}/metadata.sqlite", dump))
asyncio.run(moving.load("sqlite:///{tmp_path}/new.sqlite", dump))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert dump.stat().st_size > 50 << 20
    assert int(done.stdout) < 100 << 10  # KiB, of which the page cache of SQLite takes 64 MiB
