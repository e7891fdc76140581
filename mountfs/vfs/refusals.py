"""What the server refuses for good: telling it, trying it again, giving it up."""

from __future__ import annotations

from functools import partial

from mountfs.control import Handler, Params, RefusedStatus
from mountfs.errors import Busy
from mountfs.local.inodes import UNKNOWN
from mountfs.local.journal import Op, Row
from mountfs.vfs.filesystem import FileSystem


def commands(fs: FileSystem) -> dict[str, Handler]:
    """The control commands of this module; ``below``, a path from the mount point on, says what they concern."""
    return {"refused": partial(_list, fs), "refused-retry": partial(_retry, fs), "refused-drop": partial(_drop, fs)}


def listed(fs: FileSystem, below: str = "") -> list[RefusedStatus]:
    """What is refused at or below a path, the oldest change first."""
    context = fs.engine.context
    found: list[RefusedStatus] = []
    for row in context.journal.some(_concerned(fs, below)):
        refusal = context.aside.refused[row.id]
        found.append(
            {
                "path": _path(fs, row),
                "operation": Op(row.op).name.lower(),
                "reason": refusal.reason,
                "time": refusal.time / 1e9,
                "needed_by": len(context.aside.with_needs([row.id])[0]) - 1,
            }
        )
    return found


def named(fs: FileSystem) -> list[str]:
    """Paths and reasons of all that is refused, for people."""
    return [f"{it['path']} (refused: {it['reason']})" for it in listed(fs)]


def _path(fs: FileSystem, row: Row) -> str:
    """Where the file of a row is now, if it is."""
    context = fs.engine.context
    inode = context.inodes.get(row.ino)
    return context.inodes.path(row.ino) if inode and inode.nlink else context.path_of(row)


def _concerned(fs: FileSystem, below: str) -> list[int]:
    """The refused rows about ``below`` or something in it."""
    context = fs.engine.context
    context.aside.look()  # what has become void is not worth a word
    rows = context.journal.some(context.aside.refused)
    return [row.id for row in rows if not below or f"{_path(fs, row)}/".startswith(f"{below}/")]


async def _list(fs: FileSystem, params: Params) -> Params:
    return {"refused": listed(fs, params["below"])}


async def _retry(fs: FileSystem, params: Params) -> Params:
    """Send them again, and wait for what becomes of it."""
    found = listed(fs, params["below"])
    fs.engine.context.aside.retry(_concerned(fs, params["below"]))
    fs.engine.hurry()
    return {"refused": found}


async def _drop(fs: FileSystem, params: Params) -> Params:
    """Give them up: what they are about is as the server has it from now on."""
    context = fs.engine.context
    found = listed(fs, params["below"])
    rows, unborn = context.aside.with_needs(_concerned(fs, params["below"]))
    written = {row.ino for row in rows if row.op == Op.WRITE} | unborn
    for row in rows:
        if row.ino in written and row.ino in context.staging.contents:
            raise Busy(f"{_path(fs, row)}: in use; close it first")
    paths = list(dict.fromkeys(_path(fs, row) for row in rows))
    _forget(fs, rows, unborn)
    for ino in unborn:
        context.staging.forget(ino)
    for ino in written - unborn:
        context.staging.abandon(ino)
    for ino in written:
        context.refused.pop(ino, None)
        context.growth.pop(ino, None)
    context.cache.space.collect()
    context.journal.announce()
    return {"refused": found, "paths": paths}


def _forget(fs: FileSystem, rows: list[Row], unborn: set[int]) -> None:
    """Take the rows out of the journal, and have asked anew what they are about."""
    context = fs.engine.context
    inodes, journal = context.inodes, context.journal
    names = {name for row in rows for name in row.names()}
    concerned = {ino for row in rows for ino in row.inos()} | {parent for parent, _ in names}
    with context.db.transaction():
        context.aside.forget(rows)
        for ino in unborn:
            context.db.execute("DELETE FROM dentry WHERE ino = ?1 OR parent = ?1", (ino,))
        for parent, name in names:
            if parent not in unborn and (parent, name) not in journal.names and inodes.get(parent):
                inodes.enter(parent, name, UNKNOWN)
        inodes.mark_stale(concerned)
    for parent, name in names:
        context.kernel.entry(parent, name)
    for ino in concerned:
        context.kernel.inode(ino)
