"""What is measured, in which unit, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass

OURS, RIVAL, LOCAL = "mountfs", "juicefs", "local"
"""The names of the systems in tables and results."""

MIB = 1 << 20


@dataclass(frozen=True)
class Measure:
    """One line of the table. Its key is ``WORKLOAD.WHAT``."""

    title: str
    unit: str
    aim: float | None = None
    """How many times better than the rival we want to be."""
    limit: float | None = None
    """The value, in the measure's unit, that we want to stay under."""
    higher_is_better: bool = False

    def gain(self, ours: float, other: float) -> float:
        """How many times better ``ours`` is than ``other``; below 1 it is worse."""
        better, worse = (ours, other) if self.higher_is_better else (other, ours)
        return better / worse if worse else float("inf")

    def reached(self, ours: float, rival: float | None) -> bool | None:
        """Whether the aim is met; None without an aim, or with nothing to compare to."""
        if self.limit is not None:
            return ours < self.limit
        if self.aim is None or rival is None:
            return None
        return self.gain(ours, rival) >= self.aim


def _rate(title: str, unit: str, aim: float | None = None) -> Measure:
    return Measure(title, unit, aim, higher_is_better=True)


def _seconds(title: str, aim: float | None = None) -> Measure:
    return Measure(title, "s", aim)


MEASURES = {
    "sequential.write": _rate("write one large file, until close", "MiB/s", 1.3),
    "sequential.write-durable": _rate("the same, until durable", "MiB/s", 1.0),
    "sequential.read-cold": _rate("read it, cold", "MiB/s", 1.2),
    "sequential.read-warm": _rate("read it again, warm", "MiB/s", 1.5),
    "random.read": _rate("random 4 KiB reads, warm but for the kernel", "IOPS", 1.5),
    "random.read-kernel": _rate("the same, in the kernel's cache", "IOPS"),
    "random.write": _rate("random 4 KiB writes", "IOPS", 5.0),
    "random.write-fsync": _rate("random 4 KiB writes, until fsync", "IOPS"),
    "small.create": _seconds("create small files (4 KiB)", 3.0),
    "small.durable": _seconds("the same, until durable"),
    "small.stat": _seconds("stat them, two seconds later", 5.0),
    "small.list": _seconds("list them"),
    "small.read": _seconds("read them"),
    "small.delete": _seconds("delete them"),
    "tree.unpack": _seconds("unpack a source tree", 3.0),
    "tree.durable": _seconds("the same, until durable", 1.0),
    "tree.find": _seconds("find by size in it"),
    "tree.grep": _seconds("grep -r in it"),
    "tree.copy": _seconds("cp -r of it"),
    "tree.rename": _seconds("rename each of its files"),
    "tree.delete": _seconds("rm -rf of it", 3.0),
    "git.add": _seconds("git add of the source tree", 3.0),
    "git.commit": _seconds("git commit"),
    "git.status": _seconds("git status"),
    "listing.names": _seconds("list a large directory, cold", 2.0),
    "listing.attributes": _seconds("the same with attributes, cold"),
    "append.fsync": Measure("append a line and fsync, median", "ms", limit=5.0),
    "saves.stored": Measure("stored after ten saves of a large file", "MiB", 7.0),
    "saves.time": Measure("one such save, until durable, median", "s"),
}
