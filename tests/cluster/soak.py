"""Random file operations on a mount and on a plain directory, while the nodes below the mount suffer."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.cluster.nodes import Cluster, chunk_files, flip, killed, stopped
from tests.faultproxy import Mode
from tests.harness import Node, command, eventually

DIRECTORIES = ("", "a", "a/b", "c")
PATIENCE = 240.0
"""Seconds that the operations of a round may take on a slow machine."""
CUT_OFF, KILL_METADATA = "cut off", "kill metadata"
CUTS: tuple[Mode, ...] = ("refuse", "stall")
SIZES = (0, 10, 4_000, 100_000, 700_000, 3_000_000)


class Workload:
    """The same random operations on two directories; the one is the oracle of the other."""

    def __init__(self, mount: Path, oracle: Path, seed: int) -> None:
        self._roots = (mount, oracle)
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.error: BaseException | None = None
        self.operations = 0
        for root in self._roots:
            for name in DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Workload:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error:
            raise self.error

    def until(self, operations: int) -> None:
        """Return when so many operations were done, or one failed."""
        eventually(
            lambda: self.operations >= operations or self.error is not None, PATIENCE, f"{operations} operations"
        )

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
                self.operations += 1
        except BaseException as error:
            self.error = error

    def _step(self) -> None:
        rng = self._rng
        name = f"{rng.choice(DIRECTORIES)}/f{rng.randrange(12)}".lstrip("/")
        other = f"{rng.choice(DIRECTORIES)}/f{rng.randrange(12)}".lstrip("/")
        data = rng.randbytes(rng.choice(SIZES))
        match rng.randrange(7):
            case 0 | 1:
                self._both(lambda path: _write(path / name, data))
            case 2:
                self._both(lambda path: _append(path / name, data[:5_000]))
            case 3:
                at = rng.randrange(1_000_000)
                self._both(lambda path: _patch(path / name, at, data[:50_000]))
            case 4:
                self._both(lambda path: _rename(path / name, path / other))
            case 5:
                self._both(lambda path: (path / name).unlink(missing_ok=True))
            case _:
                mount, oracle = (path / name for path in self._roots)
                assert mount.exists() == oracle.exists(), name
                if oracle.exists():
                    assert mount.read_bytes() == oracle.read_bytes(), name

    def _both(self, operation: Callable[[Path], None]) -> None:
        for root in self._roots:
            operation(root)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(at)
        file.write(data)


def _rename(old: Path, new: Path) -> None:
    if old.exists():
        old.rename(new)


def tree(root: Path) -> dict[str, bytes | None]:
    """What is below a directory: content by path, None for directories."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


class Faults:
    """What may happen to nodes, one thing at a time; one of the two with metadata may go too."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self.all: dict[str, Callable[[Node], AbstractContextManager[None]]] = {
            "kill": killed,
            KILL_METADATA: killed,
            "stop": stopped,
            CUT_OFF: self._cut_off,
            "fill": self._full,
            "flip bits": self._flipped,
            "delete chunks": self._deleted,
            "bring back old data": self._old,
            "drain": self._drained,
            "add": self._added,
        }

    def rounds(self, count: int) -> Iterator[tuple[str, Node]]:
        """Faults and whom they hit: each of them ``count`` times, in any order."""
        for _ in range(count):
            for fault in self._rng.sample(list(self.all), len(self.all)):
                hit = {CUT_OFF: list(self._cluster.proxies), KILL_METADATA: self._cluster.nodes[:2]}
                nodes = hit.get(fault, self._cluster.nodes)
                yield fault, self._rng.choice([node for node in nodes if node.running])

    @contextlib.contextmanager
    def _cut_off(self, node: Node) -> Iterator[None]:
        """It can reach the others, but is not reached: what is sent to it is refused, or never answered."""
        proxy = self._cluster.proxies[node]
        proxy.set(self._rng.choice(CUTS))
        yield
        proxy.set("pass")

    @contextlib.contextmanager
    def _full(self, node: Node) -> Iterator[None]:
        """No file can be made on the node's disk any more: its directory for new ones has become a file system without
        room."""
        place = node.data / "chunks" / "tmp"
        _run("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "tmpfs", str(place))
        try:
            yield
        finally:
            _run("umount", "-l", str(place))

    @contextlib.contextmanager
    def _flipped(self, node: Node) -> Iterator[None]:
        for path in self._rng.sample(files := chunk_files(node), len(files) // 2):
            with contextlib.suppress(FileNotFoundError, ValueError):
                flip(path, self._rng)
        yield
        command("nodeserver", "workers", "run", "scrub", "--data", node.data)

    @contextlib.contextmanager
    def _deleted(self, node: Node) -> Iterator[None]:
        for path in chunk_files(node):
            if self._rng.random() < 0.5:
                path.unlink(missing_ok=True)
        yield

    @contextlib.contextmanager
    def _old(self, node: Node) -> Iterator[None]:
        old = node.data.with_name(node.data.name + ".old")
        shutil.copytree(node.data, old)
        try:
            with killed(node):
                yield
                shutil.rmtree(node.data / "chunks")
                shutil.copytree(old / "chunks", node.data / "chunks")
        finally:
            shutil.rmtree(old)

    @contextlib.contextmanager
    def _drained(self, node: Node) -> Iterator[None]:
        name = self._cluster.id_of(node)
        assert self._cluster.command("node", "drain", name, "--apply")[0] == 0
        try:
            yield
        finally:
            assert self._cluster.command("node", "undrain", name, "--apply")[0] == 0

    @contextlib.contextmanager
    def _added(self, _node: Node) -> Iterator[None]:
        """Two new nodes, up to a few; the cluster keeps them."""
        for _ in range(2 if len(self._cluster.nodes) < 8 else 0):
            self._cluster.add()
        yield


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
