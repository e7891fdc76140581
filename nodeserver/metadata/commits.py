"""A commit: one transaction that applies a batch of operations and appends to the bucket's log."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from sqlalchemy import Connection, and_, bindparam, insert, select, update

from nodeserver.metadata import tables
from nodeserver.metadata.apply import apply
from nodeserver.metadata.database import rows_of
from nodeserver.metadata.errors import NoBucket
from nodeserver.metadata.garbage import take_back
from nodeserver.metadata.reads import check_known
from nodeserver.metadata.rows import Rows, write_back
from nodeserver.metadata.tree import Tree
from nodeserver.protocol.wire import Change, ChunkId, Commit, Committed, pack, unpack

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
    .with_for_update(of=tables.bucket, key_share=True)  # as ``claim``; that it changes comes at the end
)  # fmt: skip
_SAVE = (
    update(tables.bucket)
    .where(_bucket.bucket == bindparam("key"))
    .values(
        {
            column: bindparam(column.name)
            for column in (_bucket.seq, _bucket.time_ns, _bucket.used_bytes, _bucket.used_files)
        }
    )
)
_CLAIM = update(tables.bucket).where(_bucket.bucket == bindparam("key")).values(seq=_bucket.seq)
_FIND = select(_log.answer).where(
    _log.bucket == bindparam("bucket"), _log.client == bindparam("client"), _log.batch == bindparam("batch")
)
_INSERT = insert(tables.commit)


def commit(
    connection: Connection,
    bucket: int,
    batch: Commit,
    *,
    author: str,
    now_ns: int,
    chunks: Collection[ChunkId] = (),
    anew: Mapping[ChunkId, int] | None = None,
) -> Committed:
    """Apply a checked batch whose content is in ``chunks``; a repeat gets the first answer.

    ``anew``, ``Doomed``: as ``garbage.take_back``. Raises ``NoBucket``, and ``HistoryGone`` as ``check_known`` does.
    """
    found = rows_of(connection, _LOAD, (batch.client, batch.batch, bucket))
    if not found:
        raise NoBucket("the bucket was deleted")
    root, seq, time_ns, used_bytes, used_files, quota, first = found[0]
    if first is not None:
        return unpack(first, Committed)
    check_known(connection, bucket, seq, batch.known, batch.known_ns)
    take_back(connection, bucket, chunks, anew)
    seq, time_ns = seq + 1, max(now_ns, time_ns + 1)
    tree = Tree(Rows(connection, bucket), root, seq, used_bytes=used_bytes, used_files=used_files)
    done, results = apply(tree, batch, time_ns=time_ns, quota=quota)
    answer = Committed(seq, time_ns, results)
    moved = write_back(connection, bucket, tree, seq=seq, time_ns=time_ns, client=batch.client, author=author)
    change = Change(seq, batch.client, time_ns, list(moved), [*tree.created, *tree.changed])
    asked = pack(msgspec.structs.replace(batch, ops=done, chunks=[]))
    row = (bucket, seq, time_ns, batch.client, author, batch.batch, asked, pack(answer), pack(change))
    rows_of(connection, _INSERT, row)
    rows_of(connection, _SAVE, (seq, time_ns, tree.used_bytes, tree.used_files, bucket))
    return answer


def claim(connection: Connection, bucket: int) -> None:
    """Be the one that writes to a bucket, where there may be others; to be called first in a transaction.

    Who waited for another to end has seen what was before it. It fails, because the row has changed, and runs again.
    """
    rows_of(connection, _CLAIM, (bucket,))


def answered(connection: Connection, bucket: int, batch: Commit) -> Committed | None:
    """The answer a batch got, None when it was not applied."""
    found = rows_of(connection, _FIND, (bucket, batch.client, batch.batch))
    return unpack(found[0][0], Committed) if found else None
