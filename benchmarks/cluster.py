"""What more nodes cost and give, all on this machine: throughput, small files, repair, bytes stored for each byte."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measures import MIB
from benchmarks.systems import drop_caches, tree_size
from tests.cluster.nodes import Cluster
from tests.harness import Mount, command

SETUPS = ((1, "auto"), (3, "replicate:3:2"), (6, "replicate:3:2"), (6, "erasure:4+2"))
PATIENCE = 600.0


@dataclass(frozen=True)
class Sizes:
    """How much is written."""

    large: int = 256 * MIB
    files: int = 2000
    repeats: int = 3


QUICK = Sizes(16 * MIB, 100, 1)


@dataclass(frozen=True)
class Line:
    """A measurement; ``ratio`` is to the same on one node."""

    nodes: int
    redundancy: str
    what: str
    value: float
    unit: str
    ratio: float | None = None


def measure(base: Path, sizes: Sizes, console: Console) -> list[Line]:
    """All measurements, medians of repeats."""
    lines: list[Line] = []
    alone: dict[str, float] = {}
    for nodes, redundancy in SETUPS:
        runs = []
        for repeat in range(sizes.repeats):
            with _cluster(base / f"{nodes}-{redundancy.replace(':', '-')}-{repeat}", nodes, redundancy) as (
                cluster,
                mount,
            ):
                runs.append(_run(cluster, mount, sizes))
        for (what, unit), values in _by_key(runs).items():
            value = statistics.median(values)
            ratio = value / alone[what] if what in alone else None
            if nodes == 1:
                alone[what] = value
            lines.append(Line(nodes, redundancy, what, round(value, 2), unit, ratio and round(ratio, 2)))
            shown = f"  {ratio:.2f}x of one node" if ratio else ""
            console.print(f"{nodes} nodes  {redundancy:14} {what:40} {value:10.1f} {unit}{shown}", soft_wrap=True)
    return lines


def to_json(about: Mapping[str, Any], lines: list[Line]) -> str:
    """The results, with what they were measured on."""
    return json.dumps({**about, "cluster": [asdict(line) for line in lines]}, indent=1) + "\n"


def _run(cluster: Cluster, mount: Mount, sizes: Sizes) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    large = os.urandom(sizes.large)

    def write() -> None:
        (mount.path / "large").write_bytes(large)
        mount.sync(timeout=PATIENCE)

    seconds = _timed(write)
    found["write one large file, until durable", "MiB/s"] = sizes.large / MIB / seconds
    stored = sum(tree_size(node.data / "chunks") for node in cluster.nodes)
    found["stored for each byte", "bytes"] = stored / sizes.large
    small = mount.path / "small"
    small.mkdir()

    def create() -> None:
        for number in range(sizes.files):
            (small / f"{number}").write_bytes(large[number * 4096 : (number + 1) * 4096])
        mount.sync(timeout=PATIENCE)

    found["create 4 KiB files, until durable", "files/s"] = sizes.files / _timed(create)
    mount.stop()
    shutil.rmtree(mount.state)
    mount.start()
    drop_caches()
    found["read it, cold", "MiB/s"] = sizes.large / MIB / _timed(lambda: _read(mount.path / "large"))

    def read() -> None:
        for path in sorted((mount.path / "small").iterdir()):
            _read(path)

    found["read the small files, cold", "files/s"] = sizes.files / _timed(read)
    if len(cluster.nodes) > 3:
        found |= _heal(cluster)
    return found


def _heal(cluster: Cluster) -> dict[tuple[str, str], float]:
    """A node is lost for good and what it had made anew; then one is added and gets its share."""
    lost = cluster.nodes[-1]
    size = tree_size(lost.data / "chunks")
    name = cluster.id_of(lost)
    lost.kill()
    assert cluster.command("node", "remove", name, "--apply")[0] == 0
    seconds = _timed(lambda: cluster.command("workers", "run", "repair"))
    repaired = size / MIB / seconds
    added = cluster.add()
    seconds = _timed(lambda: cluster.command("workers", "run", "rebalance"))
    return {
        ("repair what a lost node had", "MiB/s"): repaired,
        ("move its share to a new node", "MiB/s"): tree_size(added.data / "chunks") / MIB / seconds,
    }


@contextmanager
def _cluster(base: Path, nodes: int, redundancy: str) -> Iterator[tuple[Cluster, Mount]]:
    with ExitStack() as stack:
        cluster = Cluster(base, nodes)
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        stack.callback(cluster.destroy)
        cluster.first.create_bucket("bench")
        options = ("--url", cluster.first.url, "--token-file", cluster.first.token_file)
        done = command("mountfs", "bucket", "set", "bench", f"redundancy={redundancy}", *options)
        assert done.returncode == 0, done.stderr
        mount = Mount(
            f"{cluster.first.url}/bench", base / "mount", token_file=cluster.first.token_file, state=base / "state"
        )
        stack.callback(mount.destroy)
        yield cluster, mount.start()


def _by_key(runs: list[dict[tuple[str, str], float]]) -> dict[tuple[str, str], list[float]]:
    return {key: [run[key] for run in runs if key in run] for key in runs[0]}


def _read(path: Path) -> None:
    with path.open("rb", 0) as file:
        while file.read(MIB):
            """Only the way counts."""


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
