"""What was at a path: who had the name, which versions there are, and what it was at a time."""

from __future__ import annotations

import dataclasses
import re
import stat
from collections.abc import Sequence

from mountfs.cli.history.node import Talk
from mountfs.cli.history.paths import Target
from mountfs.errors import MountError
from nodeserver.client import Refused
from nodeserver.protocol import wire
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MAX_VERSIONS, File, FileId, Moment, Version

DIGITS = 8
"""Digits of an id that people see."""
LEAST = 4
"""Digits that are enough to mean a version."""
_HEX = re.compile(rf"[0-9a-f]{{{LEAST},32}}")
_NAME = re.compile(rf"\d{{4}}-\d\d-\d\dT[\d.-]+Z_([0-9a-f]{{{DIGITS},32}})(?:\..*)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Spot:
    """A place, and who has it or had it last."""

    directory: FileId
    """Empty for the root of the bucket."""
    name: bytes
    file: FileId
    mode: int
    live: bool

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


async def find(talk: Talk, target: Target) -> Spot:
    """The place of a path, through directories that are gone too. Raises ``MountError`` where never was anything."""
    if target.file:
        is_dir = stat.S_ISDIR(target.mode)
        above = target.directories[:-1] if is_dir else target.directories
        name = target.names[-1] if target.names else b""
        return Spot(above[-1] if above else b"", name, target.file, target.mode, live=True)
    spot = await _was_below(talk, target.directories[-1], target.left)
    # The directories of the path may have had others before them under their names.
    spot = spot or await _was_below(talk, talk.bucket.root, target.names)
    if spot is None:
        raise nothing(target)
    return spot


async def _was_below(talk: Talk, directory: FileId, names: Sequence[bytes]) -> Spot | None:
    """Who had a path below a directory last, in the newest of its directories that ever had it."""
    occupants = await _occupants(talk, directory, names[0])
    if len(names) == 1:
        return Spot(directory, names[0], occupants[-1].file, occupants[-1].mode, live=False) if occupants else None
    for one in reversed(occupants):
        if stat.S_ISDIR(one.mode) and (spot := await _was_below(talk, one.file, names[1:])):
            return spot
    return None


async def _occupants(talk: Talk, directory: FileId, name: bytes) -> list[wire.Occupant]:
    return await talk.client.occupants(talk.name, directory, name)


def nothing(target: Target, when: str = "") -> MountError:
    """The error for a path where nothing is and was, or was at that time."""
    return MountError(f"{target.shown}: nothing was there{f' at {when}' if when else ', as far as history tells'}")


async def history(talk: Talk, spot: Spot) -> list[Version]:
    """The versions of a place, oldest first."""
    if not spot.directory or spot.is_dir:
        return []
    found: list[Version] = []
    more = True
    while more:
        after = found[-1].id if found else b""
        page = await talk.client.versions(talk.name, spot.directory, spot.name, after, MAX_VERSIONS)
        found += page.versions
        more = page.more
    return found


def short(version: bytes) -> str:
    """The part of a version's id that people see: its end, as ids made in the same minute begin alike."""
    return version.hex()[-DIGITS:]


def pick(versions: Sequence[Version], text: str, shown: str) -> Version:
    """The version that ``text`` means: ``#NUMBER``, digits of its id, its name in ``.versions``.

    Raises ``MountError`` when there is none, or more than one.
    """
    if text in ("current", "previous"):
        now = next((at for at, version in enumerate(versions) if version.current), len(versions))
        found = list(versions[now : now + 1] if text == "current" else versions[max(0, now - 1) : now])
    else:
        found = [version for version in versions if _is(version, text)]
    if len(found) > 1:
        some = ", ".join(short(version.id) for version in found[:5])
        raise MountError(f"{shown}: {text} can be {len(found)} versions: {some}{' …' if len(found) > 5 else ''}")
    if not found:
        raise MountError(f"{shown}: no version {text}; mountfs log {shown} lists them")
    return found[0]


def means_version(versions: Sequence[Version], text: str) -> bool:
    """Whether a text is to be taken for a version, rather than for a time: digits may be either."""
    if _HEX.fullmatch(text):
        return any(_is(version, text) for version in versions)
    return bool(text.startswith("#") or text in ("current", "previous") or _NAME.fullmatch(text))


def _is(version: Version, text: str) -> bool:
    if text.startswith("#"):
        return text[1:].isdecimal() and int(text[1:]) == version.number
    if match := _NAME.fullmatch(text):
        text = match[1]
    digits = version.id.hex()
    return bool(_HEX.fullmatch(text)) and (digits.startswith(text) or digits.endswith(text))


# As of a commit


async def file_at(talk: Talk, file: FileId, seq: int | None) -> File | None:
    """A file as of a commit, None for now; None when it was not there."""
    try:
        found = (await talk.client.file(talk.name, file, at=seq)).file
    except Refused as refused:
        if refused.code is not Code.NO_FILE:
            raise
        return None
    return found if found and found.nlink else None


async def lookup_at(talk: Talk, directory: FileId, names: Sequence[bytes], seq: int | None) -> list[File]:
    """The files that a path below a directory led through as of a commit, as far as it led."""
    found: list[File] = []
    for name in names:
        try:
            file = (await talk.client.lookup(talk.name, directory, name, at=seq)).file
        except Refused as refused:
            if refused.code is not Code.NO_FILE:
                raise
            file = None
        if file is None:
            break
        found.append(file)
        directory = file.id
        if not stat.S_ISDIR(file.mode):
            break
    return found


async def path_at(talk: Talk, target: Target, seq: int) -> list[File] | None:
    """What a path led to as of a commit, the last; before it at least the directories it led through that are gone now.

    The directories of the path that are there now are meant themselves, whatever they were called then. Where they
    were not there yet, whatever had their names is meant.
    """
    if target.file and stat.S_ISDIR(target.mode):
        found = await file_at(talk, target.file, seq)
        return [found] if found else await _from_root(talk, target, seq)
    names = target.left or target.names[-1:]
    files = await lookup_at(talk, target.directories[-1], names, seq)
    if len(files) == len(names):
        return files
    return await _from_root(talk, target, seq) or await _by_lineage(talk, target, seq)


async def _from_root(talk: Talk, target: Target, seq: int) -> list[File] | None:
    files = await lookup_at(talk, talk.bucket.root, target.names, seq)
    return files if files and len(files) == len(target.names) else None


async def _by_lineage(talk: Talk, target: Target, seq: int) -> list[File] | None:
    """A file that came to its place later: what it was elsewhere."""
    if not target.file:
        return None
    spot = await find(talk, target)
    versions = [version for version in await history(talk, spot) if version.seq <= seq]
    return [await file_of(talk, versions[-1], at=seq)] if versions else None


async def file_of(talk: Talk, version: Version, at: int | None = None) -> File:
    """A file with a version as its content; attributes as they were then, or as of a later commit."""
    found = await file_at(talk, version.file, at or version.seq)
    whole = version if version.manifest else await talk.client.version(talk.name, version.id)
    if found is None:
        found = File(version.file, version.mode, version.uid, version.gid, mtime_ns=version.mtime_ns)
    if at is None or found.version != version.id:
        found.mtime_ns = version.mtime_ns
    found.version, found.size, found.manifest = version.id, version.size, whole.manifest
    return found


async def moment(talk: Talk, time_ns: int) -> Moment:
    """The commit that a time means. Raises ``MountError`` for a time before the first."""
    found = await talk.client.moment(talk.name, time_ns)
    if not found.seq:
        raise MountError(f"bucket {talk.name} was empty then: its history begins later")
    return found
