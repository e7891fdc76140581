"""Making a commit of journal rows: what cancels out, what goes along, with the values of now."""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from mountfs.local.inodes import Inode, Inodes
from mountfs.local.journal import Field, Journal, Op, Row
from mountfs.sync.uploads import Upload
from nodeserver.protocol import wire

ACCESS = Field.MODE | Field.UID | Field.GID
"""Sent of a deleted file too: they also say who may read what it was."""


class Batch(msgspec.Struct):
    """A commit and what it stands for here."""

    rows: list[Row]
    ops: list[wire.Op]
    uploads: dict[int, Upload]
    """By operation."""


def cancelled(journal: Journal, inodes: Inodes, rows: list[Row]) -> list[Row]:
    """Rows of files that were made and deleted again before anything was sent of them."""
    by_ino: dict[int, list[Row]] = defaultdict(list)
    inside: dict[int, int] = defaultdict(int)
    for row in rows:
        for ino in set(row.inos()):
            by_ino[ino].append(row)
        for parent, _ in row.names():
            inside[parent] += 1
    gone: list[Row] = []
    for row in reversed(rows):
        if row.op != Op.UNLINK or not _fleeting(journal, inodes, row.ino, by_ino[row.ino]) or inside[row.ino]:
            continue
        for other in by_ino[row.ino]:
            gone.append(other)
            for parent, _ in other.names():
                inside[parent] -= 1
    return gone


def _fleeting(journal: Journal, inodes: Inodes, ino: int, rows: list[Row]) -> bool:
    """Whether these rows are all there is of a file that nobody else ever saw."""
    inode = inodes.get(ino)
    if inode is None or inode.nlink or len(rows) != journal.inos[ino]:
        return False
    if any(row.id in journal.taken or row.op not in (Op.CREATE, Op.ATTR, Op.WRITE, Op.UNLINK) for row in rows):
        return False
    creates = [row for row in rows if row.op == Op.CREATE]
    unlinks = [row for row in rows if row.op == Op.UNLINK]
    return len(creates) == len(unlinks) == 1 and (creates[0].parent, creates[0].name) == (
        unlinks[0].parent,
        unlinks[0].name,
    )


def build(inodes: Inodes, rows: Iterable[Row], uploads: dict[int, Upload]) -> Batch:
    """The operations for ``rows``. ``uploads`` by row id; a WRITE row without one has nothing to send."""
    batch = Batch([], [], {})
    created: set[int] = set()
    for row in rows:
        batch.rows.append(row)
        inode = inodes.get(row.ino)
        if inode is None:
            continue
        upload = uploads.get(row.id)
        if row.op == Op.WRITE:
            if upload is not None:
                batch.uploads[len(batch.ops)] = upload
                batch.ops.append(_write(inode, upload))
        elif row.op == Op.ATTR:
            if (inode.nlink or row.mask & ACCESS) and (inode.is_dir or row.ino not in created):
                batch.ops.append(_attributes(inode, Field(row.mask)))
        else:
            if row.op == Op.CREATE:
                created.add(row.ino)
            batch.ops.append(_naming(inodes, row, inode))
    return batch


def _naming(inodes: Inodes, row: Row, inode: Inode) -> wire.Op:
    """The operation for a row that concerns names."""

    def file_id(ino: int) -> bytes:
        found = inodes.get(ino) if ino else None
        return found.file_id if found else b""

    parent, other = file_id(row.parent), file_id(row.ino2)
    if row.op == Op.CREATE:
        return wire.Create(parent, row.name, _file(inode), row.time)
    if row.op == Op.LINK:
        return wire.Link(parent, row.name, inode.file_id, row.time)
    if row.op == Op.UNLINK:
        return wire.Unlink(parent, row.name, inode.file_id, row.time)
    new_parent = file_id(row.parent2)
    if row.op == Op.RENAME:
        return wire.Rename(parent, row.name, inode.file_id, new_parent, row.name2, row.time, other)
    return wire.Exchange(parent, row.name, inode.file_id, new_parent, row.name2, other, row.time)


def _file(inode: Inode) -> wire.File:
    return wire.File(
        id=inode.file_id,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        rdev=inode.rdev,
        atime_ns=inode.atime,
        mtime_ns=inode.mtime,
        ctime_ns=inode.ctime,
        size=len(inode.target) if stat.S_ISLNK(inode.mode) else 0,
        target=inode.target,
        xattrs=inode.xattr_map(),
    )


def _attributes(inode: Inode, mask: Field) -> wire.SetAttr:
    return wire.SetAttr(
        inode.file_id,
        inode.ctime,
        mode=inode.mode if mask & Field.MODE else None,
        uid=inode.uid if mask & Field.UID else None,
        gid=inode.gid if mask & Field.GID else None,
        atime_ns=inode.atime if mask & Field.ATIME else None,
        mtime_ns=inode.mtime if mask & Field.MTIME else None,
        xattrs=inode.xattr_map() if mask & Field.XATTRS else None,
    )


def _write(inode: Inode, upload: Upload) -> wire.Write:
    return wire.Write(
        inode.file_id,
        upload.version,
        upload.snapshot.layers.size,
        upload.hash,
        upload.manifest,
        inode.mtime,
        inode.ctime,
        base=upload.snapshot.version,
        session=upload.snapshot.session,
    )
