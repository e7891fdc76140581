"""The ``nodeserver`` command: starting, stopping, surviving."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from nodeserver.content.codec import chunk_id, encode
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import Commit
from tests.conftest import MakeNode
from tests.harness import Node, command, eventually, small_disk
from tests.nodeserver.api import Api, problem

MakeApi = Callable[[Node], Api]


def serve(data: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return command("nodeserver", "serve", "--data", data, "--listen", "127.0.0.1:0", *options)


def test_what_was_stored_is_there_after_a_restart(node: Node, make_api: MakeApi) -> None:
    api = make_api(node)
    token, seq = node.token, api.send(api.batch(api.create(b"f"))).seq
    node.stop()
    node.start()
    assert node.token == token
    assert api.names() == [b"f"]
    assert api.refresh().seq == seq
    for secret in ("admin.token", "signing.key", "lock"):
        assert (node.data / secret).stat().st_mode & 0o777 == 0o600


def test_a_second_server_is_refused(node: Node) -> None:
    second = serve(node.data)
    assert second.returncode == 3
    assert second.stderr.count("\n") == 1
    assert str(node.pid) in second.stderr
    assert second.stdout == ""


def test_the_address_of_another_server_is_refused(node: Node, tmp_path: Path) -> None:
    second = command("nodeserver", "serve", "--data", tmp_path / "b", "--listen", node.url.removeprefix("http://"))
    assert second.returncode == 5
    assert "in use" in second.stderr


@pytest.mark.sqlite
def test_a_newer_format_is_refused(node: Node) -> None:
    node.stop()
    with contextlib.closing(sqlite3.connect(node.data / "metadata.sqlite")) as database:
        database.execute("UPDATE schema_version SET version = 99")
        database.commit()
    newer = serve(node.data)
    assert newer.returncode == 4
    assert "format 99" in newer.stderr
    assert newer.stderr.count("\n") == 1


def test_a_newer_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps({"format": 2, "id": "00" * 16}))
    assert serve(tmp_path).returncode == 4
    assert not (tmp_path / "metadata.sqlite").exists()
    (tmp_path / "node.json").write_text("{")
    assert serve(tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "0.0.0.0:0"], "no TLS"),
        (["--listen", "example.org:80"], "no TLS"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--metadata", "mysql://x/y"], "not supported"),
        (["--metadata", "postgresql://x/y?colour=red"], "colour"),
        (["--metadata", "::"], "not a database URL"),
        (["--config", "/nonexistent.toml"], "nonexistent"),
        (["--unknown"], "unknown"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    refused = serve(tmp_path / "data", *options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = serve(tmp_path / "file" / "data")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1


@pytest.mark.sqlite
def test_the_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'listen = "0.0.0.0:0"\ninsecure = true\nmetadata = "sqlite:///{tmp_path}/elsewhere.db"\n')
    node = Node(tmp_path / "data", options=["--config", str(config)])
    node.start()  # the harness gives --listen, which wins
    assert node.url.startswith("http://127.0.0.1:")
    assert (tmp_path / "elsewhere.db").exists()
    node.stop()
    config.write_text("colour = 1\n")
    assert "unknown key 'colour'" in serve(tmp_path / "data", "--config", config).stderr


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        node = Node(tmp_path / "data").start()
        assert channel.recv(100) == b"READY=1"
        node.stop()
        assert channel.recv(100) == b"STOPPING=1"


def test_sigterm_finishes_what_is_in_flight(node: Node, make_api: MakeApi) -> None:
    """A long poll is answered at once, an upload may end, an idle connection does not hold the server up."""
    api = make_api(node)
    data = os.urandom(100_000)
    chunk, stored = chunk_id(api.bucket.chunk_key, data), encode(data)
    bearer = {"Authorization": f"Bearer {node.token}"}
    idle, poll, upload = (http.client.HTTPConnection(urlsplit(node.url).netloc, timeout=30) for _ in range(3))
    idle.request("GET", "/v1/health")
    idle.getresponse().read()
    poll.request("GET", f"/v1/buckets/{api.name}/changes?since=0&wait=60", headers=bearer)
    upload.putrequest("PUT", f"/v1/buckets/{api.name}/chunks/{chunk.hex()}")
    upload.putheader("Authorization", bearer["Authorization"])
    upload.putheader("Content-Length", str(len(stored)))
    upload.endheaders(stored[:1000])
    eventually(lambda: not _unread(node), what="the server has read what was sent")
    before = time.monotonic()
    os.kill(node.pid, signal.SIGTERM)
    assert json.loads(poll.getresponse().read())["commits"] == []
    assert time.monotonic() - before < 5
    upload.send(stored[1000:])
    assert upload.getresponse().status == 204
    node.stop()
    for connection in (idle, poll, upload):
        connection.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(node.url + "/v1/health", trust_env=False)
    node.start()
    assert api.http.get(f"/buckets/{api.name}/chunks/{chunk.hex()}").content == stored


def _unread(node: Node) -> bool:
    """Whether a connection of the server has bytes that it did not read yet."""
    port = f"{int(node.url.rpartition(':')[2]):04X}"
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(":" + port) and row[4].partition(":")[2] != "00000000" for row in table)


@pytest.mark.sqlite
def test_acknowledged_commits_survive_kills(node: Node, make_api: MakeApi, soak: int) -> None:
    """Killed in the middle of commits, again and again: what was acknowledged is there, and a batch whose answer was
    lost can be sent again without being applied twice."""
    api = make_api(node)
    rng = random.Random(4)
    acknowledged: dict[bytes, int] = {}
    for round_ in range(10 * soak):
        lost: Commit | None = None
        killer = threading.Timer(rng.uniform(0.02, 0.3), node.kill)
        killer.start()
        with contextlib.suppress(httpx.TransportError):
            for number in range(1_000_000):
                create = api.create(b"%d.%d" % (round_, number))
                lost = api.batch(create, api.write(create.file.id, b"content %d" % (number % 7)))
                acknowledged[create.name] = api.send(lost).seq
        killer.join()
        node.start()
        if lost is None:  # killed before the first was sent
            continue
        again = api.send(lost)
        assert api.send(lost) == again
        acknowledged[lost.ops[0].name] = again.seq  # type: ignore[union-attr]
    listed = {entry.name: entry.file for entry in api.entries()}
    assert listed.keys() == acknowledged.keys()
    assert sorted(acknowledged.values()) == list(range(1, api.refresh().seq + 1))
    assert api.refresh().usage.used_bytes == sum(file.size for file in listed.values())
    for file in random.Random(5).sample(list(listed.values()), 5):
        assert api.content(file.id).startswith(b"content ")
    with contextlib.closing(sqlite3.connect(node.data / "metadata.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@contextlib.contextmanager
def traced(node: Node, log: Path) -> Iterator[None]:
    """Notes the server's fsync and fdatasync calls in ``log``."""
    arguments = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(node.pid)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        yield
        strace.send_signal(signal.SIGINT)


@pytest.mark.sqlite
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_each_answer_to_a_commit_comes_after_an_fsync(node: Node, make_api: MakeApi, tmp_path: Path) -> None:
    api, log = make_api(node), tmp_path / "trace"

    def syncs(path: str) -> int:
        return len(re.findall(rf"f(?:data)?sync\(\d+<[^>]*{path}", log.read_text()))

    with traced(node, log):
        for number in range(1, 6):
            api.commit(api.create(b"%d" % number))
            assert syncs("metadata.sqlite-wal") >= number
        assert syncs("chunks/") == 0
        for size in (100, 100_000):
            before = syncs("chunks/")
            api.put_chunk(os.urandom(size))
            assert syncs("chunks/") > before


@pytest.mark.sqlite
def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(
    make_node: MakeNode, make_api: MakeApi, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        node = make_node(disk / "data")
        api = make_api(node)
        api.new_file(b"before", b"content")
        filler = disk / "filler"
        _fill(filler)
        names = {b"before"}
        refused = None
        for number in range(10_000):  # the log file has room of its own at first
            batch = api.batch(api.create(b"f%d" % number, xattrs={b"user.a": os.urandom(30_000)}))
            answer = api.request("POST", "/commits", batch)
            if answer.status_code != 200:
                refused = problem(answer, Code.FULL)
                break
            names.add(b"f%d" % number)
        assert refused is not None
        data = os.urandom(500_000)
        chunk = chunk_id(api.bucket.chunk_key, data)
        path = f"/buckets/{api.name}/chunks/{chunk.hex()}"
        problem(api.http.put(path, content=encode(data)), Code.FULL)
        assert set(api.names()) == names
        assert api.refresh().usage.free_bytes < 1 << 20
        filler.unlink()
        assert api.send(batch).results[0].status == "ok"
        assert api.http.put(path, content=encode(data)).status_code == 204
        node.restart()
        assert len(api.names()) == len(names) + 1
        node.stop()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def modes(directory: Path) -> dict[str, int]:
    """The permissions of all that is in a directory and of itself, but for what is below a closed one."""
    found = {".": stat.S_IMODE(directory.stat().st_mode)}
    return found | {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir() if path.is_file()}


def test_nobody_else_may_look_into_the_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "store"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    node = Node(data).start()
    try:
        for name in ("one", "other"):
            node.create_bucket(name)
            assert {name: mode for name, mode in modes(data).items() if mode & 0o077} == {}
            assert {"metadata.sqlite", "metadata.sqlite-wal"} <= modes(data).keys()
            node.stop()
            for path in (data, *data.iterdir()):  # as a release without a mask left them
                path.chmod(0o755)
            node.start()
            assert "was open to other users" in node.log.read_text()
    finally:
        node.destroy()


def test_a_directory_of_others_is_not_taken_for_data(tmp_path: Path) -> None:
    data = tmp_path / "home"
    data.mkdir()
    data.chmod(0o755)
    (data / "letter").write_text("x")
    refused = serve(data)
    assert refused.returncode == 1
    assert "open to other users" in refused.stderr
    assert modes(data) == {".": 0o755, "letter": modes(data)["letter"]}
