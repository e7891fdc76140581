"""Staging: the content of files that are being written, until the nodes have it.

Written bytes go to a slab at once; the extents that say so are in the database before the write
returns, so a killed daemon loses nothing that was written.

**Generations.** To be sent, content must stand still while the file may be written further. *Sealing*
ends a generation: bytes of an older generation are never written over, new ones go elsewhere. The
:class:`Snapshot` of what was sealed is what the uploader reads. When its commit is acknowledged, its
extents give way to the slices of the new version, and the bytes become cache.

**Ranges.** Bytes go to ranges that :mod:`mountfs.local.space` gives. Whatever stops referring to a
range, an extent or a snapshot, passes it to ``Space.free``, which knows who else does.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator

import msgspec

from mountfs.local.cache import Cache
from mountfs.local.database import Database
from mountfs.local.extents import Extent, ExtentMap
from mountfs.local.inodes import Inode, Inodes
from mountfs.local.journal import Journal, Op, Sent
from mountfs.local.layers import Layers
from mountfs.local.slabs import Slabs
from mountfs.local.space import LOST, Range
from nodeserver.content.manifest import pack_slices, unpack_slices
from nodeserver.protocol.wire import Slice

SMALL = 128 << 10
"""Files with less staged than this many bytes share a slab."""


@dataclasses.dataclass
class Snapshot:
    """Content that stands still, on its way to the nodes."""

    ino: int
    gen: int
    """Newest generation in it."""
    layers: Layers
    version: bytes
    """The version underneath."""
    session: bytes
    """Versions of one session replace each other."""
    open: bool
    """The file is still being written: more will follow."""


class Content:
    """The content of a file in use: open, or on its way."""

    def __init__(self, ino: int, bucket: int, layers: Layers, version: bytes, session: bytes, gen: int) -> None:
        self.ino = ino
        self.bucket = bucket
        self.layers = layers
        self.version = version
        self.session = session
        self.users = 0
        """Open handles, and uploads under way."""
        self.writers = 0
        """Open handles that may write."""
        self.gen = max(gen, 1 + max((extent.gen for extent in layers.overlay), default=0))
        self.private = 0
        """The slab of this file alone, 0 for none."""
        self.early = 0
        """Uploads before the close go on from this offset; below it there is nothing for them."""
        self.lowest_write = 0
        """Lowest offset changed since an early upload set this to the end of the file."""
        self.holes = 0
        """Bytes of it known to take no room, perhaps some too many until it is sealed."""
        self.dirty = False
        """Changed since the last seal."""
        self.sealed: Snapshot | None = None
        """What was sealed last and nobody sends yet, kept once the file changes again."""
        self.sending: list[Snapshot] = []
        """Snapshots on their way, oldest first."""

    @property
    def unsent(self) -> bool:
        """Whether any of it waits for the nodes or is on its way."""
        return self.dirty or self.sealed is not None or bool(self.sending)

    def snapshots(self) -> list[Snapshot]:
        """All that stand still."""
        return self.sending if self.sealed is None else [*self.sending, self.sealed]


class Staging:
    """Contents in use, by inode."""

    def __init__(self, db: Database, inodes: Inodes, journal: Journal, slabs: Slabs, cache: Cache) -> None:
        self._db = db
        self._inodes = inodes
        self._journal = journal
        self._slabs = slabs
        self._cache = cache
        self._space = cache.space
        self._space.holders.append(self._held)
        self.contents: dict[int, Content] = {}
        db.after_rollback.append(self._reload_overlays)
        stored = [msgspec.msgpack.decode(packed, type=Sent) for (packed,) in db.execute("SELECT rows FROM batch")]
        self._first_gen = 1 + max((gen for sent in stored for _, _, gen in sent.writes), default=0)
        """Newer than what a commit has that the last daemon had under way."""
        self._lost = {row[0] for row in db.execute("SELECT DISTINCT ino FROM staged WHERE slab < 0")}
        self._sessions: dict[int, bytes] = {}
        """Sessions that have sent a version and may send another."""

    def _held(self) -> Iterator[Range]:
        """What snapshots refer to."""
        for content in self.contents.values():
            for snapshot in content.snapshots():
                yield from _ranges(snapshot.layers.overlay)

    # Life of a content

    def begin(self, inode: Inode, *, write: bool) -> Content:
        """The content of a file that was just created."""
        layers = Layers([], ExtentMap(), 0)
        content = Content(inode.ino, inode.bucket, layers, b"", os.urandom(16), self._first_gen)
        content.users, content.writers = 1, int(write)
        self.contents[inode.ino] = content
        return content

    def acquire(self, ino: int, *, write: bool = False) -> Content | None:
        """The content of a file, to be released again; None when its slices have to be asked for."""
        content = self.contents.get(ino)
        if content is None:
            content = self._load(ino)
            if content is None:
                return None
            self.contents[ino] = content
        elif not content.unsent and not content.layers.overlay:
            self._reload(content)
        if write:
            if not content.writers:
                if content.sealed is None and (Op.WRITE, ino) in self._journal.open:
                    content.sealed = self._freeze(content)
                content.session = os.urandom(16)
            content.writers += 1
        content.users += 1
        return content

    def release(self, content: Content, *, write: bool = False) -> None:
        """The inverse of :meth:`acquire`; the last writer's release seals."""
        content.users -= 1
        if write:
            content.writers -= 1
            if not content.writers:
                self.seal(content)
        if not content.users:
            del self.contents[content.ino]
            self._seal_as(content, None)

    def _seal_as(self, content: Content, snapshot: Snapshot | None) -> None:
        """What is sealed now, if anything. Nobody will send what was before."""
        before, content.sealed = content.sealed, snapshot
        if before is not None:
            self._space.free(_ranges(before.layers.overlay))

    def _load(self, ino: int) -> Content | None:
        inode = self._inodes.get(ino)
        packed = self._inodes.content(ino)
        if inode is None or packed is None:
            return None
        layers = Layers(unpack_slices(packed), self._overlay(ino), inode.size)
        session = self._sessions.get(ino) or os.urandom(16)
        content = Content(ino, inode.bucket, layers, inode.version, session, self._first_gen)
        content.holes = inode.holes
        return content

    def _overlay(self, ino: int) -> ExtentMap:
        rows = self._db.execute(
            "SELECT offset, length, slab, position, gen, chunk FROM staged WHERE ino = ? ORDER BY offset", (ino,)
        )
        return ExtentMap(Extent._make(row) for row in rows)

    def _reload_overlays(self) -> None:
        """After a rollback: what was changed in memory is not in the database."""
        for content in self.contents.values():
            inode, packed = self._inodes.get(content.ino), self._inodes.content(content.ino)
            if inode is not None and packed is not None and inode.version == content.version:
                content.layers.overlay = self._overlay(content.ino)
                content.layers.rebase(unpack_slices(packed))
                content.layers.size, content.holes = inode.size, inode.holes

    def follow(self, content: Content) -> bool:
        """Follow the file to the version that its row has, if nobody may write; whether it was another one.

        Who has it open for writing writes to the version that he saw: else he would write over what others did.
        """
        before = content.version
        if not content.writers and not content.unsent and not content.layers.overlay:
            self._reload(content)
        return content.version != before

    def _reload(self, content: Content) -> None:
        """Follow the file to another version, where nothing here was written over the old one."""
        inode, packed = self._inodes.get(content.ino), self._inodes.content(content.ino)
        if inode is not None and packed is not None and inode.version != content.version:
            content.layers.rebase(unpack_slices(packed))
            content.layers.size = inode.size
            content.version = inode.version

    # Changes

    def write(self, content: Content, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``; there is room for it. Raises OSError.

        Bytes written since the last seal are written over where they are: no snapshot and no chunk has
        them. All others go to a range that nobody had before.
        """
        end = offset + len(data)
        content.lowest_write = min(content.lowest_write, offset)
        view = memoryview(data)
        ours, gaps = self._split(content, offset, end)
        fresh: list[Extent] = []
        try:
            for start, stop in gaps:
                fresh.append(self._place(content, start, view[start - offset : stop - offset]))
            for part in ours:
                self._slabs.write(part.slab, part.position, view[part.offset - offset : part.end - offset])
            if not fresh:
                self._touch(content)
                return
            with self._db.transaction():
                freed = self._extend(content, offset)
                for extent in fresh:
                    freed += self._lay(content, extent)
                self._note(content, max(content.layers.size, end))
        except BaseException:
            self._space.free(_ranges(fresh))
            raise
        self._space.free(_ranges(freed))

    def _split(self, content: Content, start: int, end: int) -> tuple[list[Extent], list[tuple[int, int]]]:
        """What of [start, end) is to be written over where it is, and the ranges that get a place of their own.

        Bytes of one write stay together, so that a chunk of them can become cache: several pieces are written only
        where they come to lie side by side.
        """
        whole = [(start, end)]
        ours: list[Extent] = []
        gaps: list[tuple[int, int]] = []
        for extent in content.layers.overlay.overlapping(start, end):
            if extent.slab > 0 and extent.gen == content.gen:
                part = extent.part(max(start, extent.offset), min(end, extent.end))
                if start < part.offset:
                    gaps.append((start, part.offset))
                ours.append(part)
                start = part.end
        if start < end:
            gaps.append((start, end))
        beside = all(part.slab == content.private and part.position == part.offset for part in ours) and all(
            self._slabs.claimable(content.private, begin, stop - begin) for begin, stop in gaps
        )
        return (ours, gaps) if beside or (len(ours) == 1 and not gaps) else ([], whole)

    def _place(self, content: Content, offset: int, data: memoryview) -> Extent:
        """Store the bytes in a range of their own."""
        length = len(data)
        slab, position = content.private, offset
        if not slab or not self._slabs.claim(slab, offset, length):
            if (slab and length <= SMALL) or self._staged_bytes(content) + length <= SMALL:
                slab, position = self._slabs.advance(length)
            else:
                slab = content.private = self._slabs.create_private()
                self._slabs.claim(slab, offset, length)
        try:
            self._slabs.write(slab, position, data)
        except BaseException:
            self._space.free([(slab, position, length)])
            raise
        return Extent(offset, length, slab, position, content.gen)

    def _staged_bytes(self, content: Content) -> int:
        return sum(extent.length for extent in content.layers.overlay if extent.slab)

    def truncate(self, content: Content, size: int) -> None:
        """Cut the file off, or extend it with zeros."""
        freed: list[Extent] = []
        content.lowest_write = min(content.lowest_write, size)
        content.early = min(content.early, size)
        with self._db.transaction():
            if size > content.layers.size:
                freed = self._extend(content, size)
            else:
                gone, fresh = content.layers.overlay.cut(size)
                self._db.execute("DELETE FROM staged WHERE ino = ? AND offset >= ?", (content.ino, size))
                self._store(content, fresh)
                freed = [extent.part(max(size, extent.offset), extent.end) for extent in gone]
                if not size and not content.snapshots():
                    content.layers.rebase([])
                    self._inodes.update(content.ino, content=pack_slices([]))
            self._note(content, size)
        self._space.free(_ranges(freed))

    def _extend(self, content: Content, offset: int) -> list[Extent]:
        """Zeros from the present end to ``offset``: laid down only where something underneath would show."""
        size = content.layers.size
        content.holes += max(0, offset - size)
        below = max(content.layers.base_size, *(snapshot.layers.size for snapshot in content.snapshots()), 0)
        if offset <= size or below <= size:
            return []
        return self._lay(content, Extent(size, offset - size, 0, 0, content.gen))

    def _lay(self, content: Content, extent: Extent) -> list[Extent]:
        """Put an extent on top; returns the parts it covers."""
        gone, fresh = content.layers.overlay.put(extent)
        kept = {piece.offset for piece in fresh}
        for old in gone:
            if old.offset not in kept:
                self._db.execute("DELETE FROM staged WHERE ino = ? AND offset = ?", (content.ino, old.offset))
        self._store(content, fresh)
        inside = ((old, max(old.offset, extent.offset), min(old.end, extent.end)) for old in gone)
        return [old.part(start, end) for old, start, end in inside if start < end]

    def _store(self, content: Content, extents: list[Extent]) -> None:
        for extent in extents:
            self._db.execute("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?, ?, ?)", (content.ino, *extent))

    def _note(self, content: Content, size: int) -> None:
        """The file changed and now has ``size`` bytes: into the database, inside the caller's transaction."""
        if size != content.layers.size:
            content.layers.size = size
            content.holes = min(content.holes, size)
            self._inodes.resize(content.ino, size, content.holes)
        self._journal.add_write(content.bucket, content.ino, time.time_ns())
        content.dirty = True
        self._touch(content)

    def _touch(self, content: Content) -> None:
        now = time.time_ns()
        self._inodes.hold_times(content.ino, now, now)

    def replace(self, content: Content, extent: Extent) -> None:
        """A chunk the nodes have holds the bytes of this range: let it stand for them."""
        source = content.layers.plan(extent.offset, extent.end)
        first = source[0]
        with self._db.transaction():
            if len(source) == 1 and first.slab > 0:
                self._cache.add(extent.chunk, first.slab, first.position, extent.length)
            freed = self._lay(content, extent)
        self._space.free(_ranges(freed))

    # Sealing and sending

    def seal(self, content: Content) -> None:
        """End a generation: what has been written so far is to be sent."""
        if content.dirty:
            # What the last writer leaves is frozen when it is sent: nothing of it changes until then.
            self._seal_as(content, self._freeze(content) if content.writers else None)
            self._journal.seal(content.ino)
            content.dirty = False
            if content.holes:
                self._count_holes(content)  # can fail; what is sealed goes up all the same

    def _count_holes(self, content: Content) -> None:
        """Some of what was a hole may have been written."""
        layers = content.layers
        content.holes = sum(part.length for part in layers.plan(0, layers.size) if not (part.slab or part.chunk))
        with self._db.transaction():
            self._inodes.update(content.ino, holes=content.holes)

    def _freeze(self, content: Content) -> Snapshot:
        is_open = content.writers > 0
        if is_open:
            self._sessions[content.ino] = content.session
        layers = content.layers.copy()
        snapshot = Snapshot(content.ino, content.gen, layers, content.version, content.session, is_open)
        content.gen += 1
        return snapshot

    def send(self, content: Content, gen: int | None = None) -> Snapshot:
        """What was sealed last, for the uploader, who took its row and holds the content until it is settled.

        ``gen``: what an earlier daemon had sealed up to this generation.
        """
        snapshot = content.sealed or self._freeze(content)
        content.sealed = None
        content.sending.append(snapshot)
        if content.dirty:
            # What was written since it was sealed needs a row of its own.
            with self._db.transaction():
                self._journal.add_write(content.bucket, content.ino, time.time_ns())
        if gen is not None:
            snapshot.gen = gen
            snapshot.layers.overlay = ExtentMap(extent for extent in snapshot.layers.overlay if extent.gen <= gen)
        return snapshot

    def give_back(self, content: Content, snapshot: Snapshot) -> None:
        """The snapshot was not sent after all; a newer one takes its place if there is one.

        Without writers that is the content as it is: the last of them may have left more than was to be sent.
        """
        if snapshot in content.sending:
            content.sending.remove(snapshot)
            if content.sealed is None and content.writers:
                content.sealed = snapshot
            else:
                self._space.free(_ranges(snapshot.layers.overlay))

    def committed(self, sent: Snapshot, slices: list[Slice], version: bytes) -> None:
        """The nodes have ``sent`` as ``version``: its slices replace its extents, the bytes become cache.

        Inside the caller's transaction; :meth:`settle` follows.
        """
        self._db.execute("DELETE FROM staged WHERE ino = ? AND gen <= ?", (sent.ino, sent.gen))
        self._inodes.update(sent.ino, content=pack_slices(slices), version=version)
        offset = 0
        for piece in slices:
            if piece.chunk and not piece.offset:
                source = sent.layers.plan(offset, offset + piece.length)
                if len(source) == 1 and source[0].slab > 0:
                    self._cache.add(piece.chunk, source[0].slab, source[0].position, piece.length)
            offset += piece.length

    def settle(self, sent: Snapshot, slices: list[Slice], version: bytes) -> None:
        """After the transaction of :meth:`committed`: the contents in use follow, and space comes free."""
        content = self.contents[sent.ino]
        content.sending.remove(sent)
        for layers in [content.layers, *(other.layers for other in content.snapshots())]:
            layers.overlay = ExtentMap(extent for extent in layers.overlay if extent.gen > sent.gen)
            layers.rebase(slices)
        for other in content.snapshots():
            other.version = version
        content.version = version
        self._space.free(_ranges(sent.layers.overlay))
        if not sent.open and self._sessions.get(sent.ino) == sent.session:
            del self._sessions[sent.ino]

    def rebased(self, ino: int, version: bytes) -> None:
        """The content of a file, as it is, counts as made from ``version``; inside the caller's transaction.

        Only while nothing of it is being sent.
        """
        self._inodes.update(ino, version=version)
        content = self.contents.get(ino)
        if content is not None:
            content.version = version
            for snapshot in content.snapshots():
                snapshot.version = version

    def forget(self, ino: int) -> None:
        """Nothing needs the staged bytes of a file any more."""
        ranges = self._staged_ranges(ino)
        with self._db.transaction():
            self._db.execute("DELETE FROM staged WHERE ino = ?", (ino,))
            self._inodes.delete(ino)
        self._space.free(ranges)

    def _staged_ranges(self, ino: int) -> list[Range]:
        query = "SELECT slab, position, length FROM staged WHERE ino = ? AND slab > 0"
        return [(slab, position, length) for slab, position, length in self._db.execute(query, (ino,))]

    def faults(self) -> Iterator[str]:
        """What must never be, in words: see :mod:`mountfs.local.checking`."""
        for content in self.contents.values():
            if list(content.layers.overlay) != list(self._overlay(content.ino)):
                yield f"inode {content.ino}: the extents in memory are not those of the database"
            for snapshot in content.snapshots():
                newest = max((extent.gen for extent in snapshot.layers.overlay), default=0)
                if max(newest, snapshot.gen) >= content.gen:
                    yield f"inode {content.ino}: generation {content.gen} is written, and in a snapshot"

    # What is gone

    def find_lost(self, content: Content) -> bool:
        """Look whether the bytes of a content and its snapshots are still there; True when some are gone."""
        gone = self._missing(content.layers)
        if gone:
            with self._db.transaction():
                for extent in gone:
                    self._lay(content, extent._replace(slab=LOST))
            self._lost.add(content.ino)
        return bool(gone) or any(self._missing(snapshot.layers) for snapshot in content.snapshots())

    def _missing(self, layers: Layers) -> list[Extent]:
        return [e for e in layers.overlay if e.slab > 0 and not self._slabs.holds(e.slab, e.position + e.length)]

    def has_lost(self, ino: int) -> bool:
        """Whether bytes of a file are gone that the nodes never had. Written anew, or cut off, they are not missed."""
        if (
            ino in self._lost
            and not self._db.execute("SELECT EXISTS (SELECT 1 FROM staged WHERE ino = ? AND slab < 0)", (ino,)).get
        ):
            self._lost.discard(ino)
        return ino in self._lost

    def lost(self) -> list[int]:
        """Files of which bytes are gone."""
        return [ino for ino in sorted(self._lost) if self.has_lost(ino)]

    def supersede(self, ino: int) -> None:
        """The server has another version of a file of which bytes are gone here: that is what it is from now on."""
        if self.has_lost(ino):
            with self._db.transaction():
                self._space.free(self._staged_ranges(ino))
                self._db.execute("DELETE FROM staged WHERE ino = ?", (ino,))
            if ino in self.contents:
                self.contents[ino].layers.overlay = ExtentMap()

    def set_aside(self, content: Content) -> None:
        """Some of it is gone: it cannot be sent, and holds up nothing."""
        self._seal_as(content, None)

    def abandon(self, ino: int) -> None:
        """Let the server's content take the place of what was written here to a file, which nobody uses."""
        ranges = self._staged_ranges(ino)
        with self._db.transaction():
            self._db.execute("DELETE FROM staged WHERE ino = ?", (ino,))
            self._inodes.update(ino, content=None, stale=1)
        self._space.free(ranges)

    def staged_bytes(self) -> int:
        """Bytes that the nodes do not have yet."""
        return int(self._db.execute("SELECT ifnull(sum(length), 0) FROM staged WHERE slab > 0").get)


def _ranges(extents: Iterable[Extent]) -> Iterator[Range]:
    """Where those of them that are in a slab lie."""
    return ((extent.slab, extent.position, extent.length) for extent in extents if extent.slab > 0)
