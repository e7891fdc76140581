"""Formats of the metadata database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text

from nodeserver.metadata import tables
from nodeserver.metadata.migrations import FIRST, NewerFormat, migrate


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
