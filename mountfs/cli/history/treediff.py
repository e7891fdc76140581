"""What became of a tree between two times. No I/O."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Literal, NamedTuple

from nodeserver.protocol.wire import Entry, File, FileId, Manifest

Kind = Literal["added", "removed", "moved", "changed", "attributes"]


class Difference(NamedTuple):
    """One path that is not as it was."""

    kind: Kind
    path: bytes
    new_path: bytes
    """Of what moved; else empty."""
    before: File | None
    after: File | None


def differences(before: Iterable[Entry], after: Iterable[Entry]) -> list[Difference]:
    """Paths that came, went, moved with their file, or have other content or attributes; in the order of a walk.

    What only moved along with a directory above it is not named. A file that took the place of one that is gone, as
    many programs save, has changed. Content in other chunks counts as changed: a caller who must know reads it.
    """
    old = {entry.name: entry.file for entry in before}
    new = {entry.name: entry.file for entry in after}
    stayed = _stayed(old, new)
    gone: dict[FileId, list[bytes]] = {}
    for path, file in old.items():
        if path not in stayed:
            gone.setdefault(file.id, []).append(path)
    found: list[Difference] = []
    moves: dict[bytes, bytes] = {}
    for path, file in new.items():
        came_from = path
        if path not in stayed:
            if not gone.get(file.id):
                found.append(Difference("added", path, b"", None, file))
                continue
            came_from = gone[file.id].pop(0)
            moves[came_from] = path
            if _moved_along(came_from, moves) != path:
                found.append(Difference("moved", came_from, path, old[came_from], file))
        if kind := _changed(old[came_from], file):
            found.append(Difference(kind, path, b"", old[came_from], file))
    found += [Difference("removed", path, b"", old[path], None) for paths in gone.values() for path in paths]
    return sorted(found, key=lambda difference: difference.path.split(b"/"))


def _stayed(old: dict[bytes, File], new: dict[bytes, File]) -> set[bytes]:
    """Paths that stand for the same thing: the same file, or one that replaced it."""
    old_ids, new_ids = {file.id for file in old.values()}, {file.id for file in new.values()}
    return {
        path
        for path, file in old.items()
        if path in new and (file.id == new[path].id or (file.id not in new_ids and new[path].id not in old_ids))
    }


def _changed(before: File, after: File) -> Kind | None:
    if not _alike(before, after):
        return "changed"
    return "attributes" if attributes_differ(before, after) else None


def attributes_differ(before: File, after: File) -> bool:
    """Whether mode, owner, group or extended attributes are others; times alone are no difference."""
    return any(getattr(before, field) != getattr(after, field) for field in ("mode", "uid", "gid", "xattrs"))


def _alike(before: File, after: File) -> bool:
    if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
        return False
    if not stat.S_ISREG(before.mode):
        return (before.target, before.rdev) == (after.target, after.rdev)
    return before.version == after.version or (
        before.size == after.size and (not before.size or _known_alike(before.manifest, after.manifest))
    )


def _known_alike(before: Manifest | None, after: Manifest | None) -> bool:
    return before is not None and before == after


def _moved_along(path: bytes, moves: dict[bytes, bytes]) -> bytes | None:
    """Where a path is if it only moved with a directory above it."""
    above = path.rpartition(b"/")[0]
    while above:
        if above in moves:
            return moves[above] + path[len(above) :]
        above = above.rpartition(b"/")[0]
    return None
