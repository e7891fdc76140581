"""What a folder must hold after `writer` was interrupted: computed from the writer's log alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mount.writer import BLOCK, BLOCKS, RECORD, body

Contents = dict[str, bytes]
ANY = object()
"""Stands for whatever an interrupted writer can leave in a file that it had not closed."""


class Ledger:
    """The acknowledged state of one writer's files, and what its last step may have made of them.

    ``sure`` has the files as they must be; ``maybe`` has, for the paths of a step that was not acknowledged, all
    contents that are right (None: no file). ``durable`` has for each path all contents that the server may show
    since the path was last fsynced, the fsynced one first.
    """

    def __init__(self, log: Path) -> None:
        self.sure: Contents = {}
        self.maybe: dict[str, list[object]] = {}
        self.durable: dict[str, list[object]] = {}
        self.directories: set[str] = set()
        self.maybe_directories: set[str] = set()
        self.moving: tuple[str, str] | None = None
        steps = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        done = [step for step in steps if step.get("done")]
        for step in done:
            self._acknowledge(step)
        if steps and not steps[-1].get("done"):
            self._interrupt(steps[-1])

    def _acknowledge(self, step: dict[str, Any]) -> None:
        if step["op"] == "mkdir":
            self.directories.add(step["path"])
            return
        for path, content in self._effect(step).items():
            fsynced = (step["fsync"] and step["op"] != "remove") or step["op"] == "move"
            if fsynced:
                self.durable[path] = [content]
            elif path in self.durable:
                self.durable[path].append(content)
            if content is None:
                self.sure.pop(path)
            else:
                self.sure[path] = content

    def _interrupt(self, step: dict[str, Any]) -> None:
        if step["op"] == "mkdir":
            self.maybe_directories.add(step["path"])
            return
        for path, content in self._effect(step).items():
            before = self.sure.get(path)
            allowed: list[object] = [before, content]
            if step["op"] == "new":
                allowed.append(ANY)
            elif step["op"] == "append":
                assert content is not None
                allowed += [content[:size] for size in range(len(before or b""), len(content))]
            elif step["op"] == "patch" and before is None:
                allowed.append(b"")
            self.maybe[path] = allowed
            if path in self.durable:
                self.durable[path].append(content)
        if step["op"] == "move":
            self.moving = step["path"], step["to"]
        if step["op"] == "save":
            self.maybe[step["path"] + ".tmp"] = [None, ANY]

    def _effect(self, step: dict[str, Any]) -> dict[str, bytes | None]:
        path = step["path"]
        match step["op"]:
            case "new" | "save":
                return {path: body(path, step["version"], step["size"])}
            case "append":
                return {path: self.sure.get(path, b"") + body(path, step["version"], RECORD)}
            case "patch":
                blocks = bytearray(self.sure.get(path, b""))
                start = step["block"] * BLOCK
                blocks.extend(bytes(max(0, start + BLOCK - len(blocks))))
                blocks[start : start + BLOCK] = body(path, step["version"], BLOCK)
                assert len(blocks) <= BLOCK * BLOCKS
                return {path: bytes(blocks)}
            case "remove":
                return {path: None}
            case "move":
                return {path: None, step["to"]: self.sure[path]}
        raise AssertionError(step)

    def check_folder(self, root: Path) -> None:
        """Everything acknowledged is there, whole, and nothing else is."""
        seen, directories = _read(root, self.directories | self.maybe_directories)
        missing = self.directories - directories
        assert not missing, f"directories are missing: {missing}"
        wrong = [
            _told(path, self.sure.get(path), seen.get(path))
            for path in sorted(self.sure.keys() | seen.keys())
            if not _allowed([self.sure.get(path), *self.maybe.get(path, [])], seen.get(path))
        ]
        assert not wrong, "\n".join(wrong)
        assert not self.moving or len(seen.keys() & set(self.moving)) == 1, f"{self.moving}: not under one of the names"

    def check_server(self, root: Path) -> None:
        """``root`` is another mount with an empty state: everything fsynced is there, as it was or as it became."""
        seen, _ = _read(root, self.directories)
        wrong = [
            _told(path, contents[0] if isinstance(contents[0], bytes) else None, seen.get(path))
            for path, contents in self.durable.items()
            if not _allowed([*contents, *self.maybe.get(path, [])], seen.get(path))
        ]
        assert not wrong, "\n".join(wrong)

    def resolve(self, root: Path) -> None:
        """Remove the files of the interrupted step, so that the next check can be exact."""
        for path in self.maybe:
            (root / path).unlink(missing_ok=True)
            self.sure.pop(path, None)
        self.maybe.clear()
        self.moving = None


def _read(root: Path, directories: Iterable[str]) -> tuple[Contents, set[str]]:
    seen: Contents = {}
    found = set()
    for directory in directories:
        if (root / directory).is_dir():
            found.add(directory)
            for entry in os.scandir(root / directory):
                if not entry.is_dir():
                    seen[f"{directory}/{entry.name}"] = Path(entry).read_bytes()
    return seen, found


def _allowed(allowed: Iterable[object], content: bytes | None) -> bool:
    return any(content is not None if one is ANY else one == content for one in allowed)


def _told(path: str, should: bytes | None, content: bytes | None) -> str:
    """What is wrong with a file."""
    if content is None or should is None:
        return f"{path}: {'is missing' if content is None else 'should not exist'}"
    same = next(
        (n for n, (x, y) in enumerate(zip(content, should, strict=False)) if x != y), min(len(content), len(should))
    )
    rest = "zeros" if not any(content[same:]) else repr(content[same : same + 40])
    return f"{path}: {len(content)} bytes instead of {len(should)}, different from byte {same} on ({rest})"
