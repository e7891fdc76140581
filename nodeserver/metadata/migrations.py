"""The format of the metadata database and how older ones become the present one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, inspect, select, update

from nodeserver.metadata import tables

FIRST = 1
"""The format of the first release."""

Step = Callable[[Connection], None]

STEPS: Sequence[Step] = ()
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
    if found > newest:
        raise NewerFormat(f"the metadata has format {found}, this release knows up to {newest}")
    for number in range(found, newest):
        log.info("migrating the metadata from format %d to %d", number, number + 1)
        steps[number - FIRST](connection)
        connection.execute(update(tables.schema_version).values(version=number + 1))
    return newest
