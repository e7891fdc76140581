"""Transactions on the database behind a URL."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import ClauseElement, Connection, Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, OperationalError

from nodeserver.metadata.engines import THREADS, Kind, connect, kind_of
from nodeserver.metadata.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE = 8.0
"""Seconds after which a transaction that did not succeed is not tried again: less than a mount waits for an answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Seconds before the second try, at most; the most doubles with each."""


class Database:
    """An engine and its transactions, for functions that take a ``Connection`` first.

    ``read`` sees one snapshot. ``write`` is durable when it returns, and all are as if one had run after the other.
    A transaction runs as a whole on a thread: a hop there and back for each statement, as asynchronous drivers
    make them, costs more than the statements do. One that another has outrun, or that lost its connection, runs again
    from its beginning, so what the functions do besides must bear to be done twice.
    """

    def __init__(self, url: str) -> None:
        """Raises ``UnusableUrl``. Does not connect yet."""
        self._engines = connect(url)
        self._writer = ThreadPoolExecutor(self._engines.writers, "metadata-writer")
        self._readers = ThreadPoolExecutor(THREADS, "metadata-reader")

    @property
    def shared(self) -> bool:
        """Whether other servers may write to the database."""
        return self._engines.shared

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a read transaction. Raises ``Unavailable``."""
        return await self._run(
            self._readers, self._engines.reading, lambda connection: function(connection, *args, **kwargs), again=True
        )

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a write transaction, committed when it returns.

        Raises ``Unavailable``: nothing was done, but for when the connection broke in the moment of the commit.
        """
        return await self._run(
            self._writer, self._engines.writing, lambda connection: function(connection, *args, **kwargs), again=False
        )

    async def repeat(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``write``, for a function that does nothing, and answers the same, where it was done before.

        It runs again when the connection broke in the moment of the commit.
        """
        return await self._run(
            self._writer, self._engines.writing, lambda connection: function(connection, *args, **kwargs), again=True
        )

    async def write_claimed(self, function: Callable[[Connection], T]) -> T:
        """As ``write``, for a function that claims what it is about at first, see ``Engines.claiming``."""
        return await self._run(self._writer, self._engines.claiming, function, again=False)

    async def repeat_claimed(self, function: Callable[[Connection], T]) -> T:
        """As ``write_claimed`` and ``repeat``."""
        return await self._run(self._writer, self._engines.claiming, function, again=True)

    async def close(self) -> None:
        """Finish the transactions that were begun and close all connections."""
        await asyncio.to_thread(self._close)

    async def _run(
        self, pool: ThreadPoolExecutor, engine: Engine, function: Callable[[Connection], T], *, again: bool
    ) -> T:
        until = time.monotonic() + DEADLINE
        tries = 0
        while True:
            tries += 1
            attempt = _Attempt(engine, function, until)
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, attempt)
            except DBAPIError as error:
                kind = kind_of(error)
                if kind is Kind.LOST and attempt.committing and not again:
                    raise Unavailable("the connection to the metadata database broke during a commit") from error
                if kind in (Kind.FULL, Kind.OTHER):
                    raise
                pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 16)))  # noqa: S311
                if time.monotonic() + pause > until:
                    if kind is Kind.TAKEN:  # it was no race
                        raise
                    raise Unavailable(f"the metadata database: {_line(error)}") from error
            await asyncio.sleep(pause)

    def _close(self) -> None:
        for pool in (self._writer, self._readers):
            pool.shutdown()
        self._engines.reading.dispose()


class _Attempt:
    """One try of a transaction, on a thread."""

    def __init__(self, engine: Engine, function: Callable[[Connection], Any], until: float) -> None:
        self._engine = engine
        self._function = function
        self._until = until
        self.committing = False
        """Whether it came so far that it may have been done."""

    def __call__(self) -> Any:
        if time.monotonic() > self._until:  # all threads wait for a database that does not answer
            raise Unavailable("the metadata database does not answer")
        with self._engine.connect() as connection, connection.begin() as transaction:
            try:
                answer = self._function(connection)
                self.committing = True
                transaction.commit()
            except DBAPIError as error:
                if kind_of(error) is Kind.LOST:
                    connection.invalidate(error)
                raise
            return answer


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


@cache
def _text(statement: ClauseElement, dialect: Dialect) -> str:
    return str(statement.compile(dialect=dialect))


def is_full(error: OperationalError) -> bool:
    """Whether a statement failed because the database's disk is full."""
    return kind_of(error) is Kind.FULL


def _line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
