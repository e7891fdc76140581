"""A program that works in a folder and notes, on another disk, what it began and what was acknowledged.

``python writer.py FOLDER LOG SEED COUNT``: ``COUNT`` random operations, the same for the same seed. Each is a line
of JSON in the log before it begins and another one, ``"done": true``, after the system calls of it have
returned. Ends with 0 when all is done and with 3, the errno on standard output, when a call failed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys

BLOCK = 1024
BLOCKS = 32
RECORD = 700
SIZES = [0, 1, 300, 3_000, 3_000, 20_000, 20_000, 140_000, 300_000, 1_500_000]


def body(path: str, version: int, size: int) -> bytes:
    """The content of a version of a file: it tells where it belongs, and compresses badly."""
    mark = f"{path} {version} {size}\n".encode()
    return (mark + random.Random(mark).randbytes(size))[:size]


def plan(seed: int, count: int) -> list[dict[str, object]]:
    """The operations that a seed stands for, in order."""
    rng = random.Random(seed)
    directory = f"w{seed}"
    steps: list[dict[str, object]] = [{"op": "mkdir", "path": directory}, {"op": "mkdir", "path": f"{directory}/moved"}]
    files: list[str] = []
    for version in range(1, count + 1):
        step: dict[str, object] = {"version": version, "fsync": rng.random() < 0.15}
        op = rng.choice(["new"] * 5 + ["save"] * 3 + ["append"] * 2 + ["patch", "remove", "move"])
        if op in ("remove", "move") and not files:
            op = "new"
        if op == "new":
            step |= {"path": f"{directory}/file{version}", "size": rng.choice(SIZES)}
            files.append(f"{directory}/file{version}")
        elif op == "save":
            step |= {"path": f"{directory}/document{rng.randrange(3)}", "size": rng.choice(SIZES)}
        elif op == "append":
            step |= {"path": f"{directory}/log{rng.randrange(2)}"}
        elif op == "patch":
            step |= {"path": f"{directory}/blocks", "block": rng.randrange(BLOCKS)}
        else:
            path = files.pop(rng.randrange(len(files)))
            step |= {"path": path, "to": path.replace(directory, f"{directory}/moved")}
        steps.append(step | {"op": op})
    return steps


def write(path: str, flags: int, data: bytes, offset: int = 0, *, fsync: bool) -> None:
    """Open, write in pieces, perhaps fsync, close."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        for start in range(0, len(data), 100_000):
            os.write(fd, data[start : start + 100_000])
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def do(root: str, step: dict[str, object]) -> None:
    """Do one step. Raises OSError."""
    path, fsync = str(step["path"]), bool(step.get("fsync"))
    full, version, size = os.path.join(root, path), int(str(step.get("version", 0))), int(str(step.get("size", 0)))
    match step["op"]:
        case "mkdir":
            os.mkdir(full)
        case "new":
            write(full, os.O_EXCL, body(path, version, size), fsync=fsync)
        case "save":
            write(full + ".tmp", os.O_TRUNC, body(path, version, size), fsync=fsync)
            os.rename(full + ".tmp", full)
            if fsync:
                fsync_directory(os.path.dirname(full))
        case "append":
            write(full, os.O_APPEND, body(path, version, RECORD), fsync=fsync)
        case "patch":
            write(full, 0, body(path, version, BLOCK), int(str(step["block"])) * BLOCK, fsync=fsync)
        case "remove":
            os.unlink(full)
        case "move":
            os.rename(full, os.path.join(root, str(step["to"])))
            fsync_directory(os.path.dirname(full))


def main(root: str, log: str, seed: int, count: int) -> int:
    """Work; returns the exit code."""
    notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for step in plan(seed, count):
        os.write(notes, json.dumps(step).encode() + b"\n")
        try:
            do(root, step)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], step)
            return 3
        os.write(notes, json.dumps(step | {"done": True}).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
