"""Several node servers on one PostgreSQL: one state, whatever is killed."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import OperationalError

from nodeserver.metadata import database as database_module
from nodeserver.metadata import tables
from nodeserver.metadata.database import Database, is_full
from nodeserver.metadata.errors import Unavailable
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Change,
    Changes,
    Commit,
    Committed,
    Create,
    File,
    Manifest,
    NewBucket,
    Slice,
    Unlink,
    Write,
    pack,
    unpack,
)
from tests.harness import Node, command, eventually
from tests.nodeserver.api import REGULAR, Api, problem
from tests.nodeserver.postgres import Postgres, postgres

MakeServers = Callable[[int], list[Node]]
MakeApi = Callable[[Node], Api]


@pytest.fixture
def make_servers(postgres_server: Postgres, tmp_path: Path) -> Iterator[MakeServers]:
    """Starts servers on one new database, each with a data directory of its own."""
    made: list[Node] = []

    def make(count: int) -> list[Node]:
        options = ["--metadata", postgres_server.create()]
        made.extend(Node(tmp_path / f"server{number}", options=options) for number in range(count))
        with ThreadPoolExecutor() as pool:  # at once: they meet an empty database
            return list(pool.map(Node.start, made))

    yield make
    for node in made:
        node.destroy()


Through = Callable[[Api, Node], Api]


@pytest.fixture
def through() -> Iterator[Through]:
    """Makes the same client, by way of another server."""
    made: list[httpx.Client] = []

    def make(api: Api, node: Node) -> Api:
        other = object.__new__(Api)
        made.append(httpx.Client(base_url=node.url + "/v1", headers=api.http.headers, timeout=30, trust_env=False))
        other.__dict__.update(api.__dict__ | {"http": made[-1], "node": node})
        return other

    yield make
    for http in made:
        http.close()


def test_one_key_for_all(make_servers: MakeServers) -> None:
    servers = make_servers(2)
    for one, other in itertools.permutations(servers, 2):
        headers = {"Authorization": f"Bearer {one.token}"}
        assert httpx.get(f"{other.url}/v1/buckets", headers=headers, trust_env=False).status_code == 200
    for node in servers:
        minted = command("nodeserver", "token", "--data", node.data).stdout.strip()
        headers = {"Authorization": f"Bearer {minted}"}
        assert httpx.get(f"{servers[0].url}/v1/buckets", headers=headers, trust_env=False).status_code == 200
        node.restart()
    assert len({(node.data / "signing.key").read_bytes() for node in servers}) == 1


def test_what_goes_in_here_comes_out_there(make_servers: MakeServers, make_api: MakeApi, through: Through) -> None:
    one, other = make_servers(2)
    here = make_api(one)
    there = through(here, other)
    made = [(here, there)[number % 2].new_file(b"%d" % number) for number in range(10)]
    assert [entry.file.id for entry in here.entries()] == [entry.file.id for entry in there.entries()] == made
    seq = here.refresh().seq
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(there.changes, seq, 30)
        before = time.monotonic()
        here.commit(here.create(b"late"))
        assert [change.seq for change in waiting.result().commits] == [seq + 1]
        assert time.monotonic() - before < 5


def test_a_bucket_deleted_and_made_anew_through_another_server(
    make_servers: MakeServers, make_api: MakeApi, through: Through
) -> None:
    one, other = make_servers(2)
    here = make_api(one)
    there = through(here, other)
    old = here.new_file(b"f")
    assert there.names() == [b"f"]
    chunk = there.put_chunk(b"remembered")
    here.commit(Unlink(here.root, b"f", old, 1))
    assert here.http.delete(f"/buckets/{here.name}").status_code == 204
    again = Api(one, here.name)
    assert again.bucket.id != here.bucket.id
    assert again.names() == []
    there.root = again.root
    assert there.names() == []
    problem(there.request("GET", f"/files/{old.hex()}"), Code.NO_FILE)

    # At once, while the other server believes what it knew.
    def committed() -> bool:
        answer = there.request("POST", "/commits", there.batch(there.create(b"g")))
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    eventually(committed)
    assert again.names() == [b"g"]
    there.bucket = again.bucket
    eventually(lambda: there.refresh().id == again.bucket.id)
    assert chunk != there.put_chunk(b"remembered")
    # A server that has just learnt of it may say 503 first.
    eventually(lambda: again.http.get(f"/buckets/{again.name}/chunks/{chunk.hex()}").status_code == 404)
    again.http.close()


class Clients:
    """Send batches through any of some servers until each is acknowledged."""

    def __init__(self, api: Api, servers: list[Node], count: int, batches: int) -> None:
        self.api = api
        self.servers = servers
        self.answers: dict[bytes, Committed] = {}
        self.batches: dict[bytes, Commit] = {}
        self.again = 0
        self.count, self.per_client = count, batches

    def run(self, chaos: Callable[[], None]) -> None:
        with ThreadPoolExecutor(self.count) as pool:
            clients = [pool.submit(self._client, number) for number in range(self.count)]
            while not all(client.done() for client in clients):
                chaos()
            for client in clients:
                client.result()

    def _client(self, number: int) -> None:
        rng, me = random.Random(number), new_id()
        with httpx.Client(headers=self.api.http.headers, timeout=30, trust_env=False, verify=False) as http:
            for batch in range(self.per_client):
                create = Create(self.api.root, b"%d.%d" % (number, batch), File(new_id(), REGULAR), 1)
                content = Manifest([Slice(b"", 0, 7)])
                commit = Commit(me, new_id(), [create, Write(create.file.id, new_id(), 7, bytes(32), content, 1, 1)])
                self.batches[create.name] = commit
                self.answers[create.name] = self._send(http, commit, rng)

    def _send(self, http: httpx.Client, commit: Commit, rng: random.Random) -> Committed:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            url = f"{rng.choice(self.servers).url}/v1/buckets/{self.api.name}/commits"
            try:
                answer = http.post(url, content=pack(commit))
            except httpx.TransportError:
                self.again += 1
                continue
            if answer.status_code == 200:
                return unpack(answer.content, Committed)
            problem(answer, Code.BUSY)
            self.again += 1
        raise AssertionError("a batch was not acknowledged within a minute")


def test_every_acknowledged_batch_is_there_once(
    make_servers: MakeServers, make_api: MakeApi, through: Through, postgres_server: Postgres, soak: int
) -> None:
    """Three servers, eight clients in one bucket; servers are killed, and PostgreSQL's sessions, in mid-commit."""
    servers = make_servers(3)
    api, rng = make_api(servers[0]), random.Random(6)
    clients = Clients(api, servers, 8, 40 * soak)
    ended = 0

    def chaos() -> None:
        nonlocal ended
        threading.Event().wait(rng.uniform(0.05, 0.3))
        if rng.random() < 0.7:
            ended += postgres_server.end_sessions()
        else:
            servers[rng.randrange(3)].restart()

    clients.run(chaos)
    assert ended
    assert clients.again
    expected = set(clients.batches)
    assert clients.answers.keys() == expected
    assert all([result.status for result in answer.results] == ["ok", "ok"] for answer in clients.answers.values())
    seqs = sorted(answer.seq for answer in clients.answers.values())
    assert seqs == list(range(1, len(expected) + 1))
    for node in servers:
        here = through(api, node)
        assert set(here.names()) == expected
        assert [change.seq for change in _feed(here)] == seqs
        assert here.refresh().usage.used_files == len(expected)
        assert here.refresh().usage.used_bytes == 7 * len(expected)
        for name, commit in rng.sample(sorted(clients.batches.items(), key=lambda item: item[0]), 5):
            assert here.send(commit) == clients.answers[name]


def _feed(api: Api) -> list[Change]:
    found: list[Change] = []
    while changes := api.get(f"/changes?since={len(found)}", Changes).commits:
        found += changes
    return found


def test_while_postgresql_is_away(make_api: MakeApi, tmp_path: Path) -> None:
    with postgres() as server:
        url = server.create()
        node = Node(tmp_path / "a", options=["--metadata", url]).start()
        try:
            api = make_api(node)
            api.new_file(b"before")
            server.stop()
            options = ["--metadata", url, "--listen", "127.0.0.1:0"]
            with ThreadPoolExecutor() as pool:
                started = pool.submit(command, "nodeserver", "serve", "--data", tmp_path / "b", *options)
                listed = pool.submit(api.request, "GET", f"/files/{api.root.hex()}/entries")
                batch = api.batch(api.create(b"refused"))
                committed = pool.submit(api.request, "POST", "/commits", batch)
            assert "the metadata database" in problem(listed.result(), Code.BUSY).detail
            problem(committed.result(), Code.BUSY)
            assert api.http.get("/health").status_code == 200
            assert started.result().returncode == 1
            assert "the metadata database" in started.result().stderr
            assert len(started.result().stderr.strip().splitlines()) == 1
            server.start()
            assert api.names() == [b"before"]
            api.new_file(b"after")
            assert api.names() == [b"after", b"before"]
            node.stop()
        finally:
            node.destroy()
    assert "Traceback" not in node.log.read_text()


def test_a_batch_whose_commit_was_not_answered_is_applied_once(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, lost = psycopg.Connection.commit, list[bool]()

    def losing(self: psycopg.Connection) -> None:
        commit(self)
        if lost:
            lost.pop()
            self.close()
            raise psycopg.OperationalError("the connection is lost")

    async def run() -> None:
        metadata = await Metadata.open(postgres_server.create())
        try:
            bucket = await metadata.create_bucket("docs", NewBucket(new_id()))
            batch = Commit(new_id(), new_id(), [Create(bucket.root, b"f", File(new_id(), REGULAR), 1)])
            lost.append(True)
            answer = await metadata.commit("docs", batch, author="ada")
            assert not lost
            assert (answer.seq, [result.status for result in answer.results]) == (1, ["ok"])
            assert (await metadata.bucket("docs")).seq == 1
            lost.append(True)
            with pytest.raises(Unavailable, match="during a commit"):
                await metadata.write_across(_count)
        finally:
            await metadata.close()

    monkeypatch.setattr(psycopg.Connection, "commit", losing)
    asyncio.run(run())


def _count(connection: Connection) -> int:
    connection.execute(text("UPDATE schema_version SET version = version"))
    return int(connection.execute(select(func.count()).select_from(tables.hold)).scalar_one())


def test_transactions_are_as_if_one_after_the_other(postgres_server: Postgres) -> None:
    """Each looks whether there is a row and, if not, makes one of its own: only the first does."""
    url = postgres_server.create()
    tries = 0

    def once(connection: Connection, number: int) -> None:
        nonlocal tries
        tries += 1
        if not connection.execute(text("SELECT count(*) FROM mark")).scalar_one():
            connection.execute(text("SELECT pg_sleep(0.05)"))
            connection.execute(text("INSERT INTO mark VALUES (:number)"), {"number": number})

    async def run() -> int:
        databases = [Database(url), Database(url)]
        try:
            await databases[0].write(lambda connection: connection.execute(text("CREATE TABLE mark (number INTEGER)")))
            await asyncio.gather(*(databases[number % 2].write(once, number) for number in range(8)))
            return await databases[0].read(
                lambda connection: int(connection.execute(text("SELECT count(*) FROM mark")).scalar_one())
            )
        finally:
            for database in databases:
                await database.close()

    assert asyncio.run(run()) == 1
    assert tries > 8


def test_a_conflict_without_end_is_told(postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "DEADLINE", 0.3)
    tries = 0

    def conflict(connection: Connection, code: str) -> None:
        nonlocal tries
        tries += 1
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{code}'; END $$"))

    async def run() -> None:
        nonlocal tries
        database = Database(postgres_server.create())
        try:
            with pytest.raises(Unavailable):
                await database.write(conflict, "40001")
            assert tries > 2
            tries = 0
            with pytest.raises(OperationalError) as caught:
                await database.write(conflict, "53100")
            assert is_full(caught.value)
            assert tries == 1
        finally:
            await database.close()

    asyncio.run(run())


def test_a_stopped_server_does_not_stop_the_others(postgres_server: Postgres) -> None:
    """PostgreSQL ends a transaction whose server says nothing more, so that its locks are free."""
    url = postgres_server.create()

    async def settings() -> list[str]:
        database = Database(url)
        try:
            return await database.read(
                lambda connection: [
                    connection.execute(text(f"SHOW {name}")).scalar_one()
                    for name in (
                        "idle_in_transaction_session_timeout",
                        "transaction_isolation",
                        "transaction_read_only",
                    )
                ]
            )
        finally:
            await database.close()

    assert asyncio.run(settings()) == ["10s", "repeatable read", "on"]
