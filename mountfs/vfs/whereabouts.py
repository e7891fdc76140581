"""What the server calls a path of the mount, and when the mount shows what somebody did there.

For commands that ask the server themselves, about history.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import trio

from mountfs.control import Handler, Params
from mountfs.errors import MountError
from mountfs.vfs.filesystem import FileSystem
from mountfs.vfs.history.names import real
from nodeserver.client import ClientError
from nodeserver.protocol.ids import ROOT_INO

FRESH = 5.0
"""Seconds to spend on hearing of what others did."""


class Location(NamedTuple):
    """A path, as far as there is something now."""

    bucket: str
    directories: list[bytes]
    """File ids from the root of the bucket on, down to the innermost directory of the path that exists."""
    left: list[bytes]
    """The names behind that directory: all but perhaps the first stand for nothing."""
    file: bytes
    """File id of what the path names; empty when there is nothing."""
    mode: int


def commands(fs: FileSystem) -> dict[str, Handler]:
    """The control commands of this module."""
    return {"locate": partial(_locate, fs), "catch-up": partial(_catch_up, fs), "paths": partial(_paths, fs)}


async def locate(fs: FileSystem, names: Sequence[bytes]) -> Location | None:
    """Find ``names`` below the root of a mount; None for what is in no bucket. Raises OSError."""
    inode = await fs.tree.directory(ROOT_INO)
    rest = list(names)
    if not inode.bucket:
        child = await fs.tree.child(inode, rest.pop(0)) if rest else None
        if child is None:
            return None
        inode = child
    bucket = fs.engine.context.buckets.by_id[inode.bucket].name
    directories = [inode.file_id]
    while rest:
        child = await fs.tree.child(inode, rest[0])
        if child is None or (len(rest) > 1 and not child.is_dir):
            return Location(bucket, directories, rest, b"", 0)
        inode = child
        if inode.is_dir:
            directories.append(inode.file_id)
        rest.pop(0)
    return Location(bucket, directories, [], inode.file_id, inode.mode)


async def caught_up(fs: FileSystem, bucket: str, seq: int, deadline: float) -> bool:
    """Whether all commits up to ``seq`` show in the mount within ``deadline`` seconds."""
    buckets = fs.engine.context.buckets
    with trio.move_on_after(deadline) as scope:
        while (state := buckets.by_name(bucket)) is not None and state.seq < seq:
            await buckets.advanced()
        await fs.engine.context.kernel.settled()
    return not scope.cancelled_caught


def without_versions(names: Sequence[bytes], versions: bytes) -> tuple[list[bytes], bytes, bytes]:
    """A path through the directory called ``versions`` as a plain one, and the time or the version that it names.

    ``a/.versions/@-1h/b`` is ``a/b`` at ``@-1h``, ``a/.versions/b/NAME`` the version ``NAME`` of ``a/b``. Raises
    ``MountError``.
    """
    if versions not in names[:-1]:
        return list(names), b"", b""
    at = names.index(versions)
    before, first, rest = names[:at], names[at + 1], names[at + 2 :]
    name = real(first)
    if name is None:
        return [*before, *rest], first, b""
    if len(rest) > 1:
        raise MountError(f"{os.fsdecode(b'/'.join(names))}: not a version")
    return [*before, name], b"", b"".join(rest)


async def _locate(fs: FileSystem, params: Params) -> Params:
    """``path`` is below the mount point, and may lead through a directory of versions."""
    path = params["path"]
    given = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
    names, moment, version = without_versions(given, os.fsencode(fs.options.versions_name))
    try:
        found = await locate(fs, names)
        if found:
            # What is known of the path may be of before: also when the change feed was quicker than this.
            await _catch_up_with_server(fs, found.bucket)
            found = await locate(fs, names)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from None
    if found is None:
        raise MountError(f"{path}: not in a bucket")
    return {
        "names": [os.fsdecode(name) for name in (names if fs.engine.context.config.bucket else names[1:])],
        "moment": os.fsdecode(moment),
        "version": os.fsdecode(version),
        "bucket": found.bucket,
        "directories": [directory.hex() for directory in found.directories],
        "left": [os.fsdecode(name) for name in found.left],
        "file": found.file.hex(),
        "mode": found.mode,
    }


async def _catch_up_with_server(fs: FileSystem, bucket: str) -> None:
    """Wait for what others did so far, as far as the server can be asked."""
    with contextlib.suppress(ClientError):
        await caught_up(fs, bucket, (await fs.engine.context.client.bucket(bucket, deadline=FRESH)).seq, FRESH)


async def _catch_up(fs: FileSystem, params: Params) -> Params:
    return {"shown": await caught_up(fs, params["bucket"], params["seq"], float(params["deadline"]))}


async def _paths(fs: FileSystem, params: Params) -> Params:
    inodes = fs.engine.context.inodes
    known = {file: inodes.get(inodes.ino(bytes.fromhex(file))) for file in params["files"]}
    return {"paths": {file: inodes.path(inode.ino) for file, inode in known.items() if inode and inode.nlink}}
