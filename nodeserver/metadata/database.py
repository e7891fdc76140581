"""Transactions on the database behind a URL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that holds SQLite's write lock, such as a backup."""


class UnusableUrl(ValueError):
    """The metadata URL is not of a database that this release supports."""


class Database:
    """An engine and its transactions, for functions that take a ``Connection`` first.

    ``read`` sees one snapshot. ``write`` is durable when it returns. Functions run in a greenlet of the event loop,
    each statement on a thread of its connection.
    """

    def __init__(self, url: str) -> None:
        """Raises ``UnusableUrl``. Does not connect yet."""
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise UnusableUrl(f"{url!r} is not a database URL") from error
        if parsed.drivername != "sqlite+aiosqlite" or not parsed.database or parsed.database == ":memory:":
            raise UnusableUrl(f"{url!r} is not supported: sqlite+aiosqlite:///PATH is")
        self._engine = create_async_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT, "cached_statements": 256})
        _configure_sqlite(self._engine.sync_engine)
        self._one_writer = asyncio.Lock()  # SQLite has room for one, and lets others poll

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a read transaction."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(function, *args, **kwargs)

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function(connection, …)`` in a write transaction, committed when it returns."""
        async with self._writing() as connection:
            return await connection.run_sync(function, *args, **kwargs)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._one_writer, self._engine.connect() as connection:
            await connection.execution_options(write=True)
            async with connection.begin():
                yield connection


def is_full(error: OperationalError) -> bool:
    """Whether a statement failed because the database's disk is full."""
    code = getattr(error.orig, "sqlite_errorname", "")
    return code == "SQLITE_FULL" or code in ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_FSYNC")


def _configure_sqlite(engine: Any) -> None:
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
