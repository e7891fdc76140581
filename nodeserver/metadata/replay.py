"""A commit as the log has it, told as events: what was done to which paths, as they were at that moment."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from nodeserver.metadata.tree import Place
from nodeserver.protocol import wire
from nodeserver.protocol.wire import Event, FileId, Op, Purge, Result


class Logged(msgspec.Struct):
    """The operations of a logged commit."""

    ops: list[Op | Purge]
    client_name: str = ""


class Names:
    """Where files are while the operations of one commit are gone through."""

    def __init__(self, root: FileId, before: Callable[[FileId], list[Place]]) -> None:
        """``before`` tells the places that a file had when the commit began."""
        self._root = root
        self._before = before
        self._places: dict[FileId, list[Place]] = {}

    def places(self, file: FileId) -> list[Place]:
        """Where a file is now; changes to the list change that."""
        if file not in self._places:
            self._places[file] = sorted(self._before(file))
        return self._places[file]

    def chain(self, directory: FileId) -> list[tuple[FileId, bytes]]:
        """A directory and those above it but for the root, with their names."""
        chain: list[tuple[FileId, bytes]] = []
        seen = set()
        while directory != self._root and directory not in seen and (places := self.places(directory)):
            seen.add(directory)
            chain.append((directory, places[0][1]))
            directory = places[0][0]
        return chain

    def path(self, place: Place) -> bytes:
        """Below the root."""
        return b"/".join([*(name for _, name in reversed(self.chain(place[0]))), place[1]])

    def is_below(self, place: Place, top: FileId) -> bool:
        """Whether a place is somewhere in the directory ``top``."""
        return top in (self._root, place[0]) or any(id_ == top for id_, _ in self.chain(place[0]))

    def give(self, file: FileId, place: Place) -> None:
        """A file is at a place from now on."""
        if place not in (places := self.places(file)):
            places.append(place)

    def take(self, file: FileId, place: Place) -> None:
        """A file is not at a place any more."""
        if place in (places := self.places(file)):
            places.remove(place)


class Told(NamedTuple):
    """An event, without what all of a commit share and without the mode, and what it is about."""

    event: Event
    places: list[Place]
    files: list[FileId]


def replay(logged: Logged, results: list[Result], names: Names) -> Iterator[Told]:
    """What the operations did, in order; without what had no effect.

    While an event is looked at, the names that it ends are still in ``names``.
    """
    for op, result in zip(logged.ops, results, strict=True):
        if result.status not in ("dropped", "quota", "same"):
            yield from _HANDLERS[type(op)](op, result, names)


def _told(kind: str, path: bytes, file: FileId, places: list[Place], *others: FileId, **more: Any) -> Told:
    return Told(Event(0, 0, kind, path, file, 0, **more), places, [file, *filter(None, others)])


def _placed(wanted: Place, result: Result) -> Place:
    return (result.parent, result.name) if result.status == "conflict" else wanted


def _create(op: wire.Create, result: Result, names: Names) -> Iterator[Told]:
    if wire.became(op, result):
        return
    place = _placed((op.parent, op.name), result)
    names.give(op.file.id, place)
    yield _told("create", names.path(place), op.file.id, [place])


def _link(op: wire.Link, result: Result, names: Names) -> Iterator[Told]:
    place, others = _placed((op.parent, op.name), result), list(names.places(op.file))
    if place in others:  # one file under both names: nothing happened
        return
    names.give(op.file, place)
    if others:
        yield _told("link", names.path(others[0]), op.file, [others[0], place], new_path=names.path(place))
    else:  # it was gone, and is back
        yield _told("create", names.path(place), op.file, [place])


def _unlink(op: wire.Unlink, _result: Result, names: Names) -> Iterator[Told]:
    place = (op.parent, op.name)
    yield _told("unlink", names.path(place), op.file, [place])
    names.take(op.file, place)


def _rename(op: wire.Rename, result: Result, names: Names) -> Iterator[Told]:
    old, new = (op.parent, op.name), _placed((op.new_parent, op.new_name), result)
    if new in names.places(op.file):  # one file under both names: nothing happened
        return
    replaced = op.replaces if op.replaces and new in names.places(op.replaces) else b""
    yield _told("rename", names.path(old), op.file, [old, new], replaced, new_path=names.path(new))
    if replaced:
        names.take(replaced, new)
    names.take(op.file, old)
    names.give(op.file, new)


def _exchange(op: wire.Exchange, _result: Result, names: Names) -> Iterator[Told]:
    one, other = (op.parent, op.name), (op.other_parent, op.other_name)
    yield _told("exchange", names.path(one), op.file, [one, other], op.other_file, new_path=names.path(other))
    for file, old, new in ((op.file, one, other), (op.other_file, other, one)):
        names.take(file, old)
        names.give(file, new)


def _setattr(op: wire.SetAttr, _result: Result, names: Names) -> Iterator[Told]:
    changed = [
        f"mode {stat.S_IMODE(op.mode):04o}" if op.mode is not None else "",
        f"owner {op.uid}" if op.uid is not None else "",
        f"group {op.gid}" if op.gid is not None else "",
        "times" if op.atime_ns is not None or op.mtime_ns is not None else "",
        "extended attributes" if op.xattrs is not None else "",
    ]
    places = names.places(op.file)[:1]
    path = names.path(places[0]) if places else b""
    yield _told("setattr", path, op.file, places, detail=", ".join(filter(None, changed)))


def _write(op: wire.Write, result: Result, names: Names) -> Iterator[Told]:
    file = result.file or op.file
    if result.status == "conflict":
        names.give(file, (result.parent, result.name))
    places = names.places(file)[:1]
    path = names.path(places[0]) if places else b""
    yield _told("write", path, file, places, version=op.version, size=op.size)


def _purge(op: Purge, _result: Result, names: Names) -> Iterator[Told]:
    place = (op.parent, op.name)
    yield _told("purge", names.path(place), b"", [place], detail=f"{len(op.versions)} versions")


_HANDLERS: dict[type, Callable[[Any, Result, Names], Iterator[Told]]] = {
    wire.Create: _create,
    wire.Link: _link,
    wire.Unlink: _unlink,
    wire.Rename: _rename,
    wire.Exchange: _exchange,
    wire.SetAttr: _setattr,
    wire.Write: _write,
    wire.Purge: _purge,
}
