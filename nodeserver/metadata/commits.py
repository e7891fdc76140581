"""A commit: one transaction that applies a batch of operations and appends to the bucket's log."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, and_, bindparam, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.apply import apply
from nodeserver.metadata.errors import NoBucket
from nodeserver.metadata.rows import Rows, write_back
from nodeserver.metadata.tree import Tree
from nodeserver.protocol.wire import Change, Commit, Committed, pack, unpack

_bucket, _log = tables.bucket.c, tables.commit.c

_LOAD = (
    select(
        _bucket.root, _bucket.seq, _bucket.time_ns, _bucket.used_bytes, _bucket.used_files, _bucket.quota_bytes,
        _log.answer,
    )
    .outerjoin_from(
        tables.bucket,
        tables.commit,
        and_(_log.bucket == _bucket.bucket, _log.client == bindparam("client"), _log.batch == bindparam("batch")),
    )
    .where(_bucket.bucket == bindparam("bucket"), _bucket.name.is_not(None))
)  # fmt: skip
_SAVE = update(tables.bucket).where(_bucket.bucket == bindparam("b_bucket"))
_FIND = select(_log.answer).where(
    _log.bucket == bindparam("bucket"), _log.client == bindparam("client"), _log.batch == bindparam("batch")
)


def commit(connection: Connection, bucket: int, batch: Commit, *, author: str, now_ns: int) -> Committed:
    """Apply a checked batch; a repeat gets the first answer. Raises ``NoBucket``."""
    found = connection.execute(_LOAD, {"bucket": bucket, "client": batch.client, "batch": batch.batch}).one_or_none()
    if found is None:
        raise NoBucket("the bucket was deleted")
    if found.answer is not None:
        return unpack(found.answer, Committed)
    seq, time_ns = found.seq + 1, max(now_ns, found.time_ns + 1)
    tree = Tree(Rows(connection, bucket), found.root, used_bytes=found.used_bytes, used_files=found.used_files)
    answer = Committed(seq, time_ns, apply(tree, batch, time_ns=time_ns, quota=found.quota_bytes))
    moved = write_back(connection, bucket, tree, seq=seq, time_ns=time_ns, client=batch.client, author=author)
    change = Change(seq, batch.client, time_ns, list(moved), [*tree.created, *tree.changed])
    connection.execute(
        insert(tables.commit),
        {
            "bucket": bucket,
            "seq": seq,
            "time_ns": time_ns,
            "client": batch.client,
            "batch": batch.batch,
            "ops": pack(msgspec.structs.replace(batch, chunks=[])),
            "answer": pack(answer),
            "change": msgspec.msgpack.encode(change),
        },
    )
    usage = {"used_bytes": tree.used_bytes, "used_files": tree.used_files}
    connection.execute(_SAVE, {"b_bucket": bucket, "seq": seq, "time_ns": time_ns, **usage})
    return answer


def answered(connection: Connection, bucket: int, batch: Commit) -> Committed | None:
    """The answer a batch got, None when it was not applied."""
    found = connection.execute(_FIND, {"bucket": bucket, "client": batch.client, "batch": batch.batch}).scalar()
    return None if found is None else unpack(found, Committed)
