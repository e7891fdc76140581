"""``mountfs doctor --deep``: what lies in a state directory, by its mount or, when there is none, here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mountfs import control
from mountfs.cli.finding import Finding
from mountfs.cli.options import show_size
from mountfs.errors import MountError, NotMounted

PATIENCE = 24 * 3600.0
"""Seconds that reading a large cache may take."""
HIT = (
    "they are dropped and fetched again. An older mountfs may have shown such bytes here, or sent them as new versions,"
    " which nothing can tell: compare these files with other copies, see `mountfs log`, `mountfs restore` what is wrong"
)
SHOWN = 20
"""Paths and ids that are named."""


def examine(state: Path) -> Iterator[Finding]:
    """Compare every cached chunk with its id, and look whether what is there is what should be there."""
    where = f"in {state}"
    if not (state / "mount.db").exists():
        yield Finding(f"content {where}", "warning", "no mount has been here", "give the --state of a mount")
        return
    try:
        found = _ask(state)
    except MountError as error:
        yield Finding(f"content {where}", "failed", str(error), "mount it, or end what holds it")
        return
    yield from _explain(found, where)


def _ask(state: Path) -> dict[str, Any]:
    """A report of :mod:`mountfs.local.checking`. Raises MountError."""
    try:
        return control.call(state / control.NAME, "check", timeout=PATIENCE)
    except NotMounted:
        return _look(state)


def _look(state: Path) -> dict[str, Any]:
    """Open the state directory as a mount would, without a server. Raises MountError."""
    import trio

    from mountfs.local.cache import Cache
    from mountfs.local.checking import Checker
    from mountfs.local.database import Database
    from mountfs.local.inodes import Inodes
    from mountfs.local.slabs import Slabs

    with closing(Database(state)) as db, closing(Slabs(state / "slabs")) as slabs:
        cache = Cache(db, slabs, 0)
        return dataclasses.asdict(trio.run(Checker(db, slabs, cache, Inodes(db)).check))


def _explain(found: dict[str, Any], where: str) -> Iterator[Finding]:
    looked = f"{found['chunks']} chunks, {show_size(found['bytes'])}"
    if found["damaged"]:
        files = f"; files with them: {_some(found['files'])}" if found["files"] else "; no file known here has them"
        yield Finding(
            f"cached chunks {where}",
            "failed" if found["dropped"] else "warning",
            f"{found['dropped']} of {looked} were not what their ids say, {len(found['damaged'])} since ever{files}",
            HIT,
        )
    else:
        yield Finding(f"cached chunks {where}", "ok", f"{looked} are what their ids say")
    if found["lost"]:
        yield Finding(
            f"content not yet sent {where}",
            "failed",
            f"bytes are gone that the server never had: {_some(found['lost'])}",
            "write these files anew, delete them, or `mountfs restore` the version before",
        )
    if found["faults"]:
        yield Finding(
            f"slabs {where}", "failed", _some(found["faults"]), "an error of mountfs: please report it with this output"
        )
    else:
        yield Finding(f"slabs {where}", "ok", "what is in use is there once, and counted")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
