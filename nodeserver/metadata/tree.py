"""The part of a bucket that a batch of operations touches, in memory."""

from __future__ import annotations

import dataclasses
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

from nodeserver.protocol.wire import FileId, VersionId

Place = tuple[FileId, bytes]
"""A directory and a name in it."""


@dataclasses.dataclass(slots=True)
class Inode:
    """A row of the ``file`` table, fields in the order of its columns after ``bucket``."""

    id: FileId
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 0
    entries: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    target: bytes = b""
    xattrs: bytes = b""
    version: VersionId = b""
    since_seq: int = 0
    follows: FileId = b""
    follows_seq: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def charge(self) -> int:
        """Bytes it counts in its bucket's usage."""
        return self.size if self.nlink and self.is_regular else 0


@dataclasses.dataclass(slots=True, frozen=True)
class Version:
    """A row of the ``version`` table, fields in the order of its columns after ``bucket``, without commit."""

    id: VersionId
    file: FileId
    number: int
    base: VersionId = b""
    size: int = 0
    hash: bytes = b""
    slices: int = 0
    manifest: bytes = b""
    mtime_ns: int = 0
    session: bytes = b""


@dataclasses.dataclass(slots=True, frozen=True)
class Held:
    """A live row of the ``entry`` table: what a place names and since which commit."""

    file: FileId
    since_seq: int


@dataclasses.dataclass(slots=True, frozen=True)
class Left:
    """Who was last at a place that is free, and the commit that ended it."""

    file: FileId
    until_seq: int


class Source(Protocol):
    """Where a ``Tree`` comes from. Bulk methods leave out what does not exist."""

    def inodes(self, ids: Iterable[FileId]) -> Mapping[FileId, Inode]: ...

    def entries(self, places: Iterable[Place]) -> Mapping[Place, Held]: ...

    def versions(self, ids: Iterable[VersionId]) -> Mapping[VersionId, Version]: ...

    def left(self, places: Iterable[Place]) -> Mapping[Place, Left]:
        """Who was last at places that are free."""

    def places_left(self, files: Iterable[FileId]) -> Iterable[tuple[FileId, Place, int]]:
        """The places that files were at, and the commits that took them from there."""

    def begun(self, file: FileId, seq: int) -> list[Place]:
        """The places that a file got in a commit."""

    def oldest_number(self, file: FileId) -> int | None:
        """The least number of a file's versions."""

    def places(self, file: FileId) -> Mapping[Place, Held]:
        """The live entries of a file."""

    def last_place(self, file: FileId) -> Place | None:
        """The entry of a file that ended last; None when none ever did."""


class Tree:
    """A view of a bucket that loads what is asked for and keeps what changes until it is written back.

    Counters (``nlink``, ``entries``, usage) follow every change of the namespace made through ``attach``,
    ``detach`` and ``move``; who changes an inode's fields takes it from ``change``.
    """

    def __init__(self, source: Source, root: FileId, seq: int, *, used_bytes: int = 0, used_files: int = 0) -> None:
        self.root = root
        self.seq = seq
        """The commit that the changes are part of."""
        self.used_bytes = used_bytes
        self.used_files = used_files
        self.before: dict[Place, Held | None] = {}
        """Entries as they were loaded."""
        self.names: dict[Place, FileId | None] = {}
        """Entries as they are now."""
        self.inodes: dict[FileId, Inode | None] = {}
        self.created: dict[FileId, Inode] = {}
        self.changed: dict[FileId, Inode] = {}
        self.versions: dict[VersionId, Version | None] = {}
        self.written: dict[VersionId, Version] = {}
        self.replaced: set[VersionId] = set()
        """Loaded versions that a later one of the same session took the place of."""
        self.raised: dict[FileId, int] = {}
        """By how much the numbers of stored versions grow, by file."""
        self.conflicts: Counter[Place] = Counter()
        """How many conflict names were tried for a name in this commit."""
        self._source = source
        self._left: dict[Place, Left] = {}
        self._left_by: defaultdict[FileId, set[Place]] = defaultdict(set)  # in this commit
        self._were: dict[FileId, list[tuple[Place, int]]] = {}
        self._versions_of: defaultdict[FileId, set[VersionId]] = defaultdict(set)  # those in ``versions``
        self._ended: dict[FileId, Place] = {}
        self._now_at: dict[FileId, set[Place]] = {}
        self._placed: set[FileId] = set()  # of these all live entries are loaded

    # Loading

    def load(self, ids: Iterable[FileId], places: Iterable[Place]) -> None:
        """Load inodes and entries in bulk."""
        wanted = [id_ for id_ in dict.fromkeys(ids) if id_ not in self.inodes]
        self.inodes.update(dict.fromkeys(wanted))
        self.inodes.update(self._source.inodes(wanted))
        unknown = []
        for place in dict.fromkeys(places):
            if place not in self.names:
                self._remember(place, None)
                if self.inodes.get(place[0], self) is not None:  # a directory that does not exist holds nothing
                    unknown.append(place)
        found = self._source.entries(unknown)
        for place, held in found.items():
            self._remember(place, held)
        self._left.update(self._source.left(place for place in unknown if place not in found))

    def load_versions(self, ids: Iterable[VersionId]) -> None:
        """Load versions in bulk."""
        wanted = [id_ for id_ in dict.fromkeys(ids) if id_ and id_ not in self.versions]
        self.versions.update(dict.fromkeys(wanted))
        for id_, version in self._source.versions(wanted).items():
            self.versions[id_] = _raised(version, self.raised.get(version.file, 0))
            self._versions_of[version.file].add(id_)

    def load_places_left(self, ids: Iterable[FileId]) -> None:
        """Load in bulk where files were."""
        wanted: dict[FileId, list[tuple[Place, int]]] = {id_: [] for id_ in ids if id_ not in self._were}
        self._were.update(wanted)
        for file, place, until in self._source.places_left(wanted):
            wanted[file].append((place, until))

    def inode(self, id_: FileId) -> Inode | None:
        """A file, gone or not; None when it never was."""
        if id_ not in self.inodes:
            self.load([id_], [])
        return self.inodes[id_]

    def lookup(self, place: Place) -> FileId | None:
        """What is at a place now."""
        if place not in self.names:
            self.load([], [place])
        return self.names[place]

    def version(self, id_: VersionId) -> Version | None:
        """A version that was not replaced within its session."""
        if id_ not in self.versions:
            self.load_versions([id_])
        return self.versions.get(id_)

    def places(self, id_: FileId) -> list[Place]:
        """Where a file is now, in order."""
        if id_ not in self._placed and id_ not in self.created:
            self._placed.add(id_)
            for place, held in self._source.places(id_).items():
                if place not in self.names:
                    self._remember(place, held)
        return sorted(self._now_at.get(id_, ()))

    def last_place(self, id_: FileId) -> Place | None:
        """Where a file that is gone was last."""
        return self._ended.get(id_) or self._source.last_place(id_)

    def predecessor(self, place: Place) -> Inode | None:
        """Whose history a regular file continues that comes to ``place``, which is free.

        That of the file which was deleted there last, or was moved from there to a backup's name beside it.
        """
        left = self._left.get(place)
        if left is None or (inode := self.inode(left.file)) is None or not inode.is_regular:
            return None
        if left.until_seq == self.seq:
            moved = [now for now in self.places(inode.id) if not (held := self.before[now]) or held.file != inode.id]
            deleted = not inode.nlink and self._ended[inode.id] == place
        else:
            moved = self._source.begun(inode.id, left.until_seq)
            deleted = not inode.nlink and not moved
        backup = any(parent == place[0] and name.startswith(place[1]) for parent, name in moved)
        return inode if deleted or backup else None

    def newest_number(self, inode: Inode) -> int:
        """The greatest number in the history of a file, 0 when it has none.

        It is that of the file's head or, after a backup was restored, of the head that was there before.
        """
        if not inode.follows:
            head = self.version(inode.version) if inode.version else None
            return head.number if head else 0
        numbers: list[int] = []
        seen = set()
        here: Inode | None = inode
        while here is not None and here.id not in seen and len(numbers) < 2:
            if here.version and (head := self.version(here.version)):
                numbers.append(head.number)
            seen.add(here.id)
            here = self.inode(here.follows) if here.follows else None
        return max(numbers, default=0)

    def living_directory(self, id_: FileId) -> FileId:
        """``id_`` if it is a directory that exists, else the nearest directory above its last place that does."""
        seen = set()
        while id_ != self.root and id_ not in seen:
            seen.add(id_)
            inode = self.inode(id_)
            if inode is not None and inode.is_dir and inode.nlink:
                return id_
            place = None
            if inode is not None:
                place = next(iter(self.places(id_)), None) if inode.nlink else self.last_place(id_)
            id_ = place[0] if place else self.root
        return self.root

    def merged_into(self, id_: FileId) -> FileId:
        """The directory that ``id_`` became because it met that when it was made; of all others ``id_`` itself."""
        inode = self.inode(id_)
        return inode.follows if inode is not None and inode.is_dir and inode.follows else id_

    def is_within(self, directory: FileId, top: FileId) -> bool:
        """Whether ``directory`` is ``top`` or somewhere below it."""
        seen = set()
        while directory != top:
            if directory == self.root or directory in seen or not (places := self.places(directory)):
                return False
            seen.add(directory)
            directory = places[0][0]
        return True

    # Changing

    def change(self, inode: Inode) -> Inode:
        """``inode``, noted as one to write back."""
        if inode.id not in self.created:
            self.changed[inode.id] = inode
        return inode

    def create(self, inode: Inode) -> None:
        """Add an inode that has no name yet."""
        self.inodes[inode.id] = self.created[inode.id] = inode

    def attach(self, place: Place, inode: Inode) -> None:
        """Give ``inode`` a name that is free; a file that was gone is back."""
        if not inode.nlink:
            self.used_files += 1
        self.used_bytes -= inode.charge
        self.change(inode).nlink = 2 if inode.is_dir else inode.nlink + 1
        self.used_bytes += inode.charge
        self._bind(place, inode)

    def detach(self, place: Place, inode: Inode) -> None:
        """End a name of ``inode``; without another it is gone."""
        self._unbind(place, inode)
        self.used_bytes -= inode.charge
        self.change(inode).nlink = 0 if inode.is_dir else inode.nlink - 1
        self.used_bytes += inode.charge
        if not inode.nlink:
            self.used_files -= 1

    def move(self, old: Place, new: Place, inode: Inode) -> None:
        """Move ``inode`` from a name it has to one that is free."""
        self._unbind(old, inode)
        self._bind(new, inode)

    def exchange(self, one: Place, one_inode: Inode, other: Place, other_inode: Inode) -> None:
        """Swap two names."""
        self._unbind(one, one_inode)
        self._unbind(other, other_inode)
        self._bind(one, other_inode)
        self._bind(other, one_inode)

    def put_version(self, version: Version, inode: Inode, *, replaces: VersionId = b"") -> None:
        """Make ``version`` the head of ``inode``; ``replaces`` is not kept."""
        if replaces:
            if self.written.pop(replaces, None) is None:
                self.replaced.add(replaces)
            self.versions[replaces] = None
        self.versions[version.id] = self.written[version.id] = version
        self._versions_of[inode.id].add(version.id)
        self.used_bytes -= inode.charge
        self.change(inode).version, inode.size = version.id, version.size
        self.used_bytes += inode.charge

    def follow(self, inode: Inode, before: Inode, *, since: int | None = None, renumber: bool = True) -> None:
        """Let ``inode`` continue the history that ``before`` has up to commit ``since``, if both are regular files.

        Up to this commit, if it is None. With ``renumber`` the versions of ``inode`` get numbers behind those of
        ``before``, unless that continues it already.
        """
        if inode is before or not (inode.is_regular and before.is_regular):
            return
        if renumber and inode.version and before.follows != inode.id:
            self._raise_numbers(inode, self.newest_number(before) + 1 - self._oldest_number(inode))
        self.change(inode).follows, inode.follows_seq = before.id, self.seq if since is None else since

    def follow_each_other(self, one: Place, one_inode: Inode, other: Place, other_inode: Inode) -> None:
        """As ``follow``, both ways, of files that were at these places, but that each keeps what it continues itself.

        Else a file saved by exchange, again and again, would lose what it continued to a temporary one. Only the
        younger gets new numbers, or they would grow for ever.
        """
        both = ((one_inode, one), (other_inode, other))
        (older, _), (younger, place) = sorted(both, key=lambda pair: pair[0].id)  # ids begin with the time
        if not self.keeps(younger, place):
            self.follow(younger, older)
        if not older.follows:
            self.follow(older, younger, renumber=False)

    def keeps(self, inode: Inode, place: Place) -> bool:
        """Whether a file that leaves ``place`` for that of another goes on continuing what it does.

        Not what was deleted at ``place`` before it came: that may have been a temporary file of something else.
        """
        if not inode.follows:
            return False
        left = [until for was, until in self._places_left(inode.follows) if was == place]
        return not left or max(left) >= inode.follows_seq

    def replaced_in_steps(self, gone: Inode, place: Place) -> tuple[Inode, int] | None:
        """The file that took the place of one which was renamed, for a while, and then deleted at ``place``.

        With the commit that took the deleted one from there.
        """
        left = [(until, was) for was, until in self._places_left(gone.id) if was[0] == place[0] and was != place]
        if not left:
            return None
        until, was = max(left)
        last = self._left.get(was) or self._source.left([was]).get(was)
        holder = self.lookup(was)
        if holder is None or last is None or last.file != gone.id:
            return None
        inode = self.inode(holder)
        return (inode, until) if inode else None

    def moved(self) -> dict[Place, FileId | None]:
        """Entries that are not as they were loaded."""
        return {
            place: file
            for place, file in self.names.items()
            if file != (before.file if (before := self.before[place]) else None)
        }

    def _places_left(self, id_: FileId) -> list[tuple[Place, int]]:
        """Where a file was, and the commits that took it from there."""
        if id_ not in self._were:
            self.load_places_left([id_])
        here = [(place, self.seq) for place in self._left_by[id_] if self._left[place].file == id_]
        return here + self._were[id_]

    def _oldest_number(self, inode: Inode) -> int:
        numbers = [self.written[id_].number for id_ in self._versions_of[inode.id] if id_ in self.written]
        if inode.id not in self.created and (stored := self._source.oldest_number(inode.id)) is not None:
            numbers.append(stored + self.raised.get(inode.id, 0))
        return min(numbers, default=1)

    def _raise_numbers(self, inode: Inode, by: int) -> None:
        if by <= 0:
            return
        if inode.id not in self.created:
            self.raised[inode.id] = self.raised.get(inode.id, 0) + by
        for id_ in self._versions_of[inode.id]:
            if (version := self.versions[id_]) is not None:
                self.versions[id_] = raised = _raised(version, by)
                if id_ in self.written:
                    self.written[id_] = raised

    def _remember(self, place: Place, held: Held | None) -> None:
        self.before[place] = held
        self.names[place] = held.file if held else None
        if held:
            self._now_at.setdefault(held.file, set()).add(place)

    def _bind(self, place: Place, inode: Inode) -> None:
        assert self.names[place] is None
        self.names[place] = inode.id
        self._now_at.setdefault(inode.id, set()).add(place)
        self._count(place[0], inode, 1)

    def _unbind(self, place: Place, inode: Inode) -> None:
        assert self.names[place] == inode.id
        self.names[place] = None
        self._now_at[inode.id].discard(place)
        self._ended[inode.id] = place
        self._left[place] = Left(inode.id, self.seq)
        self._left_by[inode.id].add(place)
        self._count(place[0], inode, -1)

    def _count(self, directory: FileId, inode: Inode, by: int) -> None:
        parent = self.inode(directory)
        assert parent is not None
        self.change(parent).entries += by
        if inode.is_dir:
            parent.nlink += by


def _raised(version: Version, by: int) -> Version:
    return dataclasses.replace(version, number=version.number + by) if by else version
