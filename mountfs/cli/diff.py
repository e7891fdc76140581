"""``mountfs diff``."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import click

from mountfs.cli.history import textdiff, versions
from mountfs.cli.history.content import Reader
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import Target, target
from mountfs.cli.history.show import local_time, parse_time, print_json, printable, utc_time
from mountfs.cli.history.treediff import Difference, attributes_differ, differences
from mountfs.cli.history.trees import tree
from mountfs.cli.options import LocalPath
from mountfs.cli.progress import Count, counting
from mountfs.errors import MountError
from nodeserver.protocol.wire import File, Manifest, Version

COLORS = {b"-": 31, b"+": 32, b"@": 36}


class Trouble(MountError):
    """There is no answer: as diff(1) has it, 1 says that something differs."""

    exit_code = 2


class Times(click.Command):
    """A command whose arguments may be times such as ``-1h``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As :class:`click.Command`; a time ago is no option."""
        return super().parse_args(ctx, [f"@{arg}" if re.fullmatch(r"-(\d+[smhdw])+", arg) else arg for arg in args])


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two things compared; ``file`` None for nothing."""

    label: str
    file: File | None
    seq: int | None
    when: str | None
    """In UTC, for programs; None for now."""


@dataclasses.dataclass
class Answer:
    """What differs."""

    before: Side
    after: Side
    same: bool
    text: list[bytes] = dataclasses.field(default_factory=list)
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of the versions, by label, where there is no text."""
    tree: list[Difference] | None = None


@click.command("diff", cls=Times)
@click.argument("path", type=LocalPath())
@click.argument("a", required=False)
@click.argument("b", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(path: Path, a: str | None, b: str | None, as_json: bool) -> None:
    """Compare versions of a file, or a directory with what it was.

    A and B are versions as mountfs log shows them, or times. Default: the version before the newest, and what is
    there now; for a directory A must be a time. Exit code 0 when both are the same, 1 when not, 2 for trouble.
    """
    try:
        place = target(path)
        sides = [side for side in (place.version or place.moment, a, b) if side]
        if len(sides) > 2:
            raise MountError(f"{path}: names one side already; give at most one more")
        answer = counting(
            f"comparing {path}",
            lambda count: talk_of(place.record, place.bucket, lambda talk: _compare(talk, place, sides, count)),
        )
    except MountError as error:
        raise Trouble(str(error)) from error
    if as_json:
        print_json(_plain(place, answer))
    else:
        _show(place, answer)
    if not answer.same:
        raise click.exceptions.Exit(1)


async def _compare(talk: Talk, place: Target, sides: list[str], count: Count) -> Answer:
    spot = await versions.find(talk, place)
    history = await versions.history(talk, spot)
    before = await _side(talk, place, history, sides[0]) if sides else await _default(talk, place, spot, history)
    after = await _side(talk, place, history, sides[1]) if sides[1:] else await _now(talk, place)
    files = [side.file for side in (before, after) if side.file]
    if not files:
        raise MountError(f"{place.shown}: nothing was there at either time")
    if any(stat.S_ISDIR(file.mode) for file in files):
        return await _compare_trees(talk, before, after, count)
    return await _compare_files(talk, before, after)


async def _default(talk: Talk, place: Target, spot: versions.Spot, history: list[Version]) -> Side:
    """What comes before the present content; of a deleted file its last."""
    if spot.is_dir:
        raise MountError(f"{place.shown}: is a directory; say since when: mountfs diff {place.shown} -1h")
    least = 1 if spot.live else 0
    if len(history) <= least:
        raise MountError(f"{place.shown}: there is no version before this one")
    return await _of_version(talk, place, history[-1 - least])


async def _side(talk: Talk, place: Target, history: list[Version], text: str) -> Side:
    if versions.means_version(history, text):
        return await _of_version(talk, place, versions.pick(history, text, place.shown))
    time_ns = parse_time(text)
    seq = (await talk.client.moment(talk.name, time_ns)).seq
    found = await versions.path_at(talk, place, seq) if seq else None
    return Side(f"{_name(place)}\t{local_time(time_ns)}", found[-1] if found else None, seq, utc_time(time_ns))


def _name(place: Target) -> str:
    return printable(os.fsencode(place.shown))


async def _of_version(talk: Talk, place: Target, version: Version) -> Side:
    label = f"{_name(place)}\t{local_time(version.committed_ns)} #{version.number} {versions.short(version.id)}"
    return Side(label, await versions.file_of(talk, version), version.seq, utc_time(version.committed_ns))


async def _now(talk: Talk, place: Target) -> Side:
    return Side(_name(place), await versions.file_at(talk, place.file, None) if place.file else None, None, None)


async def _compare_trees(talk: Talk, before: Side, after: Side, count: Count) -> Answer:
    trees = [await tree(talk, side.file, side.seq, count) if side.file else [] for side in (before, after)]
    reader, found = Reader(talk), []
    for it in differences(*trees):
        if it.kind != "changed" or not await _same_content(talk, reader, it.before, it.after):
            found.append(it)
        elif it.before and it.after and attributes_differ(it.before, it.after):
            found.append(it._replace(kind="attributes"))
    return Answer(before, after, not found, tree=found)


async def _compare_files(talk: Talk, before: Side, after: Side) -> Answer:
    reader = Reader(talk)
    answer = Answer(before, after, await _same_content(talk, reader, before.file, after.file))
    if answer.same:
        return answer
    if (one := await _text(talk, reader, before)) is None or (other := await _text(talk, reader, after)) is None:
        for side in (before, after):
            if side.file and side.file.version:
                answer.hashes[side.label] = (await talk.client.version(talk.name, side.file.version)).hash.hex()
        return answer
    labels = [side.label if side.file else os.devnull for side in (before, after)]
    answer.text = list(textdiff.unified(one, other, labels[0], labels[1]))
    return answer


async def _text(talk: Talk, reader: Reader, side: Side) -> bytes | None:
    """The content to compare line by line; None when it is no text, or too much."""
    if side.file is None:
        return b""
    if not stat.S_ISREG(side.file.mode) or side.file.size > textdiff.MOST:
        return None
    data = await reader.read(await reader.slices(await _manifest(talk, side.file)))
    return data if textdiff.is_text(data) else None


async def _same_content(talk: Talk, reader: Reader, one: File | None, other: File | None) -> bool:
    """Whether two files have the same content, in whatever chunks; reads what it must."""
    if one is None or other is None or stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        return False
    if not stat.S_ISREG(one.mode):
        return (one.target, one.rdev) == (other.target, other.rdev)
    if one.version == other.version or one.size != other.size:
        return one.size == other.size
    slices = [await reader.slices(await _manifest(talk, file)) for file in (one, other)]
    return await reader.equal(*slices)


async def _manifest(talk: Talk, file: File) -> Manifest | None:
    """A file's manifest, also when a listing left it out."""
    if file.manifest is None and file.size:
        return (await talk.client.version(talk.name, file.version)).manifest
    return file.manifest


def _plain(place: Target, answer: Answer) -> dict[str, Any]:
    """An answer for programs."""
    found: dict[str, Any] = {"path": place.shown, "same": answer.same}
    for name, side in (("a", answer.before), ("b", answer.after)):
        found[name] = {"time": side.when} | _facts(side.file)
        if side.label in answer.hashes:
            found[name]["hash"] = answer.hashes[side.label]
    if answer.tree is None:
        return found | {"diff": b"".join(answer.text).decode() if answer.text else None}
    differences = [
        {
            "change": it.kind,
            "path": os.fsdecode(it.path),
            "new_path": os.fsdecode(it.new_path) or None,
            "a": _facts(it.before),
            "b": _facts(it.after),
        }
        for it in answer.tree
    ]
    return found | {"differences": differences}


def _facts(file: File | None) -> dict[str, Any]:
    if file is None:
        return {"exists": False}
    return {
        "exists": True,
        "mode": f"{file.mode:o}",
        "size": file.size,
        "mtime": utc_time(file.mtime_ns),
        "version": file.version.hex() or None,
    }


SIGNS = {"added": "+", "removed": "-", "moved": ">", "changed": "~", "attributes": "~"}


def _show(place: Target, answer: Answer) -> None:
    if answer.tree is not None:
        for it in answer.tree:
            click.echo(_line(it))
    elif answer.text:
        for line in answer.text:
            click.echo(_colored(line), nl=False)
    elif not answer.same:
        for sign, side in (("---", answer.before), ("+++", answer.after)):
            label = side.label.replace("\t", "  ")
            words = (_kind(side.file), f"hash {answer.hashes[side.label]}" if side.label in answer.hashes else "")
            click.echo(f"{sign} {label}: {', '.join(filter(None, words))}")


def _line(it: Difference) -> str:
    words = [SIGNS[it.kind], printable(it.path) or "."]
    if it.new_path:
        words.append(f"-> {printable(it.new_path)}")
    if it.kind == "attributes":
        words.append("(attributes)")
    if it.kind == "changed" and it.before and it.after:
        words.append(f"({_kind(it.before)} -> {_kind(it.after)})")
    return " ".join(words)


def _kind(file: File | None) -> str:
    if file is None:
        return "nothing"
    if stat.S_ISREG(file.mode):
        return f"{file.size} bytes, version {versions.short(file.version)}" if file.version else "empty"
    if stat.S_ISLNK(file.mode):
        return f"symbolic link to {printable(file.target)}"
    return "directory" if stat.S_ISDIR(file.mode) else "special file"


def _colored(line: bytes) -> bytes:
    # Not through click.style: a diff is bytes, and must stay what it is for patch.
    if (color := COLORS.get(line[:1])) and sys.stdout.isatty():
        return b"\x1b[%dm%s\x1b[0m\n" % (color, line.rstrip(b"\n"))
    return line
