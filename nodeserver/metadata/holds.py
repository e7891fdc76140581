"""Files and directories whose history is left alone."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from nodeserver.metadata import tables
from nodeserver.metadata.errors import NoFile
from nodeserver.protocol.wire import FileId, Hold

_hold, _file = tables.hold.c, tables.file.c


def every(connection: Connection, bucket: int) -> list[Hold]:
    """The holds of a bucket, oldest first."""
    rows = connection.execute(
        select(_hold.file, _hold.time_ns, _hold.author, _hold.note)
        .where(_hold.bucket == bucket)
        .order_by(_hold.time_ns, _hold.file)
    )
    return [Hold(*row) for row in rows]


def place(connection: Connection, bucket: int, hold: Hold) -> Hold:
    """Hold a file or directory, gone or not; one that is held gets the new note. Raises ``NoFile``."""
    these = (_file.bucket == bucket, _file.id == hold.file)
    if connection.execute(select(_file.id).where(*these)).first() is None:
        raise NoFile(f"there is no file {hold.file.hex()}")
    release(connection, bucket, hold.file)
    values = {"file": hold.file, "time_ns": hold.time_ns, "author": hold.author, "note": hold.note}
    connection.execute(insert(tables.hold), {"bucket": bucket, **values})
    return hold


def release(connection: Connection, bucket: int, file: FileId) -> None:
    """End a hold, if there is one."""
    connection.execute(delete(tables.hold).where(_hold.bucket == bucket, _hold.file == file))
