"""Put back what was, by commits that refer to content the server has."""

from __future__ import annotations

import dataclasses
import os
import socket
import stat
import time
from collections.abc import Iterable

import trio

from mountfs.cli.history import versions
from mountfs.cli.history.node import Talk
from mountfs.cli.history.paths import Target
from mountfs.cli.history.restore_plan import Content, Plan, Step, bring_back, commits, plan, unread
from mountfs.cli.history.show import printable
from mountfs.cli.history.trees import tree
from mountfs.cli.progress import Count
from mountfs.errors import MountError
from mountfs.sync.errors import ungrouped
from nodeserver.content.manifest import content_hash
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import Commit, Create, File, FileId, Manifest, Result, Unlink, VersionId, became

AT_ONCE = 8
"""Long manifests asked for at the same time."""
NAMED = 5
"""Paths that a refusal names."""


@dataclasses.dataclass(frozen=True)
class Was:
    """What a path led to."""

    file: File
    above: list[tuple[bytes, File]]
    """The directories it lay in that are gone now, outermost first, by name."""
    seq: int
    was_in: FileId = b""
    """The directory it lay in; empty when that is the one it would be put back to."""


@dataclasses.dataclass
class Outcome:
    """What was done, or would be."""

    plan: Plan
    seq: int = 0
    """The last commit; 0 for none."""
    problems: list[tuple[bytes, str]] = dataclasses.field(default_factory=list)
    """What the server did otherwise, by path."""


async def was_at(talk: Talk, target: Target, seq: int, when: str) -> Was:
    """What a path led to as of a commit. Raises ``MountError``."""
    found = await versions.path_at(talk, target, seq)
    if not found:
        raise versions.nothing(target, when)
    gone = found[-len(target.left) : -1] if target.left else []
    above = list(zip(target.left[:-1], gone, strict=True))
    return Was(found[-1], above, seq, found[-2].id if len(found) > 1 else b"")


async def was_version(talk: Talk, target: Target, text: str) -> Was:
    """A file with one of the versions of its place as content. Raises ``MountError``."""
    spot = await versions.find(talk, target)
    if not stat.S_ISREG(spot.mode):
        raise MountError(f"{target.shown}: only files have versions; restore it with --at TIME")
    version = versions.pick(await versions.history(talk, spot), text, target.shown)
    file = await versions.file_of(talk, version)
    above = [] if target.file else await _directories_at(talk, target, version.seq)
    return Was(file, above, version.seq, spot.directory)


async def _directories_at(talk: Talk, target: Target, seq: int) -> list[tuple[bytes, File]]:
    names = target.left[:-1]
    found = await versions.lookup_at(talk, target.directories[-1], names, seq)
    if len(found) < len(names):
        raise MountError(f"{target.shown}: its directory is gone; restore that, or give --to DEST")
    return list(zip(names, found, strict=True))


async def put_back(
    talk: Talk, target: Target, was: Was, to: Target | None, *, delete: bool, dry_run: bool, count: Count
) -> Outcome:
    """Restore what was in its place, or ``to`` another. Raises ``MountError`` with nothing done."""
    then = await tree(talk, was.file, was.seq, count)
    place, above, top = await _place(talk, target, was, to)
    now = {entry.name: entry.file for entry in await tree(talk, top, None)} if top else {}
    count.done, count.total = 0, None
    contents = await _contents(talk, unread(then, now))
    key = talk.bucket.chunk_key

    def content_of(file: File) -> Content:
        if file.version in contents:
            return contents[file.version]
        manifest = file.manifest or Manifest([])
        return Content(content_hash(key, manifest.slices), manifest)

    now_ns, copy = time.time_ns(), to is not None
    outcome = Outcome(plan(then, now, place, content_of, was_in=was.was_in, copy=copy, delete=delete, time_ns=now_ns))
    if blocked := outcome.plan.in_the_way:
        names = ", ".join(printable(b"/".join(filter(None, (os.fsencode(target.shown), p)))) for p in blocked[:NAMED])
        raise MountError(
            f"{names}{' and more' if len(blocked) > NAMED else ''}: something else is there now;"
            " --delete replaces it, --to DEST restores elsewhere"
        )
    outcome.plan.steps[:0] = above
    if not dry_run:
        await send(talk, outcome, count)
    return outcome


async def remove(talk: Talk, spot: versions.Spot) -> Outcome:
    """Delete a file again."""
    outcome = Outcome(Plan([Step(b"", Unlink(spot.directory, spot.name, spot.file, time.time_ns()))], {b"": "delete"}))
    await send(talk, outcome, Count())
    return outcome


async def _place(
    talk: Talk, target: Target, was: Was, to: Target | None
) -> tuple[tuple[FileId, bytes], list[Step], File | None]:
    """Where it goes, the directories to make first, and what is there now."""
    if to is not None:
        return await _elsewhere(talk, target, was, to), [], None
    if target.file:
        spot = await versions.find(talk, target)
        return (spot.directory, spot.name), [], await versions.file_at(talk, target.file, None)
    directory = target.directories[-1]
    if len(target.left) > 1 and await versions.lookup_at(talk, directory, target.left[:1], None):
        raise MountError(f"{target.shown}: {printable(target.left[0])} is no directory now; give --to DEST")
    above = []
    for name, then in was.above:
        now_ns = time.time_ns()
        if then.gone:
            above += bring_back(b"", (directory, name), then, now_ns)
            directory = then.id
        else:
            file = File(new_id(), then.mode, then.uid, then.gid, mtime_ns=then.mtime_ns, xattrs=then.xattrs)
            above.append(Step(b"", Create(directory, name, file, now_ns)))
            directory = file.id
    return (directory, target.left[-1]), above, None


async def _elsewhere(talk: Talk, target: Target, was: Was, to: Target) -> tuple[FileId, bytes]:
    if (to.record.mountpoint, to.bucket) != (target.record.mountpoint, target.bucket) or to.moment or to.version:
        raise MountError(f"{to.shown}: not in the same bucket; {_copy_instead(target, to)}")
    if len(to.left) > 1:
        raise MountError(f"{to.shown}: {printable(to.left[0])} is no directory; make it first")
    if to.left:
        return to.directories[-1], to.left[0]
    if not stat.S_ISDIR(to.mode) or stat.S_ISDIR(was.file.mode):
        raise MountError(f"{to.shown}: exists; give a name that is free")
    name = target.names[-1]
    if await versions.lookup_at(talk, to.file, [name], None):
        raise MountError(f"{to.shown}/{printable(name)}: exists; give a name that is free")
    return to.file, name


def _copy_instead(target: Target, to: Target) -> str:
    directory = os.path.dirname(target.shown) or "."
    return f"copy it: cp -a {directory}/.versions/@TIME/{os.path.basename(target.shown)} {to.shown}"


async def _contents(talk: Talk, ids: Iterable[VersionId]) -> dict[VersionId, Content]:
    """Hashes and manifests of versions."""
    found: dict[VersionId, Content] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def ask(version_id: VersionId) -> None:
        async with limit:
            version = await talk.client.version(talk.name, version_id)
        found[version_id] = Content(version.hash, version.manifest or Manifest([]))

    with ungrouped():
        async with trio.open_nursery() as nursery:
            for version_id in ids:
                nursery.start_soon(ask, version_id)
    return found


async def send(talk: Talk, outcome: Outcome, count: Count) -> None:
    """Commit the steps of a plan, in order."""
    client = new_id()
    count.done, count.total = 0, len(outcome.plan.steps)
    for group in commits(outcome.plan.steps):
        batch = Commit(client, new_id(), [step.op for step in group], socket.gethostname())
        answer = await talk.client.commit(talk.name, batch)
        outcome.seq = answer.seq
        outcome.problems += [
            (step.path, _problem(result))
            for step, result in zip(group, answer.results, strict=True)
            if result.status not in ("ok", "same") and not became(step.op, result)
        ]
        count.done += len(group)


def _problem(result: Result) -> str:
    if result.status == "conflict":
        return f"changed meanwhile: what was restored is in {printable(result.name)}"
    if result.status == "quota":
        return "the quota of the bucket is exceeded: its content was not restored"
    return "changed meanwhile: left as it is"
