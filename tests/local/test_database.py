"""The mount's database: what an earlier release wrote is taken over."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from mountfs.errors import MountError
from mountfs.local.database import FORMAT, SCHEMA, Database

BEGINNINGS = Path(__file__).parent / "formats"


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
    first.execute((BEGINNINGS / "1.sql").read_text())
    first.close()
    database = Database(tmp_path)
    fresh = apsw.Connection(":memory:")
    fresh.execute(SCHEMA)
    assert columns(database.connection) == columns(fresh)
    assert database.execute("PRAGMA user_version").get == FORMAT
    assert database.execute("SELECT name, seq, known, known_ns FROM bucket").fetchall() == [("photos", 7, 7, 0)]
    assert database.execute("SELECT count(*) FROM journal").get == 1
    database.close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    newer = apsw.Connection(str(tmp_path / "mount.db"))
    newer.execute(f"PRAGMA user_version = {FORMAT + 1}")
    newer.close()
    with pytest.raises(MountError, match="use the newer mountfs"):
        Database(tmp_path)
