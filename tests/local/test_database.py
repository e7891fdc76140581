"""The mount's database: transactions inside others, and what earlier releases wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from mountfs.errors import MountError
from mountfs.local.database import FORMAT, SCHEMA, Database

FIRST_FORMAT = Path(__file__).parent / "formats" / "1.sql"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "state")) as database:
        yield database


def test_a_transaction_inside_another_is_a_part_of_it(db: Database) -> None:
    with db.transaction():
        db.set_meta("outer", b"1")
        with db.transaction():
            db.set_meta("inner", b"1")
    assert (db.get_meta("outer"), db.get_meta("inner")) == (b"1", b"1")


def test_an_inner_transaction_that_fails_takes_back_its_own_changes_alone(db: Database) -> None:
    told: list[bytes | None] = []
    db.after_rollback.append(lambda: told.append(db.get_meta("inner")))
    with db.transaction():
        db.set_meta("outer", b"1")
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.set_meta("inner", b"1")
            raise ZeroDivisionError
        with db.transaction():
            db.set_meta("next", b"1")
    assert (db.get_meta("outer"), db.get_meta("inner"), db.get_meta("next")) == (b"1", None, b"1")
    assert told == [None], "what is in memory is read again, as it is after the rollback"


def test_what_an_inner_transaction_did_goes_with_the_outer_one(db: Database) -> None:
    with contextlib.suppress(ZeroDivisionError), db.transaction():
        with db.transaction():
            db.set_meta("inner", b"1")
        raise ZeroDivisionError
    assert db.get_meta("inner") is None
    assert not db.connection.in_transaction


def columns(connection: apsw.Connection) -> dict[str, set[str]]:
    """The columns of each table."""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {
        table: {row[0] for row in connection.execute(f"SELECT name FROM pragma_table_info('{table}')")}
        for table in tables
        if not table.startswith("sqlite_")
    }


def test_a_database_of_the_first_format_becomes_one_of_this(tmp_path: Path) -> None:
    first = apsw.Connection(str(tmp_path / "mount.db"))
    first.execute(FIRST_FORMAT.read_text())
    first.close()
    fresh = apsw.Connection(":memory:")
    fresh.execute(SCHEMA)
    with closing(Database(tmp_path)) as db:
        assert columns(db.connection) == columns(fresh)
        assert db.execute("PRAGMA user_version").get == FORMAT
        assert db.execute("SELECT name, seq, known, known_ns FROM bucket").fetchall() == [("photos", 7, 7, 0)]
        assert db.execute("SELECT count(*) FROM journal").get == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    newer = apsw.Connection(str(tmp_path / "mount.db"))
    newer.execute(f"PRAGMA user_version = {FORMAT + 1}")
    newer.close()
    with pytest.raises(MountError, match="use the newer mountfs"):
        Database(tmp_path)
