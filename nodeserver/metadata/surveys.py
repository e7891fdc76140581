"""What the last look at all chunks found, whichever server looked, for whichever is asked."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select, update

from nodeserver.metadata import tables
from nodeserver.protocol.wire import pack


class Survey(msgspec.Struct):
    """Of all buckets. In the database as MessagePack."""

    time_ns: int = 0
    """When; 0: never."""
    chunks: int = 0
    below: int = 0
    """Those with fewer pieces than they should have."""
    lost: int = 0
    """Those that versions refer to and nobody can read."""


_decoder = msgspec.msgpack.Decoder(Survey)


def last(connection: Connection) -> Survey:
    """The last one."""
    packed = connection.execute(select(tables.cluster.c.survey)).scalar()
    return _decoder.decode(packed) if packed else Survey()


def note(connection: Connection, survey: Survey) -> None:
    """Take this one for the last."""
    connection.execute(update(tables.cluster).values(survey=pack(survey)))
