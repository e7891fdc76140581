"""Formats of the metadata database."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text

from nodeserver.metadata import tables
from nodeserver.metadata.migrations import FIRST, NewerFormat, Step, migrate
from nodeserver.metadata.store import Metadata
from nodeserver.protocol.wire import NewBucket


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def _add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE bucket ADD COLUMN colour TEXT"))


def _fill_column(connection: Connection) -> None:
    connection.execute(text("UPDATE bucket SET colour = 'red'"))


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
        migrate(connection, [_add_column])
    with engine.begin() as connection:
        migrate(connection, [_add_column, _fill_column])
        assert connection.execute(text("SELECT name, colour FROM bucket")).one() == ("a", "red")
    assert _version(engine) == FIRST + 2


def test_a_newer_one_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection, [_add_column])
    with engine.begin() as connection, pytest.raises(NewerFormat, match=f"format {FIRST + 1}"):
        migrate(connection)


def _fail(connection: Connection) -> None:
    raise RuntimeError("half-way")


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """And the release before still opens it."""
    url = f"sqlite:///{tmp_path / 'metadata.sqlite'}"

    async def run(steps: Sequence[Step]) -> list[str]:
        metadata = await Metadata.open(url, steps)
        try:
            if not steps:
                await metadata.create_bucket("kept", NewBucket(bytes(16)))
            return [bucket.name for bucket in await metadata.buckets()]
        finally:
            await metadata.close()

    asyncio.run(run([]))
    with pytest.raises(RuntimeError, match="half-way"):
        asyncio.run(run([_add_column, _fail]))
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.sqlite")) as database:
        assert "colour" not in {row[1] for row in database.execute("PRAGMA table_info(bucket)")}
    assert asyncio.run(run([])) == ["kept"]
    with pytest.raises(NewerFormat):
        asyncio.run(_open_twice(url))


async def _open_twice(url: str) -> None:
    await (await Metadata.open(url, [_keep])).close()
    await (await Metadata.open(url)).close()


def _keep(connection: Connection) -> None:
    """A step that has nothing to do but the number."""
