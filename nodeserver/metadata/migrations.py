"""The format of the metadata database and how older ones become the present one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, inspect, select, text, update

from nodeserver.metadata import tables

FIRST = 1
"""The format of the first release."""

LOADING = (1 << 31) - 1
"""In place of the format, while a dump is being loaded: every release refuses it."""

Step = Callable[[Connection], None]


def _history(connection: Connection) -> None:
    """Format 2: what files were, whose history they continue, retention, holds, chunks on their way out.

    Only SQLite was ever without them.
    """
    for statement in _HISTORY.split(";"):
        connection.execute(text(statement))


_HISTORY = """
ALTER TABLE file ADD COLUMN since_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE file ADD COLUMN follows BLOB NOT NULL DEFAULT x'';
ALTER TABLE file ADD COLUMN follows_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE commit_log ADD COLUMN author TEXT NOT NULL DEFAULT '';
CREATE INDEX file_follows ON file (bucket, follows) WHERE follows_seq > 0;
CREATE INDEX entry_ended ON entry (bucket, parent, name, until_seq) WHERE until_seq < 9223372036854775807;
CREATE INDEX commit_time ON commit_log (bucket, time_ns);
CREATE TABLE past (
    bucket INTEGER NOT NULL, file BLOB NOT NULL, since_seq BIGINT NOT NULL, until_seq BIGINT NOT NULL,
    mode BIGINT NOT NULL, uid BIGINT NOT NULL, gid BIGINT NOT NULL, nlink BIGINT NOT NULL, size BIGINT NOT NULL,
    atime_ns BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, ctime_ns BIGINT NOT NULL, xattrs BLOB NOT NULL,
    version BLOB NOT NULL, PRIMARY KEY (bucket, file, since_seq)
) WITHOUT ROWID;
CREATE TABLE retention (
    bucket INTEGER NOT NULL, directory BLOB NOT NULL, policy BLOB NOT NULL, PRIMARY KEY (bucket, directory)
) WITHOUT ROWID;
CREATE TABLE hold (
    bucket INTEGER NOT NULL, file BLOB NOT NULL, time_ns BIGINT NOT NULL, author TEXT NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (bucket, file)
) WITHOUT ROWID;
CREATE TABLE condemned (
    bucket INTEGER NOT NULL, chunk BLOB NOT NULL, time_ns BIGINT NOT NULL, doomed INTEGER NOT NULL,
    PRIMARY KEY (bucket, chunk)
) WITHOUT ROWID
"""


def _several_servers(connection: Connection) -> None:
    """Format 3: the secrets that several servers on one database share."""
    bytes_ = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    connection.execute(text(f"CREATE TABLE secret (name TEXT NOT NULL PRIMARY KEY, value {bytes_} NOT NULL)"))


def _clusters(connection: Connection) -> None:
    """Format 4: nodes, leases, repairs, and the redundancy of buckets."""
    sqlite = connection.dialect.name == "sqlite"
    for statement in _CLUSTERS.split(";"):
        connection.execute(text(statement.replace("BYTES", "BLOB" if sqlite else "BYTEA")))
    rows = "WITHOUT ROWID" if sqlite else ""
    connection.execute(
        text(
            f"CREATE TABLE repair (bucket INTEGER NOT NULL, chunk {'BLOB' if sqlite else 'BYTEA'} NOT NULL, "
            f"since_ns BIGINT NOT NULL, PRIMARY KEY (bucket, chunk)) {rows}"
        )
    )


_CLUSTERS = """
ALTER TABLE bucket ADD COLUMN redundancy TEXT NOT NULL DEFAULT '';
CREATE TABLE cluster (one INTEGER NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, map BYTES NOT NULL, survey BYTES);
CREATE TABLE member (id BYTES NOT NULL PRIMARY KEY, said BYTES NOT NULL, last_seen_ns BIGINT NOT NULL);
CREATE TABLE lease (name TEXT NOT NULL PRIMARY KEY, holder BYTES NOT NULL, until_ns BIGINT NOT NULL)
"""

STEPS: Sequence[Step] = (_history, _several_servers, _clusters)
"""``STEPS[n]`` turns format ``FIRST + n`` into the next. Append only; a step that was released never changes,
so it must spell out its SQL instead of using ``tables``."""

log = logging.getLogger(__name__)


class NewerFormat(Exception):
    """The data was written by a later release than this one."""


def migrate(connection: Connection, steps: Sequence[Step] = STEPS) -> int:
    """Create the tables, or bring older ones up to date, within the caller's transaction; returns the format.

    Raises ``NewerFormat``.
    """
    newest = FIRST + len(steps)
    if not inspect(connection).has_table(tables.schema_version.name):
        tables.metadata.create_all(connection)
        connection.execute(tables.schema_version.insert().values(version=newest))
        return newest
    found: int = connection.execute(select(tables.schema_version.c.version)).scalar_one()
    if found == LOADING:
        raise NewerFormat(
            "the load of a dump into this database was not finished: repeat it, or begin with an empty one"
        )
    if found > newest:
        raise NewerFormat(f"the metadata has format {found}, this release knows up to {newest}")
    for number in range(found, newest):
        log.info("migrating the metadata from format %d to %d", number, number + 1)
        steps[number - FIRST](connection)
        connection.execute(update(tables.schema_version).values(version=number + 1))
    return newest
