"""Transactions on the database behind a URL."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import ClauseElement, Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

P = ParamSpec("P")
T = TypeVar("T")

READERS = 4
"""Read transactions at a time."""
BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that holds SQLite's write lock, such as a backup."""


class UnusableUrl(ValueError):
    """The metadata URL is not of a database that this release supports."""


class Database:
    """An engine and its transactions, for functions that take a ``Connection`` first.

    ``read`` sees one snapshot. ``write`` is durable when it returns. A transaction runs as a whole on a thread: a hop
    there and back for each statement, as asynchronous drivers make them, costs more than the statements do.
    """

    def __init__(self, url: str) -> None:
        """Raises ``UnusableUrl``. Does not connect yet."""
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise UnusableUrl(f"{url!r} is not a database URL") from error
        if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
            raise UnusableUrl(f"{url!r} is not supported: sqlite:///PATH is")
        arguments = {"timeout": BUSY_TIMEOUT, "cached_statements": 256}
        self._engine = create_engine(parsed.set(drivername="sqlite"), connect_args=arguments)
        _configure_sqlite(self._engine)
        self._writer = ThreadPoolExecutor(1, "metadata-writer")  # SQLite has room for one, and lets others poll
        self._readers = ThreadPoolExecutor(READERS, "metadata-reader")

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a read transaction."""

        def transaction() -> T:
            with self._engine.connect() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, transaction)

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a write transaction, committed when it returns."""

        def transaction() -> T:
            with self._engine.connect().execution_options(write=True) as connection, connection.begin():
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._writer, transaction)

    async def close(self) -> None:
        """Finish the transactions that were begun and close all connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        for pool in (self._writer, self._readers):
            pool.shutdown()
        self._engine.dispose()


def rows_of(connection: Connection, statement: ClauseElement, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Execute a statement whose placeholders are, in the order of its text, ``values``; its rows, if it has any.

    Past SQLAlchemy's execution, which takes four times as long as
    what SQLite does for a small statement. Raises ``DBAPIError``.
    """
    with _cursor(connection) as cursor:
        cursor.execute(_text(statement, connection.dialect), tuple(values))
        return list(cursor.fetchall()) if cursor.description else []


def for_each(connection: Connection, statement: ClauseElement, rows: Sequence[Sequence[Any]]) -> None:
    """Execute a statement once for each of ``rows``, which are as ``values`` of ``rows_of``. Raises ``DBAPIError``."""
    if rows:
        with _cursor(connection) as cursor:
            cursor.executemany(_text(statement, connection.dialect), rows)


@contextlib.contextmanager
def _cursor(connection: Connection) -> Iterator[DBAPICursor]:
    driver = connection.dialect.dbapi
    assert driver is not None
    with contextlib.closing(connection.connection.cursor()) as cursor:
        try:
            yield cursor
        except driver.Error as error:
            raise DBAPIError.instance(None, None, error, driver.Error, dialect=connection.dialect) from error


@functools.cache
def _text(statement: ClauseElement, dialect: Dialect) -> str:
    return str(statement.compile(dialect=dialect))


def is_full(error: OperationalError) -> bool:
    """Whether a statement failed because the database's disk is full."""
    return getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")


def _configure_sqlite(engine: Engine) -> None:
    """Real transactions from BEGIN on, an fsync for each commit, foreign keys left to the code."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would begin only before the first change
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
