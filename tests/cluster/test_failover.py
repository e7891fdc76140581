"""Several servers with the same metadata: a mount that lost one goes on with another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.nodes import FAST, chunk_files
from tests.conftest import MakeMount
from tests.harness import Node, command, eventually
from tests.nodeserver.postgres import Postgres

Servers = tuple[Node, Node, Node]


@pytest.fixture
def servers(tmp_path: Path, postgres_server: Postgres) -> Iterator[Servers]:
    """Three servers with metadata and chunks on one database."""
    url = postgres_server.create()
    made = [Node(tmp_path / f"server{number}", options=[*FAST, "--metadata", url]) for number in range(3)]
    try:
        for server in made:
            server.start()
        yield made[0], made[1], made[2]
    finally:
        for server in made:
            server.destroy()


def test_a_mount_goes_on_with_another_server(servers: Servers, make_mount: MakeMount, tmp_path: Path) -> None:
    servers[0].create_bucket("docs")
    token = Path(shutil.copy(servers[0].token_file, tmp_path / "token"))
    mount = make_mount(servers[0], "docs", token_file=token)
    contents = {f"file{number}": os.urandom(300_000) for number in range(4)}
    (mount.path / "file0").write_bytes(contents["file0"])
    mount.sync()
    eventually(lambda: len(mount.status()["nodes"]) == 3, 30, "the mount knows all")
    servers[0].kill()
    (mount.path / "file1").write_bytes(contents["file1"])
    mount.sync()
    assert mount.status()["connected"]

    mount.stop()
    mount.start()  # with the URL of the server that is gone
    (mount.path / "file2").write_bytes(contents["file2"])
    mount.sync()
    servers[0].start()
    servers[1].kill()
    (mount.path / "file3").write_bytes(contents["file3"])
    mount.sync()
    found = make_mount(servers[2], "docs")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == contents


def test_changes_at_one_server_show_at_another(servers: Servers, make_mount: MakeMount) -> None:
    servers[0].create_bucket("docs")
    one, other = make_mount(servers[0], "docs"), make_mount(servers[1], "docs")
    assert os.listdir(other.path) == []
    (one.path / "file").write_text("content")
    one.sync()
    assert eventually(lambda: os.listdir(other.path) == ["file"], 30, "it shows")
    assert (other.path / "file").read_text() == "content"


def test_every_server_tells_what_one_of_them_found(servers: Servers, make_mount: MakeMount) -> None:
    servers[0].create_bucket("docs")
    mount = make_mount(servers[0], "docs")
    (mount.path / "file").write_bytes(os.urandom(200_000))
    mount.sync()
    for server in servers:
        for path in chunk_files(server):
            path.unlink()

    def run(server: Node) -> str:
        done = command("nodeserver", "workers", "run", "repair", "--data", server.data)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor() as pool:
        assert all("another server" not in said for said in pool.map(run, servers)), "who asks waits for its turn"
    for server in servers:
        done = command("nodeserver", "status", "--data", server.data)
        assert done.returncode == 1
        assert "1 chunks cannot be read" in done.stdout


def test_one_server_at_a_time_collects_garbage(servers: Servers) -> None:
    def summaries() -> list[str]:
        found = []
        for server in servers:
            workers = server.api("GET", "/workers")["workers"]
            found.append(next(worker["summary"] for worker in workers if worker["name"] == "gc"))
        return found

    eventually(lambda: all(summaries()), 30, "each had its turn or saw that another has it")
    for server in servers:
        server.api("POST", "/workers/gc/run")
    assert any("deleted" in summary for summary in summaries())
