"""Transactions of the mount's database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mountfs.local.database import Database


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
