"""What programs do all day. A workload gets a started, empty system and returns its measures."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measures import MIB
from benchmarks.source import incompressible
from benchmarks.systems import Failed, System, command

BLOCK = MIB
"""Bytes that one read or write of the sequential workload moves."""
LATER = 2.0
"""Seconds between making files and asking for their attributes: what is cached for a moment only is forgotten."""
LINE = b"2026-01-01T00:00:00Z a line such as programs write to their logs\n"
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "bench@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything; sizes in bytes, times in seconds."""

    sequential: int = 1024 * MIB
    random: int = 256 * MIB
    random_time: int = 5
    small_files: int = 2_000
    source_files: int | None = None
    """Files of the source tree, None for all."""
    entries: int = 10_000
    appends: int = 200
    save: int = 32 * MIB
    saves: int = 10


QUICK = Sizes(
    sequential=64 * MIB, random=16 * MIB, random_time=1, small_files=200, source_files=300, entries=1_000,
    appends=20, save=8 * MIB, saves=3,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A workload's surroundings."""

    system: System
    sizes: Sizes
    archive: Path
    """A tar file of the source tree."""

    @property
    def path(self) -> Path:
        return self.system.path


Values = dict[str, float]


class Watch:
    """Adds up the seconds of the blocks it is used for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


def timed(step: Callable[[], object]) -> float:
    """The seconds that ``step`` takes."""
    watch = Watch()
    with watch():
        step()
    return watch.seconds


def sequential(bench: Bench) -> Values:
    """Write and read one large file of bytes that neither compress nor repeat."""
    size, file, watch = bench.sizes.sequential, bench.path / "large", Watch()
    digest = hashlib.blake2b()
    with open(file, "wb", buffering=0) as stream:
        for block in incompressible(size, BLOCK):
            digest.update(block)
            with watch():
                stream.write(block)
        with watch():
            stream.close()
    written = watch.seconds
    durable = written + timed(bench.system.durable)
    bench.system.cold()
    cold = timed(lambda: _read(file))
    warm = timed(lambda: _read(file))
    found = hashlib.blake2b()
    _read(file, found.update)
    if found.digest() != digest.digest():
        raise Failed("what was read is not what was written")
    mib = size / MIB
    return {"write": mib / written, "write-durable": mib / durable, "read-cold": mib / cold, "read-warm": mib / warm}


def _read(file: Path, use: Callable[[memoryview], object] = len) -> None:
    buffer = memoryview(bytearray(BLOCK))
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            use(buffer[:count])


def random(bench: Bench) -> Values:
    """4 KiB at random offsets of one file, with fio."""
    file = bench.path / "random"
    with open(file, "wb", buffering=0) as stream:
        for block in incompressible(bench.sizes.random, BLOCK):
            stream.write(block)
    bench.system.durable()
    _read(file)
    return {
        "read-kernel": _fio(bench, file, "randread", "--invalidate=0"),
        "read": _fio(bench, file, "randread"),
        "write": _fio(bench, file, "randwrite"),
        "write-fsync": _fio(bench, file, "randwrite", "--end_fsync=1"),
    }


def _fio(bench: Bench, file: Path, mode: str, *options: str) -> float:
    output = command(
        "fio", "--name=bench", f"--filename={file}", f"--rw={mode}", "--bs=4k", "--ioengine=psync", "--fallocate=none",
        f"--size={bench.sizes.random}", "--time_based", f"--runtime={bench.sizes.random_time}",
        "--refill_buffers", "--output-format=json", *options, cwd=bench.system.base,
    )  # fmt: skip
    job = json.loads(output[output.index("{") :])["jobs"][0]
    result = job["write" if "write" in mode else "read"]
    return float(result["total_ios"] / result["runtime"] * 1000)


def small(bench: Bench) -> Values:
    """Many files of 4 KiB."""
    directory = bench.path / "small"
    directory.mkdir()
    files = [str(directory / f"file-{number:05}") for number in range(bench.sizes.small_files)]
    contents = list(incompressible(4096 * len(files), 4096))

    def create() -> None:
        for file, content in zip(files, contents, strict=True):
            with open(file, "wb", buffering=0) as stream:
                stream.write(content)

    def read() -> None:
        for file, content in zip(files, contents, strict=True):
            with open(file, "rb", buffering=0) as stream:
                if stream.read(8192) != content:
                    raise Failed("what was read is not what was written")

    def over(call: Callable[[str], object]) -> Callable[[], None]:
        def step() -> None:
            for file in files:
                call(file)

        return step

    created = timed(create)
    durable = created + timed(bench.system.durable)
    time.sleep(LATER)
    return {
        "create": created,
        "durable": durable,
        "stat": timed(over(os.stat)),
        "list": timed(lambda: os.listdir(directory)),
        "read": timed(read),
        "delete": timed(over(os.unlink)),
    }


def tree(bench: Bench) -> Values:
    """What one does with a source tree."""
    source, copy = bench.path / "source", bench.path / "copy"
    source.mkdir()
    unpacked = timed(lambda: command("tar", "-xf", bench.archive, "-C", source))
    durable = unpacked + timed(bench.system.durable)

    def rename() -> None:
        for place, _, names in os.walk(copy):
            for name in names:
                os.rename(os.path.join(place, name), os.path.join(place, name + ".renamed"))

    return {
        "unpack": unpacked,
        "durable": durable,
        "find": timed(lambda: command("find", source, "-type", "f", "-size", "+100k")),
        "grep": timed(lambda: command("grep", "-r", "-c", "import", source)),
        "copy": timed(lambda: command("cp", "-r", source, copy)),
        "rename": timed(rename),
        "delete": timed(lambda: command("rm", "-rf", source)),
    }


def git(bench: Bench) -> Values:
    """A source tree goes into a repository."""
    work = bench.path / "work"
    work.mkdir()
    command("tar", "-xf", bench.archive, "-C", work)

    def run(*args: str) -> str:
        return command("git", "-c", "gc.auto=0", *args, cwd=work, env=GIT)

    run("init", "--quiet")
    bench.system.durable()
    return {
        "add": timed(lambda: run("add", "--all")),
        "commit": timed(lambda: run("commit", "--quiet", "--message", "all")),
        "status": timed(lambda: run("status", "--short")),
    }


def listing(bench: Bench) -> Values:
    """A large directory seen for the first time."""
    directory = bench.path / "many"
    directory.mkdir()
    for number in range(bench.sizes.entries):
        (directory / f"entry-{number:06}").touch()

    def check(count: int) -> None:
        if count != bench.sizes.entries:
            raise Failed(f"{count} entries listed instead of {bench.sizes.entries}")

    def attributes() -> int:
        with os.scandir(directory) as entries:
            return sum(entry.stat().st_nlink for entry in entries)

    bench.system.cold()
    names = timed(lambda: check(len(os.listdir(directory))))
    bench.system.cold()
    return {"names": names, "attributes": timed(lambda: check(attributes()))}


def append(bench: Bench) -> Values:
    """A log file whose lines must not be lost; milliseconds."""
    with open(bench.path / "log", "ab", buffering=0) as stream:

        def line() -> None:
            stream.write(LINE)
            os.fsync(stream.fileno())

        times = [timed(line) for _ in range(bench.sizes.appends)]
    return {"fsync": statistics.median(times) * 1000}


def saves(bench: Bench) -> Values:
    """A large document saved many times, each time a little longer at its front."""
    file, fresh = bench.path / "document", bench.path / "document.new"
    content = b"".join(incompressible(bench.sizes.save, BLOCK))
    file.write_bytes(content)
    bench.system.durable()

    def save() -> None:
        fresh.write_bytes(content)
        fresh.rename(file)
        bench.system.durable()

    times = []
    for _ in range(bench.sizes.saves):
        content = os.urandom(1024) + content
        times.append(timed(save))
    return {"stored": bench.system.stored() / MIB, "time": statistics.median(times)}


Workload = Callable[[Bench], Values]
WORKLOADS: dict[str, Workload] = {
    work.__name__: work for work in (sequential, random, small, tree, git, listing, append, saves)
}
FAILURES = (Failed, OSError, subprocess.SubprocessError)
"""What a workload can end with when the system under test does not do what it should."""
