"""What has to be done so that a tree is as it was: operations on existing content. No I/O.

A file that is there under its name stays the same file and gets a further version; one that is gone is created anew,
and the server continues its history. A directory that was deleted comes back as itself, with all its past. Hard links
that were in the tree are links again.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    MAX_COMMIT_OPS,
    Create,
    Entry,
    File,
    FileId,
    Link,
    Manifest,
    Op,
    SetAttr,
    Unlink,
    VersionId,
    Write,
    pack,
)

COMMIT_BYTES = 8 << 20
"""About how much the operations of one commit may take: the server refuses four times as much."""

Kind = Literal["create", "content", "attributes", "link", "replace", "delete"]


class Content(NamedTuple):
    """What a version holds."""

    hash: bytes
    manifest: Manifest


class Step(NamedTuple):
    """An operation and the path it is for, below the top of the tree."""

    path: bytes
    op: Op


@dataclasses.dataclass
class Plan:
    """What to do, and what that changes. Empty when everything is as it was."""

    steps: list[Step] = dataclasses.field(default_factory=list)
    changes: dict[bytes, Kind] = dataclasses.field(default_factory=dict)
    """What becomes of which path. The top of the tree is the empty path."""
    in_the_way: list[bytes] = dataclasses.field(default_factory=list)
    """Paths that hold something now which only ``delete`` may remove: then nothing must be done."""
    unlinked: list[bytes] = dataclasses.field(default_factory=list)
    """Paths that were hard links and stay files of their own, as ``delete`` was not given."""


def unread(then: Iterable[Entry], now: Mapping[bytes, File]) -> set[VersionId]:
    """Versions whose content has to be asked for before there can be a plan, as the listings left it out."""
    found = set()
    for entry in then:
        file, present = entry.file, now.get(entry.name)
        if not file.size or not stat.S_ISREG(file.mode) or (present and present.version == file.version):
            continue
        if _is_partial(file):
            found.add(file.version)
        if present and present.size == file.size and _is_partial(present):
            found.add(present.version)
    return found


def plan(
    then: Sequence[Entry],
    now: Mapping[bytes, File],
    place: tuple[FileId, bytes],
    content_of: Callable[[File], Content],
    *,
    was_in: FileId = b"",
    copy: bool = False,
    delete: bool = False,
    time_ns: int,
    mint: Callable[[], bytes] = new_id,
) -> Plan:
    """Make the tree at ``place`` (directory and name) what ``then`` says, from what ``now`` has there.

    Both have paths below the top, parents first, the top itself as the empty path. ``was_in`` is the
    directory that the top was in, if not that of ``place``. A ``copy`` has no past. ``delete`` removes what was not
    there then, and what is of another kind now.
    """
    return _Planner(then, now, place, content_of, was_in, copy, delete, time_ns, mint).run()


def bring_back(path: bytes, place: tuple[FileId, bytes], directory: File, time_ns: int) -> list[Step]:
    """Have a directory that was deleted again, empty, with the attributes it had."""
    attributes = SetAttr(
        directory.id,
        time_ns,
        mode=directory.mode,
        uid=directory.uid,
        gid=directory.gid,
        mtime_ns=directory.mtime_ns,
        xattrs=directory.xattrs,
    )
    return [Step(path, Link(*place, directory.id, time_ns)), Step(path, attributes)]


def commits(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """The steps in groups that one commit can carry."""
    group: list[Step] = []
    size = 0
    for step in steps:
        weight = len(pack(step.op))
        if group and (len(group) == MAX_COMMIT_OPS or size + weight > COMMIT_BYTES):
            yield group
            group, size = [], 0
        group.append(step)
        size += weight
    if group:
        yield group


class _Planner:
    def __init__(
        self,
        then: Sequence[Entry],
        now: Mapping[bytes, File],
        place: tuple[FileId, bytes],
        content_of: Callable[[File], Content],
        was_in: FileId,
        copy: bool,
        delete: bool,
        time_ns: int,
        mint: Callable[[], bytes],
    ) -> None:
        self._then = {entry.name: entry.file for entry in then}
        self._now = dict(now)
        self._place, self._content_of = place, content_of
        self._was_in = was_in
        self._copy, self._delete, self._time, self._mint = copy, delete, time_ns, mint
        self._plan = Plan()
        self._at: dict[bytes, FileId] = {}
        """The directories of the tree as they will be."""
        self._serves: dict[FileId, FileId] = {}
        """Which file of then a file of now serves as."""
        self._served: dict[FileId, FileId] = {}
        """The same the other way round."""
        self._done: set[FileId] = set()
        self._touched: set[bytes] = set()
        """Directories in which names come or go, which changes their time."""

    def run(self) -> Plan:
        for path, file in self._then.items():
            if path in self._now and self._now[path].id == file.id:
                self._claim(file.id, file.id)
        self._remove()
        if self._plan.in_the_way:
            return self._plan
        for path, file in self._then.items():
            if stat.S_ISDIR(file.mode):
                self._directory(path, file)
            else:
                self._file(path, file)
        self._times()
        return self._plan

    def _claim(self, then: FileId, now: FileId) -> None:
        self._serves[now] = then
        self._served[then] = now

    def _do(self, path: bytes, op: Op, kind: Kind | None = None) -> None:
        self._plan.steps.append(Step(path, op))
        if kind:
            self._plan.changes.setdefault(path, kind)

    def _place_of(self, path: bytes) -> tuple[FileId, bytes]:
        """Directory and name of a path in the tree as it will be."""
        return (self._at[_above(path)], _name(path)) if path else self._place

    # Taking away

    def _remove(self) -> None:
        """Take away what was not there and what is in the way, deepest first."""
        gone = []
        for path, present in self._now.items():
            if path not in self._then:
                if self._delete:
                    gone.append(path)
            elif self._hinders(self._then[path], present, path):
                gone.append(path)
                if not self._delete and (stat.S_ISREG(present.mode) or stat.S_ISDIR(present.mode)):
                    self._plan.in_the_way.append(path)
        if self._plan.in_the_way:
            return
        for path in reversed(gone):
            place = (self._now[_above(path)].id, _name(path)) if path else self._place
            self._do(
                path, Unlink(*place, self._now[path].id, self._time), "replace" if path in self._then else "delete"
            )
            self._touched.add(_above(path))
        for path in gone:
            del self._now[path]

    def _hinders(self, file: File, present: File, path: bytes) -> bool:
        """Whether what is at a path cannot become what was there."""
        if stat.S_IFMT(present.mode) != stat.S_IFMT(file.mode):
            return True
        if present.id == file.id or stat.S_ISDIR(file.mode):
            return False
        if not stat.S_ISREG(file.mode):
            return (present.target, present.rdev) != (file.target, file.rdev)
        if self._serves.setdefault(present.id, file.id) != file.id:
            return True  # as a hard link it serves as another file
        if self._served.setdefault(file.id, present.id) == present.id:
            return False
        if not self._delete:
            self._plan.unlinked.append(path)
        return self._delete

    # Putting back

    def _directory(self, path: bytes, file: File) -> None:
        present = self._now.get(path)
        if present is not None:
            self._attributes(path, file, present)
        elif file.gone and not self._copy:
            present = file
            self._plan.steps += bring_back(path, self._place_of(path), file, self._time)
            self._plan.changes.setdefault(path, "create")
            self._touched.add(_above(path))
        else:
            present = self._create(path, file)
        self._at[path] = present.id

    def _file(self, path: bytes, file: File) -> None:
        present = self._now.get(path)
        if present is not None:
            if present.id not in self._done:
                self._update(path, file, present)
            self._done.add(present.id)
        elif file.id in self._served:
            self._do(path, Link(*self._place_of(path), self._served[file.id], self._time), "link")
            self._touched.add(_above(path))
        else:
            created = self._create(path, file)
            self._claim(file.id, created.id)
            if file.size and stat.S_ISREG(file.mode):
                self._write(path, file, created)

    def _create(self, path: bytes, file: File) -> File:
        new = File(
            self._mint(),
            file.mode,
            file.uid,
            file.gid,
            file.rdev,
            atime_ns=file.atime_ns,
            mtime_ns=file.mtime_ns,
            target=file.target,
            xattrs=file.xattrs,
        )
        place = self._place_of(path)
        was_in = self._then[_above(path)].id if path else self._was_in
        if self._copy or was_in == place[0]:
            was_in = b""
        self._do(path, Create(*place, new, self._time, was_in), "create")
        self._touched.add(_above(path))
        return new

    def _update(self, path: bytes, file: File, present: File) -> None:
        """Make a file that stays what it was."""
        same = not stat.S_ISREG(file.mode) or present.version == file.version or self._alike(present, file)
        if not same:
            self._write(path, file, present)
            self._plan.changes[path] = "content"
        self._attributes(path, file, present, mtime_ns=file.mtime_ns if same else None)

    def _alike(self, one: File, other: File) -> bool:
        return one.size == other.size and (not one.size or self._content_of(one).hash == self._content_of(other).hash)

    def _write(self, path: bytes, file: File, present: File) -> None:
        content = self._content_of(file)
        write = Write(
            present.id,
            self._mint(),
            file.size,
            content.hash,
            content.manifest,
            file.mtime_ns,
            self._time,
            base=present.version,
        )
        self._do(path, write)

    def _attributes(self, path: bytes, file: File, present: File, *, mtime_ns: int | None = None) -> None:
        wanted: dict[str, Any] = {"mode": file.mode, "uid": file.uid, "gid": file.gid, "xattrs": file.xattrs}
        if mtime_ns is not None:
            wanted["mtime_ns"] = mtime_ns
        changed = {field: value for field, value in wanted.items() if getattr(present, field) != value}
        if changed:
            self._do(path, SetAttr(present.id, self._time, **changed), "attributes")

    def _times(self) -> None:
        """Times of directories, last: every name that comes or goes changes them."""
        for path, file in self._then.items():
            if not stat.S_ISDIR(file.mode):
                continue
            present = self._now.get(path)
            other = present is not None and present.mtime_ns != file.mtime_ns
            if other or path in self._touched:
                op = SetAttr(self._at[path], self._time, mtime_ns=file.mtime_ns)
                self._do(path, op, "attributes" if other else None)


def _is_partial(file: File) -> bool:
    return file.manifest is None or file.manifest.indirect


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
