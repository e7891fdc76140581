"""What the tests of ``.versions`` share."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

NOBODY = 65534
LINKS = {"current", "previous"}


def called(time_ns: int) -> str:
    """A moment as a name below ``.versions``."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"@{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H-%M-%S}.{rest:09}Z"


def versions(path: Path) -> list[Path]:
    """The versions of what has, or had, the name ``path``, oldest first."""
    directory = path.parent / ".versions" / path.name
    return [directory / name for name in sorted(os.listdir(directory)) if name not in LINKS]


def as_nobody(call: str, path: Path, top: Path) -> str:
    """The name of the errno that a Python call with ``path`` fails with when another user makes it, or ''.

    He goes from ``top`` on: he may not come to there.
    """
    script = (
        "import errno, os, sys\nos.chdir(sys.argv[1])\npath = sys.argv[2]\nos.setgroups([])\n"
        f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY})\nos.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        f"try:\n    {call}\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    command = [sys.executable, "-ISc", script, str(top), str(path.relative_to(top))]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
