"""A node server that stands still for a moment."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Self

from tests.fuzz.orders import STOPPED_SECONDS
from tests.harness import Node


class Stops:
    """Stops a node; it goes on when told to, after ``STOPPED_SECONDS``, and at the end of the block."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._timer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.go()

    def stop(self) -> None:
        self.go()
        os.kill(self._node.pid, signal.SIGSTOP)
        # A process: a thread may have to wait for one that is in a page fault, which waits for the server.
        self._timer = subprocess.Popen(["sh", "-c", f"sleep {STOPPED_SECONDS}; kill -CONT {self._node.pid}"])

    def go(self) -> None:
        if self._timer is not None:
            self._timer.kill()
            self._timer.wait()
            self._timer = None
            os.kill(self._node.pid, signal.SIGCONT)
