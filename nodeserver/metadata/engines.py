"""What differs between the databases that metadata can be in: connections, isolation, and what their errors mean."""

from __future__ import annotations

import dataclasses
import enum
import logging
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

if TYPE_CHECKING:
    import psycopg

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process that holds SQLite's write lock, such as a backup."""
CONNECT_TIMEOUT = 3
"""Seconds that one try to reach a PostgreSQL server takes at most."""
IDLE = 10
"""Seconds after which PostgreSQL ends the transaction of a node server that has stopped asking."""
FEW = 16
"""Values of a statement that PostgreSQL may plan for all values at once: for a long IN list such a plan is bad."""
THREADS = 4
"""Transactions at a time that read; and that write, where the database has room for more than one."""


class UnusableUrl(ValueError):
    """The metadata URL is not of a database that this release supports."""


class Kind(enum.Enum):
    """What a failed transaction means for the next try."""

    CONFLICT = "another transaction was faster; nothing was done"
    TAKEN = "another transaction made the same row, or has made it before; nothing was done"
    LOST = "the database cannot be reached, or no longer; the transaction is done only if it was being committed"
    FULL = "the database has no room"
    OTHER = "the statement is wrong, or the database is"


_KINDS = {
    "40001": Kind.CONFLICT,  # serialization_failure
    "40P01": Kind.CONFLICT,  # deadlock_detected
    "55P03": Kind.CONFLICT,  # lock_not_available
    "23505": Kind.TAKEN,  # unique_violation
    "42P07": Kind.TAKEN,  # duplicate_table: two servers start on an empty database
    "25006": Kind.LOST,  # read_only_sql_transaction: what was the primary is one no longer
    "25P03": Kind.LOST,  # idle_in_transaction_session_timeout
    "40003": Kind.LOST,  # statement_completion_unknown
    "53300": Kind.LOST,  # too_many_connections
    "57P01": Kind.LOST,  # admin_shutdown
    "57P02": Kind.LOST,  # crash_shutdown
    "57P03": Kind.LOST,  # cannot_connect_now
    "53100": Kind.FULL,  # disk_full
    "SQLITE_FULL": Kind.FULL,
    "SQLITE_IOERR_SHMSIZE": Kind.FULL,
}


def kind_of(error: DBAPIError) -> Kind:
    """What an error of the database means."""
    original = error.orig
    code = getattr(original, "sqlstate", None) or getattr(original, "sqlite_errorname", None) or ""
    if code in _KINDS:
        return _KINDS[code]
    if code.startswith("08"):  # connection_exception
        return Kind.LOST
    # libpq has no code for a connection that could not be made or that broke.
    return (
        Kind.LOST if isinstance(error, OperationalError) and getattr(original, "sqlstate", "") is None else Kind.OTHER
    )


@dataclasses.dataclass(frozen=True)
class Engines:
    """Connections for each kind of transaction, of one pool."""

    reading: Engine
    """One snapshot."""
    writing: Engine
    """Serializable."""
    claiming: Engine
    """One snapshot, for a transaction that first claims a row which all others that write what it reads claim too.

    Serializable transactions would often fail for nothing: PostgreSQL notes what they read by the page.
    """
    writers: int
    """Write transactions at a time."""
    shared: bool
    """Whether other servers may write to the database."""


def connect(url: str) -> Engines:
    """The engines for a URL. Raises ``UnusableUrl``. Does not connect yet."""
    if url.startswith(("postgresql://", "postgres://")):
        return _postgresql(url)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UnusableUrl("that is not a database URL") from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise UnusableUrl(f"{parsed.render_as_string()!r} is not supported: sqlite:///PATH and postgresql://… are")
    return _sqlite(parsed.database)


def _postgresql(url: str) -> Engines:
    """The URL is libpq's, with all that it knows: several hosts, password files, TLS."""
    import psycopg  # takes a tenth of a second, which SQLite need not wait for

    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise UnusableUrl(str(error).strip()) from error

    class Cursor(psycopg.Cursor[Any]):
        def execute(
            self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
        ) -> Self:
            few = prepare if params is None or len(params) <= FEW else False
            return super().execute(query, params, prepare=few, binary=binary)

    def dial() -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            url,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="nodeserver",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
            cursor_factory=Cursor,
            autocommit=True,
        )
        # A server that is stopped in mid-transaction must not keep its locks from the others.
        connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        connection.autocommit = False
        return connection

    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of what is run again
    engine = create_engine(
        "postgresql+psycopg://",
        creator=dial,
        paramstyle="format",
        pool_pre_ping=True,
        pool_size=2 * THREADS,
        max_overflow=0,
    )
    return Engines(
        engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        engine.execution_options(isolation_level="SERIALIZABLE"),
        engine.execution_options(isolation_level="REPEATABLE READ"),
        writers=THREADS,
        shared=True,
    )


def _sqlite(path: str) -> Engines:
    """Real transactions from BEGIN on, an fsync for each commit, foreign keys left to the code."""
    arguments = {"timeout": BUSY_TIMEOUT, "cached_statements": 256}
    engine = create_engine(f"sqlite:///{path}", connect_args=arguments)

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

    writing = engine.execution_options(write=True)
    return Engines(engine, writing, writing, writers=1, shared=False)
