"""What the operations of a commit do to a tree. No SQL, no clock, no I/O but what ``Tree`` loads.

An operation that no longer fits is resolved as its docstring in ``protocol.wire`` says, and its ``Result`` tells.
"""

from __future__ import annotations

import dataclasses
import stat
import time
from collections.abc import Callable, Iterable

import msgspec

from nodeserver.metadata.checks import Invalid, TooLarge
from nodeserver.metadata.conflicts import free_place, printable
from nodeserver.metadata.tree import Inode, Place, Tree, Version
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    Commit,
    Create,
    Exchange,
    FileId,
    Link,
    Op,
    Rename,
    Result,
    SetAttr,
    Unlink,
    VersionId,
    Write,
)

OK = Result()
DROPPED = Result("dropped")
MOST_BYTES = (1 << 63) - 1
"""What a bucket can count, and so its quota when it has none."""

QUOTA = Result("quota")

SECONDS = 30.0
"""That the operations of a commit may take: nobody else writes to the bucket meanwhile."""

RECOVERED = b"recovered"
"""The name that content gets whose file never had one."""


def apply(tree: Tree, commit: Commit, *, time_ns: int, quota: int | None = None) -> tuple[list[Op], list[Result]]:
    """Apply the operations of a commit in order. ``time_ns`` is the server's, ``quota`` in bytes.

    Returns them with what became of them, those on directories that others became as if on these. Raises ``Invalid``
    for versions made from each other, and ``TooLarge`` after ``SECONDS``, or when the bucket would have more bytes than
    can be counted.
    """
    ids: list[FileId] = []
    places: list[Place] = []
    versions: list[VersionId] = []
    numbered: list[FileId] = []
    for op in commit.ops:
        _collect(op, ids, places, versions, numbered)
    tree.load(ids, places)
    tree.load_places_left([op.file for op in commit.ops if type(op) is Unlink])
    follow = [inode.follows for id_ in numbered if (inode := tree.inode(id_)) and inode.follows]
    tree.load(follow, [])
    heads = (inode.version for id_ in (*numbered, *follow) if (inode := tree.inode(id_)))
    tree.load_versions([*versions, *heads])
    return _Batch(tree, printable(commit.client_name, commit.client), time_ns, quota).run(commit.ops)


def _collect(op: Op, ids: list[FileId], places: list[Place], versions: list[VersionId], numbered: list[FileId]) -> None:
    """Note what an operation will look at, so that it is loaded in bulk; ``numbered`` are files with their heads."""
    match op:
        case Create():
            ids += (op.file.id, op.parent)
            places.append((op.parent, op.name))
            if op.was_in:
                ids.append(op.was_in)
                places.append((op.was_in, op.name))
        case Link() | Unlink():
            ids += (op.file, op.parent)
            places.append((op.parent, op.name))
        case Rename():
            ids += (op.file, op.parent, op.new_parent)
            if op.replaces:
                ids.append(op.replaces)
                numbered += (op.file, op.replaces)
            places += ((op.parent, op.name), (op.new_parent, op.new_name))
        case Exchange():
            ids += (op.file, op.parent, op.other_file, op.other_parent)
            numbered += (op.file, op.other_file)
            places += ((op.parent, op.name), (op.other_parent, op.other_name))
        case SetAttr():
            ids.append(op.file)
        case Write():
            ids.append(op.file)
            numbered.append(op.file)
            versions += (op.version, op.base)


class _Batch:
    """One commit at work."""

    def __init__(self, tree: Tree, client: str, time_ns: int, quota: int | None) -> None:
        self.tree = tree
        self.client = client
        self.time_ns = time_ns
        self.quota = quota if quota is not None else MOST_BYTES
        self.instead: dict[VersionId, VersionId] = {}
        """Versions of this batch that were not made, and what takes their place as a base. Never a cycle: what takes
        the place of another was not replaced itself, and is another."""

    def run(self, ops: Iterable[Op]) -> tuple[list[Op], list[Result]]:
        handlers: dict[type[Op], Callable[..., Result]] = {
            Create: self.create,
            Link: self.link,
            Unlink: self.unlink,
            Rename: self.rename,
            Exchange: self.exchange,
            SetAttr: self.setattr,
            Write: self.write,
        }
        until = time.monotonic() + SECONDS
        done: list[Op] = []
        results: list[Result] = []
        for op in ops:
            if time.monotonic() > until:
                raise TooLarge(f"the operations of the commit take more than {SECONDS:g} s: send fewer at once")
            done.append(self._redirected(op))
            results.append(handlers[type(op)](done[-1]))
        if self.tree.used_bytes > MOST_BYTES:
            raise TooLarge("the bucket would have more bytes than can be counted")
        return done, results

    def _redirected(self, op: Op) -> Op:
        """The operation, on directories that others became instead of these. A deletion means what it names."""
        fields: tuple[str, ...] = ("parent", "new_parent", "other_parent")
        if isinstance(op, Rename | Exchange):
            fields += ("file", "other_file")
        named = {field: id_ for field in fields if (id_ := getattr(op, field, None))}
        changes = {field: other for field, id_ in named.items() if (other := self.tree.merged_into(id_)) != id_}
        return msgspec.structs.replace(op, **changes) if changes else op

    def create(self, op: Create) -> Result:
        tree, new = self.tree, op.file
        if tree.inode(new.id) is not None:
            return self._created(op)
        if stat.S_ISDIR(new.mode) and (met := self._directory_at((op.parent, op.name))) is not None:
            # A row without a name, for what comes later and means this one.
            merged = Inode(new.id, new.mode, new.uid, new.gid, ctime_ns=op.time_ns, follows=met.id)
            merged.follows_seq = tree.seq
            tree.create(merged)
            return Result("conflict", op.parent, op.name, met.id)
        place = self._room(op.parent, op.name)
        inode = Inode(
            id=new.id,
            mode=new.mode,
            uid=new.uid,
            gid=new.gid,
            rdev=new.rdev,
            size=len(new.target),
            atime_ns=new.atime_ns,
            mtime_ns=new.mtime_ns,
            ctime_ns=max(op.time_ns, op.file.ctime_ns),  # its mode may have changed since it was made
            target=new.target,
            xattrs=pack_xattrs(new.xattrs),
        )
        tree.create(inode)
        self._continue(place, op.name, inode)
        if op.was_in:
            self._continue((op.was_in, op.name), op.name, inode)
        tree.attach(place, inode)
        self._touch(place[0], op.time_ns)
        return self._placed(place, (op.parent, op.name), inode)

    def _created(self, op: Create) -> Result:
        """A file that was created came again, in another batch."""
        if self.tree.lookup((op.parent, op.name)) == op.file.id:
            return OK
        other = self.tree.merged_into(op.file.id)
        place = next(iter(self.tree.places(other)), None) if other != op.file.id else None
        return Result("conflict", *place, other) if place else DROPPED

    def _directory_at(self, place: Place) -> Inode | None:
        """The directory at a place in one that exists."""
        holder = self.tree.lookup(place)
        inode = self.tree.inode(holder) if holder else None
        return inode if inode is not None and inode.is_dir else None

    def link(self, op: Link) -> Result:
        inode = self.tree.inode(op.file)
        if inode is None:
            return DROPPED
        if self.tree.lookup((op.parent, op.name)) == inode.id:
            return OK
        if inode.is_dir and (inode.nlink or self.tree.merged_into(inode.id) != inode.id):
            return DROPPED
        place = self._room(op.parent, op.name)
        if not inode.nlink:  # else it has its history already
            self._continue(place, op.name, inode)
        self.tree.attach(place, inode)
        inode.ctime_ns = op.time_ns
        self._touch(place[0], op.time_ns)
        return self._placed(place, (op.parent, op.name), inode)

    def unlink(self, op: Unlink) -> Result:
        place = (op.parent, op.name)
        inode = self._named(place, op.file)
        if inode is None or inode.entries:
            return DROPPED
        self._remove(place, inode, op.time_ns)
        if not inode.nlink and inode.is_regular and (found := self.tree.replaced_in_steps(inode, place)):
            successor, since = found
            if not successor.follows:
                self.tree.follow(successor, inode, since=since)
        return OK

    def rename(self, op: Rename) -> Result:
        tree, old, wanted = self.tree, (op.parent, op.name), (op.new_parent, op.new_name)
        inode = self._named(old, op.file)
        if inode is None:
            return DROPPED
        holder = tree.lookup(wanted)
        if holder == inode.id:  # one file under both names: rename(2) does nothing
            return OK
        directory = tree.living_directory(op.new_parent)
        if inode.is_dir and tree.is_within(directory, inode.id):
            return DROPPED
        replaced = self._named(wanted, op.replaces) if op.replaces else None
        if replaced is not None and not replaced.entries and replaced.is_dir == inode.is_dir:
            self._remove(wanted, replaced, op.time_ns)
            if not tree.keeps(inode, old):
                tree.follow(inode, replaced)
            place = self._room(*wanted)
        else:
            place = self._room(*wanted)
            self._continue(place, op.new_name, inode, anew=op.replaces != b"")
        tree.move(old, place, inode)
        tree.change(inode).ctime_ns = op.time_ns
        self._touch(old[0], op.time_ns)
        self._touch(place[0], op.time_ns)
        return self._placed(place, wanted, inode)

    def exchange(self, op: Exchange) -> Result:
        tree, one, other = self.tree, (op.parent, op.name), (op.other_parent, op.other_name)
        one_inode, other_inode = self._named(one, op.file), self._named(other, op.other_file)
        if one_inode is None or other_inode is None:
            return DROPPED
        if one_inode.is_dir and tree.is_within(other[0], one_inode.id):
            return DROPPED
        if other_inode.is_dir and tree.is_within(one[0], other_inode.id):
            return DROPPED
        if one_inode is not other_inode:
            tree.exchange(one, one_inode, other, other_inode)
            tree.follow_each_other(one, one_inode, other, other_inode)
        for inode in (one_inode, other_inode):
            tree.change(inode).ctime_ns = op.time_ns
        self._touch(one[0], op.time_ns)
        self._touch(other[0], op.time_ns)
        return OK

    def setattr(self, op: SetAttr) -> Result:
        inode = self.tree.inode(op.file)
        if inode is None or not inode.nlink:
            return DROPPED
        self.tree.change(inode).ctime_ns = op.time_ns
        if op.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(op.mode)
        if op.xattrs is not None:
            inode.xattrs = pack_xattrs(op.xattrs)
        for field in ("uid", "gid", "atime_ns", "mtime_ns"):
            if (value := getattr(op, field)) is not None:
                setattr(inode, field, value)
        return OK

    def write(self, op: Write) -> Result:
        tree, inode = self.tree, self.tree.inode(op.file)
        if inode is None or not inode.is_regular:
            return DROPPED
        if (known := tree.version(op.version)) is not None:
            return self._repeated(known, op)
        base = self._present(op.base)
        if base == op.version:
            raise Invalid("a version cannot be made from itself")
        head = tree.version(inode.version) if inode.nlink and inode.version else None
        if head is not None and (head.hash, head.size) == (op.hash, op.size):
            # Whatever it was made from: two who wrote the same have no conflict, nor has one whose state was copied.
            self.instead[op.version] = head.id
            tree.change(inode).mtime_ns, inode.ctime_ns = op.mtime_ns, op.time_ns
            return Result("same", version=head.id)
        if inode.nlink and base != inode.version:
            return self._write_copy(op, inode, base)
        if self._exceeds(op.size, inode.charge):
            self.instead[op.version] = base
            return QUOTA
        result = OK if inode.nlink else self._revive(inode, op.time_ns)
        self._put(op, inode, base)
        return result

    def _present(self, base: VersionId) -> VersionId:
        """What a version was made from, or what takes the place of that."""
        end = base
        while end in self.instead:
            end = self.instead[end]
        while base != end:  # so that a long chain is gone through once
            self.instead[base], base = end, self.instead[base]
        return end

    def _write_copy(self, op: Write, inode: Inode, base: VersionId) -> Result:
        """Content made from something else than the head: beside the file, in the copy its base is in if there is."""
        tree = self.tree
        earlier = tree.version(base) if base else None
        copy = tree.inode(earlier.file) if earlier and earlier.file != inode.id else None
        if copy is not None and copy.nlink and copy.version == base:
            if self._exceeds(op.size, copy.charge):
                self.instead[op.version] = base
                return QUOTA
            self._put(op, copy, base)
            return Result("conflict", *tree.places(copy.id)[0], copy.id)
        if self._exceeds(op.size, 0):
            self.instead[op.version] = base
            return QUOTA
        directory, name = tree.places(inode.id)[0]
        place = free_place(tree, directory, name, self.client, self.time_ns)
        copy = dataclasses.replace(inode, id=new_id(), nlink=0, size=0, version=b"")
        tree.create(copy)
        tree.follow(copy, inode)
        tree.attach(place, copy)
        self._touch(directory, op.time_ns)
        self._put(op, copy, base)
        return Result("conflict", *place, copy.id)

    def _put(self, op: Write, inode: Inode, base: VersionId) -> None:
        head = self.tree.version(inode.version) if inode.version else None
        same = head is not None and head.id == base and op.session != b"" and head.session == op.session
        version = Version(
            id=op.version,
            file=inode.id,
            number=head.number if head and same else self.tree.newest_number(inode) + 1,
            base=base,
            size=op.size,
            hash=op.hash,
            slices=len(op.manifest.slices),
            manifest=msgspec.msgpack.encode(op.manifest),
            mtime_ns=op.mtime_ns,
            session=op.session,
        )
        self.tree.put_version(version, inode, replaces=inode.version if same else b"")
        inode.mtime_ns, inode.ctime_ns = op.mtime_ns, op.time_ns

    def _repeated(self, known: Version, op: Write) -> Result:
        """A version that is stored came again, in another batch."""
        if known.file == op.file:
            return OK
        copy = next(iter(self.tree.places(known.file)), None)
        return Result("conflict", *copy, known.file) if copy else DROPPED

    def _revive(self, inode: Inode, time_ns: int) -> Result:
        directory, name = self.tree.last_place(inode.id) or (self.tree.root, RECOVERED)
        place = self._room(directory, name)
        self._continue(place, name, inode)
        self.tree.attach(place, inode)
        self._touch(place[0], time_ns)
        return Result("conflict", *place, inode.id)

    def _room(self, directory: FileId, name: bytes) -> Place:
        """Where a name goes: as wanted, or in the nearest living directory, under a conflict name if taken."""
        directory = self.tree.living_directory(directory)
        if self.tree.lookup((directory, name)) is None:
            return directory, name
        return free_place(self.tree, directory, name, self.client, self.time_ns)

    def _continue(self, place: Place, wanted: bytes, inode: Inode, *, anew: bool = False) -> None:
        """Link a regular file to the one whose history it continues at ``place``, where it is about to come.

        Under a conflict name that is the file beside it, which has the ``wanted`` name. An earlier link stays unless
        ``anew``.
        """
        if not inode.is_regular or (inode.follows and not anew):
            return
        if place[1] == wanted:
            before = None if inode.follows else self.tree.predecessor(place)
        else:
            beside = self.tree.lookup((place[0], wanted))
            before = self.tree.inode(beside) if beside else None
        if before is not None and before.follows != inode.id:
            self.tree.follow(inode, before)

    def _named(self, place: Place, file: FileId) -> Inode | None:
        """The inode ``file`` if ``place`` names it."""
        return self.tree.inode(file) if self.tree.lookup(place) == file else None

    def _remove(self, place: Place, inode: Inode, time_ns: int) -> None:
        self.tree.detach(place, inode)
        inode.ctime_ns = time_ns
        self._touch(place[0], time_ns)

    def _touch(self, directory: FileId, time_ns: int) -> None:
        inode = self.tree.inode(directory)
        assert inode is not None
        self.tree.change(inode).mtime_ns = time_ns
        inode.ctime_ns = time_ns

    def _exceeds(self, size: int, instead_of: int) -> bool:
        more = size - instead_of
        return more > 0 and self.tree.used_bytes + more > self.quota

    @staticmethod
    def _placed(place: Place, wanted: Place, inode: Inode) -> Result:
        return OK if place == wanted else Result("conflict", *place, inode.id)


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Extended attributes as the ``file`` table has them."""
    return msgspec.msgpack.encode(xattrs) if xattrs else b""
