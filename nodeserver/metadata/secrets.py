"""What all servers on one database must have in common: the key that tokens are signed with."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from nodeserver.metadata import tables


def common(connection: Connection, own: dict[str, bytes]) -> dict[str, bytes]:
    """The secrets of the database; those of the first server that asks become so."""
    found = {row.name: row.value for row in connection.execute(select(tables.secret.c.name, tables.secret.c.value))}
    if found:
        return found
    connection.execute(insert(tables.secret), [{"name": name, "value": value} for name, value in own.items()])
    return own
