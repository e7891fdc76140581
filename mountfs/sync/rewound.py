"""The server came back from an older state: what exists here and not there is put back.

A restored backup has forgotten commits. Who heard of one notices, because the log no longer holds it (``Commit.known``,
``changes?known=``). Then everything that this mount knows is held against the server: a file that it lacks is created
anew, under its old id; a newer content becomes the newest version again; what was deleted or renamed here after the
backup is as the backup has it. All rows go into the journal in one transaction, so a crash before it begins anew and a
crash after it goes on. The tasks that send must rest meanwhile: ``committer`` runs this between two batches.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable

import msgspec
import trio

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import UNKNOWN, Inode
from mountfs.local.journal import Op
from mountfs.sync.context import Context
from mountfs.sync.downloads import Downloads
from nodeserver.client import Refused
from nodeserver.content.codec import encode
from nodeserver.content.manifest import unpack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.errors import Code

log = logging.getLogger(__name__)

LOST_NAMED = 1000
"""Names of lost files that are kept."""


class Rewound(msgspec.Struct):
    """What came of it. Stored: only append fields."""

    time: float
    """Seconds since the epoch."""
    put_back: int
    lost: list[str]
    """Paths below the mount point whose content is neither here nor there, ``LOST_NAMED`` at most."""
    lost_count: int

    def text(self) -> str:
        """For people."""
        text = f"the server came back from an older state; {self.put_back} files or newer contents were put back"
        if self.lost_count:
            text += (
                f", {self.lost_count} are lost, as their content is neither here nor there: {', '.join(self.lost[:5])}"
            )
        return text + (" …" if self.lost_count > 5 else "")


def noticed(context: Context) -> list[tuple[str, Rewound]]:
    """Buckets whose server came back from an older state, and what came of it the last time."""
    rows = context.db.execute("SELECT name, rewound FROM bucket WHERE rewound IS NOT NULL ORDER BY name")
    return [(name, msgspec.msgpack.decode(packed, type=Rewound)) for name, packed in rows]


@dataclasses.dataclass
class _Return:
    """A file to put back."""

    inode: Inode
    version: bytes
    """What its content is sent as made from: the server's head, or what conflicts with it; empty for a new file."""
    names: list[tuple[int, bytes]]
    """Where to create it, and further links; none for a file that the server has."""
    content: bool
    """Whether its content has to be sent."""


class PutBack:
    """One comparison of a bucket with its server."""

    def __init__(self, context: Context, downloads: Downloads, bucket: BucketState) -> None:
        self._context = context
        self._downloads = downloads
        self._bucket = bucket
        self._returns: dict[int, _Return] = {}
        self._lost: dict[int, str] = {}
        """Paths by inode."""
        self._elsewhere: list[tuple[int, bytes]] = []
        """Names that stand for something else on the server, or nothing."""
        self._stored: set[bytes] = set()
        """Chunks that the nodes have."""

    async def run(self) -> None:
        """Hold the bucket against the server, and journal what it lacks. Raises ClientError, OSError."""
        context, bucket = self._context, self._bucket
        info = await context.client.bucket(bucket.name)
        changes = await context.client.changes(bucket.name, info.seq)
        await self._secure_sent_early()
        directories, seen = [bucket.root], {bucket.root}
        while directories:
            for inode in await self._compare(directories.pop()):
                if inode.is_dir and inode.ino not in seen:
                    seen.add(inode.ino)
                    directories.append(inode.ino)
        self._journal(info.seq, changes)

    # Looking

    async def _compare(self, directory: int) -> list[Inode]:
        """Look at the names of a directory; returns what they stand for here."""
        context = self._context
        parent = context.inodes.get(directory)
        if parent is None:
            return []
        there = await self._listing(parent)
        found: list[Inode] = []
        files: list[tuple[Inode, wire.File]] = []
        for name, ino in context.inodes.targets(directory):
            inode = context.inodes.get(ino) if ino else None
            if inode is None:
                continue
            found.append(inode)
            if (Op.CREATE, ino) in context.journal.open:
                continue
            if (returning := self._returns.get(ino)) is not None and returning.names:
                returning.names.append((directory, name))  # a hard link
                continue
            file = there.get(name)
            if file is None or file.id != inode.file_id:
                file = await self._file(inode.file_id)
                if file is None:
                    place = self._renamed_from(ino) or (directory, name)
                    self._returns[ino] = _Return(inode, b"", [place], _has_content(inode))
                    continue
                self._elsewhere.append((directory, name))
            files.append((inode, file))
        for inode, file in files:
            if await self._forgotten(inode, file):
                # It goes over an older content, and beside a newer one as a conflict copy, because the server does
                # not know its base. Ids of versions sort by their times.
                base = min(inode.version, file.version)
                self._returns.setdefault(inode.ino, _Return(inode, base, [], True))
        await self._secure(found)
        return found

    def _renamed_from(self, ino: int) -> tuple[int, bytes] | None:
        """Where a file was that the journal says is to be renamed; None when it is not."""
        if ino not in self._context.journal.inos:
            return None
        rows = self._context.journal.of_ino(ino)
        return next(((row.parent, row.name) for row in rows if row.op == Op.RENAME and row.ino == ino), None)

    async def _forgotten(self, inode: Inode, file: wire.File) -> bool:
        """Whether the server has forgotten the content that is known here."""
        if not inode.is_file or inode.version in (file.version, b""):
            return False
        try:
            await self._context.client.version(self._bucket.name, inode.version)
        except Refused as refusal:
            if refusal.code is Code.NO_FILE:
                return True
            raise
        return False

    async def _listing(self, directory: Inode) -> dict[bytes, wire.File]:
        """What the server has in a directory; nothing when it has no such directory."""
        found: dict[bytes, wire.File] = {}
        after = b""
        while True:
            try:
                page = await self._context.client.entries(self._bucket.name, directory.file_id, after)
            except Refused as refusal:
                if refusal.code is Code.NO_FILE:
                    return {}
                raise
            found.update((entry.name, entry.file) for entry in page.entries)
            if not page.more:
                return found
            after = page.entries[-1].name

    async def _file(self, file_id: bytes) -> wire.File | None:
        """What the server says of a file; None when it has none of that id, or only in its history."""
        try:
            file = (await self._context.client.file(self._bucket.name, file_id)).file
        except Refused as refusal:
            if refusal.code is Code.NO_FILE:
                return None
            raise
        return file if file is not None and file.nlink else None

    # Content

    async def _secure(self, inodes: Iterable[Inode]) -> None:
        """Make sure that the nodes have the chunks of what is put back; what has a chunk that is nowhere is lost."""
        wanted: dict[int, list[bytes]] = {}
        for inode in inodes:
            returning = self._returns.get(inode.ino)
            if returning is None or not returning.content or inode.ino in self._lost:
                continue
            packed = self._context.inodes.content(inode.ino)
            if packed is None:
                self._lose(returning)
                continue
            wanted[inode.ino] = [piece.chunk for piece in unpack_slices(packed) if piece.chunk]
        asked = list({chunk for chunks in wanted.values() for chunk in chunks} - self._stored)
        missing = set(await self._context.nodes.missing(self._bucket, asked)) if asked else set()
        nowhere = {chunk for chunk in missing if not await self._send(chunk)}
        self._stored |= set(asked) - nowhere
        for ino, chunks in wanted.items():
            if not nowhere.isdisjoint(chunks):
                self._lose(self._returns[ino])

    async def _secure_sent_early(self) -> None:
        """Chunks that the nodes were given before any commit referred to them may be forgotten too."""
        query = "SELECT DISTINCT chunk FROM staged JOIN inode USING (ino) WHERE bucket = ? AND length(chunk)"
        asked = [row[0] for row in self._context.db.execute(query, (self._bucket.id,))]
        for chunk in await self._context.nodes.missing(self._bucket, asked) if asked else ():
            await self._send(chunk)

    async def _send(self, chunk: bytes) -> bool:
        """Store a chunk from the cache; False when it is not there, or damaged."""
        if self._downloads.lacks(chunk):
            return False
        try:
            plaintext = await self._downloads.chunk(self._bucket, chunk)
        except OSError as error:
            log.warning("chunk %s cannot be put back: %s", chunk.hex(), error)
            return False
        stored = await trio.to_thread.run_sync(encode, plaintext)
        await self._context.nodes.put(self._bucket, [(chunk, stored)])
        return True

    def _lose(self, returning: _Return) -> None:
        self._lost[returning.inode.ino] = self._context.inodes.path(returning.inode.ino)

    # Journalling

    def _journal(self, seq: int, changes: wire.Changes) -> None:
        """Everything at once: rows for what is put back, and the bucket as the server has it."""
        context, bucket = self._context, self._bucket
        now = time.time_ns()
        returns = [self._current(it) for ino, it in self._returns.items() if ino not in self._lost]
        result = Rewound(now / 1e9, len(returns), list(self._lost.values())[:LOST_NAMED], len(self._lost))
        with context.db.transaction():
            self._add_rows(returns, now)
            for parent, name in self._elsewhere:
                if (parent, name) not in context.journal.names:
                    context.inodes.enter(parent, name, UNKNOWN)
            self._forget_lost()
            context.inodes.distrust(bucket.id, besides={it.inode.ino for it in returns})
            bucket.known = bucket.known_ns = 0
            context.buckets.advance(bucket, seq, changes.usage, changes.time_ns if changes.seq == seq else 0)
            context.db.execute(
                "UPDATE bucket SET rewound = ? WHERE id = ?", (msgspec.msgpack.encode(result), bucket.id)
            )
        context.report(0, f"bucket {bucket.name}: {result.text()}")
        context.untold.append({"text": f"bucket {bucket.name}: {result.text()}", "lost": len(self._lost)})
        for path in result.lost:
            log.error("%s: lost: its content is neither here nor on the server", path)

    def _add_rows(self, returns: list[_Return], now: int) -> None:
        """Journal rows: names before all rows that are there, which may concern them; content after them."""
        context, bucket = self._context, self._bucket
        creates = [(it.inode.ino, *name) for it in returns for name in it.names[:1]]
        creates += [(it.inode.ino, *name) for it in returns for name in it.names[1:]]  # their directories exist by then
        created: set[int] = set()
        for row_id, (ino, parent, name) in enumerate(creates, context.journal.first() - len(creates)):
            op = Op.LINK if ino in created else Op.CREATE
            context.journal.add(bucket.id, op, ino, now, parent=parent, name=name, row_id=row_id)
            created.add(ino)
        for it in returns:
            if it.content:
                context.staging.rebased(it.inode.ino, it.version)
                if (Op.WRITE, it.inode.ino) not in context.journal.open:
                    context.journal.add(bucket.id, Op.WRITE, it.inode.ino, now)

    def _forget_lost(self) -> None:
        inodes = self._context.inodes
        for ino in self._lost:
            names = self._returns[ino].names
            for parent, name in names:
                inodes.leave(parent, name)
            if names:
                inodes.update(ino, nlink=0)

    def _current(self, returning: _Return) -> _Return:
        """As it is now: names may have changed while the server was asked."""
        inodes, ino = self._context.inodes, returning.inode.ino
        renamed = self._renamed_from(ino)
        names = [it for it in returning.names if it == renamed or inodes.target(*it) == ino]
        return dataclasses.replace(returning, names=names)


def _has_content(inode: Inode) -> bool:
    return inode.is_file and inode.size > 0
