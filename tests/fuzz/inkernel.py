"""Makes a script's calls through the kernel, on a mount."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import time
from typing import Any

from mountfs import control
from tests.fuzz.orders import PAGE, Calls, Different, drive
from tests.fuzz.stops import Stops
from tests.harness import Mount, Node

PATIENCE = 60.0
"""Seconds that a command may take."""


class InKernel:
    """A mount of one bucket of a node; ends with it mounted.

    ``direct``: files are opened with O_DIRECT, and the pages around what is to be written are read, changed and
    written. ``mapped``: what is written goes through a shared mapping, and what is read comes from one.
    """

    def __init__(self, mount: Mount, node: Node, *, direct: bool = False, mapped: bool = False) -> None:
        self._mount = mount
        self._node = node
        self._flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
        self._direct = direct
        self._mapped = mapped
        self._open: set[int] = set()

    def run(self, calls: Calls) -> None:
        """Make all calls. Raises Different, OSError."""
        with Stops(self._node) as self._stops:
            try:
                drive(calls, self)
            finally:
                for fd in self._open:
                    os.close(fd)
                self._open.clear()

    def _at(self, name: str) -> str:
        return os.path.join(self._mount.path, name)

    # Calls of the script

    def open(self, name: str, empty: bool) -> int:
        fd = os.open(self._at(name), self._flags | os.O_CREAT | (os.O_TRUNC if empty else 0), 0o644)
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self._mapped:
            self._write_mapped(fd, data, offset)
        elif self._direct:
            self._write_direct(fd, data, offset)
        else:
            assert os.pwrite(fd, data, offset) == len(data)

    def _write_mapped(self, fd: int, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if os.fstat(fd).st_size < end:
            os.ftruncate(fd, end)
        with mmap.mmap(fd, end) as mapping:
            mapping[offset:end] = data

    def _write_direct(self, fd: int, data: bytes, offset: int) -> None:
        """Whole pages around the range, then the size that a plain write would have left."""
        end = offset + len(data)
        size = max(os.fstat(fd).st_size, end)
        start, limit = offset // PAGE * PAGE, -(-end // PAGE) * PAGE
        with mmap.mmap(-1, limit - start) as buffer:
            os.preadv(fd, [buffer], start)
            buffer[offset - start : end - start] = data
            assert os.pwritev(fd, [buffer], start) == limit - start
        if limit > size:
            os.ftruncate(fd, size)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if self._mapped:
            end = min(offset + size, os.fstat(fd).st_size)
            if end <= offset:
                return b""
            with mmap.mmap(fd, end, prot=mmap.PROT_READ) as mapping:
                return mapping[offset:end]
        if self._direct:
            start = offset // PAGE * PAGE
            with mmap.mmap(-1, -(-(offset + size) // PAGE) * PAGE - start) as buffer:
                done = os.preadv(fd, [buffer], start)
                return buffer[offset - start : min(done, offset - start + size)]
        return os.pread(fd, size, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def content(self, name: str) -> bytes:
        with open(self._at(name), "rb") as file:
            return file.read()

    def names(self) -> list[str]:
        return os.listdir(self._mount.path)

    def link(self, source: str, target: str) -> None:
        os.link(self._at(source), self._at(target))

    def rename(self, source: str, target: str) -> None:
        os.rename(self._at(source), self._at(target))

    def unlink(self, name: str) -> None:
        os.unlink(self._at(name))

    def stop(self) -> None:
        self._stops.stop()

    def go(self) -> None:
        self._stops.go()

    def pause(self, turns: int) -> None:
        """Let the uploads go on."""
        time.sleep(turns / 1000)

    def sync(self) -> None:
        answer = self._command("sync", {"deadline": PATIENCE})
        if answer["pending"]:
            raise Different(f"not on the server after {PATIENCE:g} s: {answer['pending']}")

    def verify(self) -> None:
        """The state directory is as it must be: every cached chunk, every range."""
        found = self._command("check", {})
        if wrong := [*found["faults"], *found["damaged"], *found["lost"]]:
            raise Different("; ".join(wrong))

    def _command(self, name: str, params: control.Params) -> dict[str, Any]:
        return control.call(self._mount.state / control.NAME, name, params, timeout=PATIENCE + 10)

    def remount(self, drain: bool) -> None:
        self._mount.remount(signal.SIGTERM if drain else signal.SIGKILL)

    def fresh(self) -> None:
        self._mount.stop()
        shutil.rmtree(self._mount.state)
        self._mount.start()
