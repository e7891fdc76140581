"""Work that one server at a time does for all that share a database."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from nodeserver.metadata import tables
from nodeserver.placement.map import NodeId

_lease = tables.lease.c


def take(connection: Connection, name: str, holder: NodeId, now_ns: int, until_ns: int) -> bool:
    """Take a lease that is free, expired or one's own; whether it is one's own then, until a moment."""
    row = connection.execute(select(_lease.holder, _lease.until_ns).where(_lease.name == name)).first()
    values = {"holder": holder, "until_ns": until_ns}
    if row is None:
        connection.execute(insert(tables.lease), {"name": name, **values})
        return True
    if row.holder != holder and row.until_ns > now_ns:
        return False
    connection.execute(update(tables.lease).where(_lease.name == name).values(values))
    return True


def give_back(connection: Connection, name: str, holder: NodeId) -> None:
    """Let others have a lease now."""
    connection.execute(update(tables.lease).where(_lease.name == name, _lease.holder == holder).values(until_ns=0))
