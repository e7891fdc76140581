"""How much memory the mount daemon takes: after a walk over many files, after copying much in and out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measures import MIB
from benchmarks.source import incompressible
from benchmarks.systems import MountFS, running

LIMIT = 300
"""MiB that the daemon may have resident."""
FILES_A_DIRECTORY = 1_000
FILE = 256 * MIB
"""Bytes of each file that is copied."""


def measure(base: Path, files: int, size: int, console: Console) -> tuple[dict[str, Any], bool]:
    """Resident memory in MiB after each step, with the peak during it; and whether one is over the limit."""
    steps: dict[str, dict[str, float]] = {}

    def note(step: str) -> None:
        steps[step] = _memory(system.pid)
        console.print(f"{step:32} {steps[step]['resident_mib']:6.0f} MiB, peak {steps[step]['peak_mib']:6.0f} MiB")
        _reset_peak(system.pid)

    with running(MountFS, base / "mountfs") as system:
        note("mounted")
        for first in range(0, files, FILES_A_DIRECTORY):
            directory = system.path / f"d{first // FILES_A_DIRECTORY:05}"
            directory.mkdir()
            for number in range(first, min(files, first + FILES_A_DIRECTORY)):
                (directory / f"f{number:07}").touch()
        note(f"{files} files made")
        system.durable()
        note("the files durable")
        system.cold()
        if (found := sum(1 for _ in _walk(system.path))) != files:
            raise RuntimeError(f"{found} files found instead of {files}")
        note(f"cold walk over {files} files")
        for number in range(-(-size // FILE)):
            with open(system.path / f"large{number}", "wb", buffering=0) as stream:
                for block in incompressible(min(FILE, size - number * FILE), MIB):
                    stream.write(block)
        note(f"{size // MIB} MiB copied in")
        system.durable()
        note("the copies durable")
        system.cold()
        buffer = bytearray(MIB)
        for number in range(-(-size // FILE)):
            with open(system.path / f"large{number}", "rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        note(f"{size // MIB} MiB copied out, cold")
    report = {"limit_mib": LIMIT, "steps": steps}
    return report, any(step["resident_mib"] > LIMIT for step in steps.values())


def to_json(about: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Everything, for a file."""
    return json.dumps({**about, "memory": report}, indent=1) + "\n"


def _walk(path: Path) -> Iterator[os.stat_result]:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield entry.stat(follow_symlinks=False)


def _memory(pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE)}
    return {"resident_mib": round(kib["VmRSS"] / 1024, 1), "peak_mib": round(kib["VmHWM"] / 1024, 1)}


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
