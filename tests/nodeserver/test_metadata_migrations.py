"""Formats of the metadata database."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text

from nodeserver.metadata import tables
from nodeserver.metadata.migrations import FIRST, STEPS, NewerFormat, Step, migrate
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Commit,
    Create,
    File,
    Manifest,
    NewBucket,
    Op,
    Rename,
    Slice,
    Unlink,
    Write,
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def _add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE bucket ADD COLUMN colour TEXT"))


def _fill_column(connection: Connection) -> None:
    connection.execute(text("UPDATE bucket SET colour = 'red'"))


NOW = FIRST + len(STEPS)


def _version(engine: Engine) -> int:
    with engine.begin() as connection:
        found: int = connection.execute(select(tables.schema_version.c.version)).scalar_one()
        return found


def test_a_new_database_has_the_newest_format(engine: Engine) -> None:
    with engine.begin() as connection:
        assert migrate(connection, [_add_column]) == FIRST + 1
        assert set(tables.metadata.tables) <= set(inspect(connection).get_table_names())
    assert _version(engine) == FIRST + 1
    with engine.begin() as connection:
        assert migrate(connection, [_add_column]) == FIRST + 1


def test_an_older_one_takes_the_steps_that_it_lacks(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
        connection.execute(
            tables.bucket.insert().values(
                id=b"1", name="a", root=b"", chunk_key=b"", created_ns=0, seq=0, time_ns=0, used_bytes=0, used_files=0
            )
        )
    with engine.begin() as connection:
        migrate(connection, [*STEPS, _add_column])
    with engine.begin() as connection:
        migrate(connection, [*STEPS, _add_column, _fill_column])
        assert connection.execute(text("SELECT name, colour FROM bucket")).one() == ("a", "red")
    assert _version(engine) == NOW + 2


def test_a_newer_one_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection, [*STEPS, _add_column])
    with engine.begin() as connection, pytest.raises(NewerFormat, match=f"format {NOW + 1}"):
        migrate(connection)


def _fail(connection: Connection) -> None:
    raise RuntimeError("half-way")


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """And the release before still opens it."""
    url = f"sqlite:///{tmp_path / 'metadata.sqlite'}"

    async def run(steps: Sequence[Step]) -> list[str]:
        metadata = await Metadata.open(url, steps)
        try:
            if steps is STEPS:
                await metadata.create_bucket("kept", NewBucket(bytes(16)))
            return [bucket.name for bucket in await metadata.buckets()]
        finally:
            await metadata.close()

    asyncio.run(run(STEPS))
    with pytest.raises(RuntimeError, match="half-way"):
        asyncio.run(run([*STEPS, _add_column, _fail]))
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.sqlite")) as database:
        assert "colour" not in {row[1] for row in database.execute("PRAGMA table_info(bucket)")}
    assert asyncio.run(run(STEPS)) == ["kept"]
    with pytest.raises(NewerFormat):
        asyncio.run(_open_twice(url))


FORMAT_1 = (Path(__file__).parent / "format1.sql").read_text()
"""A database as the first release left it.

In five commits: d/f made; written twice (3 and 5 bytes); renamed to g, and gone made; gone deleted, and g made private.
"""


def test_history_of_a_database_of_the_first_release(tmp_path: Path) -> None:
    """Names and contents of then are found; attributes were not kept by that release and are the last ones."""
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.sqlite")) as database:
        database.executescript(FORMAT_1)

    async def run() -> None:
        metadata = await Metadata.open(f"sqlite:///{tmp_path / 'metadata.sqlite'}")
        try:
            await look_back(metadata)
        finally:
            await metadata.close()

    async def look_back(metadata: Metadata) -> None:
        root = (await metadata.bucket("old")).root

        async def tree(at: int) -> dict[bytes, int]:
            listing = await metadata.tree("old", root, b"", 100, at)
            return {entry.name: entry.file.size for entry in listing.entries}

        async def commit(*ops: Op) -> None:
            answer = await metadata.commit("old", Commit(_id(2), new_id(), list(ops)), author="bea")
            assert {result.status for result in answer.results} == {"ok"}

        before = [{}, {b"d": 0}, {b"d": 0, b"d/f": 3}, {b"d": 0, b"d/f": 5}, {b"d": 0, b"g": 5, b"gone": 0}]
        f, content = _id(11), Manifest([Slice(b"", 0, 7)])
        # The name again, a save by rename, and the directory deleted.
        new, saved = File(new_id(), stat.S_IFREG | 0o644), File(new_id(), stat.S_IFREG | 0o644)
        await commit(Create(root, b"gone", new, 1), Write(new.id, new_id(), 7, bytes(32), content, 1, 1))
        await commit(Create(root, b"tmp", saved, 1), Write(saved.id, new_id(), 7, bytes(32), content, 1, 1))
        await commit(Rename(root, b"tmp", saved.id, root, b"g", 1, f), Unlink(root, b"d", _id(10), 1))
        after = [{b"d": 0, b"g": 5, b"gone": 7}, {b"d": 0, b"g": 5, b"gone": 7, b"tmp": 7}, {b"g": 7, b"gone": 7}]
        for seq, expected in enumerate([*before, {b"d": 0, b"g": 5}, *after]):
            assert await tree(seq) == expected, seq

        history = await metadata.versions("old", root, b"g", b"", 100)
        assert [(it.number, it.size, it.author) for it in history.versions] == [
            (1, 3, "ada"),
            (2, 5, "ada"),
            (3, 7, "bea"),
        ]
        assert {stat.S_IMODE(it.mode) for it in history.versions[:2]} == {0o600}
        named = await metadata.names("old", _id(10), b"", 100)
        assert [(name.name, name.versions, name.live) for name in named.names] == [(b"f", 2, False)]
        assert (await metadata.file("old", f, 2)).file == (await metadata.lookup("old", _id(10), b"f", 2)).file

    asyncio.run(run())
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.sqlite")) as database:
        fresh = sqlite3.connect(":memory:")
        engine = create_engine("sqlite://", creator=lambda: fresh)
        with engine.begin() as connection:
            migrate(connection)
        assert _columns(database) == _columns(fresh)
        engine.dispose()


def _columns(database: sqlite3.Connection) -> set[tuple[str, str, str, int, int]]:
    """Columns of tables and indexes, but for their order: table, column, type, not null, place in the key."""
    return {
        (table, column, kind, notnull, key)
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for _, column, kind, notnull, _, key in database.execute(f"PRAGMA table_info({table})")
    } | {
        (table, index, "index", unique, partial)
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for _, index, unique, _, partial in database.execute(f"PRAGMA index_list({table})")
    }


def _id(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def _open_twice(url: str) -> None:
    await (await Metadata.open(url, [*STEPS, _keep])).close()
    await (await Metadata.open(url)).close()


def _keep(connection: Connection) -> None:
    """A step that has nothing to do but the number."""
