"""System calls that may not come back, made in a process of their own and timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness import Mount, stuck

PRELUDE = """
import errno, os, sys
def read(path):
    with open(path, 'rb', 0) as f: return f.read()
def write(path, size, fsync=False, flags=os.O_TRUNC):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        done = 0
        while done < size: done += os.write(fd, os.urandom(min(size - done, 1 << 20)))
        if fsync: os.fsync(fd)
    finally:
        os.close(fd)
path = sys.argv[1]
try:
    print(eval(sys.argv[2]) or '')
except OSError as error:
    print(errno.errorcode[error.errno])
"""
LENIENCE = 5.0
"""Seconds on top of a deadline: starting the process, a machine that does other things, the last retry."""


class Attempt:
    """A Python expression, evaluated in another process; ``path`` is its file, ``read`` and ``write`` are at hand."""

    def __init__(self, expression: str, path: Path) -> None:
        self._what = f"{expression} on {path.name}"
        self._start = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", PRELUDE, path, expression],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def outcome(self, within: float) -> str:
        """The value (as text, '' for None) or the name of the errno.

        Raises AssertionError when there is none ``within`` seconds of the start, and a few more.
        """
        left = self._start + within + LENIENCE - time.monotonic()
        try:
            output, errors = self._process.communicate(timeout=max(left, 0.01))
        except subprocess.TimeoutExpired:
            threads = stuck(self._process.pid)
            for mount in Mount.live:  # or the process could not end
                mount.kill()
            self._process.kill()
            self._process.communicate()
            raise AssertionError(f"{self._what} does not end within {within} s; state D: {threads or 'no'}") from None
        assert self._process.returncode == 0, errors
        return output.strip()


def attempt(expression: str, path: Path, within: float = 1.0) -> str:
    """One `Attempt` and its outcome."""
    return Attempt(expression, path).outcome(within)


def succeeds(expression: str, path: Path, within: float = 10.0) -> Callable[[], bool]:
    """A condition for ``eventually``: the attempt does not fail with an errno."""
    return lambda: not attempt(expression, path, within).startswith("E")
