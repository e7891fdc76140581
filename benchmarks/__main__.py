"""``python -m benchmarks``: measure, show the table, keep the results."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import cluster, history, machine, memory, metadata
from benchmarks.measures import MIB
from benchmarks.report import RESULTS, Results, show
from benchmarks.source import pack_source_tree
from benchmarks.systems import JuiceFS, Local, MountFS, System, running
from benchmarks.workloads import FAILURES, QUICK, WORKLOADS, Bench, Sizes

REPEATS = 3


def main() -> int:
    """Exit code 0, or 1 when a workload failed; a missed aim is no failure."""
    options = _options()
    # An end by signal unwinds the stack too, so that nothing stays mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    date = datetime.now(UTC).replace(microsecond=0)
    about: dict[str, Any] = {"date": date.isoformat(), "versions": machine.versions()}
    with tempfile.TemporaryDirectory(prefix="mountfs-bench-", dir=options.dir, ignore_cleanup_errors=True) as name:
        base = Path(name)
        about["machine"] = machine.facts(base)
        if options.memory:
            report, failed = memory.measure(base, options.files, options.bytes * MIB, console)
            text = memory.to_json(about, report)
        elif options.history:
            lines, failed = history.measure(base, history.QUICK if options.quick else history.Sizes(), console)
            text = history.to_json(about, lines)
        elif options.cluster:
            found = cluster.measure(base, cluster.QUICK if options.quick else cluster.Sizes(), console)
            text, failed = cluster.to_json(about, found), False
        elif options.metadata:
            seconds, growth = (1, metadata.QUICK_SIZES) if options.quick else (3, metadata.SIZES)
            found_lines = metadata.measure(base, seconds, console) + metadata.grow(base, seconds, growth, console)
            text = metadata.to_json(about, found_lines)
            failed = False
        else:
            sizes = QUICK if options.quick else Sizes()
            results = _measure(base, options, sizes, console)
            show(results, console)
            text = results.to_json({**about, "sizes": asdict(sizes), "repeats": options.repeat})
            failed = bool(results.failures)
    output = options.output
    partial = options.quick or options.only or options.system or options.no_juicefs or failed
    if output is None and not partial:
        kind = next((kind for kind in ("memory", "history", "metadata", "cluster") if getattr(options, kind)), "speed")
        output = RESULTS / f"{date:%Y-%m-%dT%H-%M-%SZ}-{kind}.json"
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(text)
        console.print(f"kept in {output}", soft_wrap=True)
    return int(failed)


def _measure(base: Path, options: argparse.Namespace, sizes: Sizes, console: Console) -> Results:
    kinds: list[type[System]] = [
        kind
        for kind in (MountFS, JuiceFS, Local)
        if not (kind is JuiceFS and options.no_juicefs) and options.system in (None, kind.name)
    ]
    archive = base / "source.tar"
    pack_source_tree(archive, sizes.source_files)
    results = Results()
    with console.status("") as status:
        for repeat in range(options.repeat):
            for workload in options.only or WORKLOADS:
                for kind in kinds:
                    label = f"{workload} on {kind.name}, {repeat + 1} of {options.repeat}"
                    status.update(label)
                    try:
                        with running(kind, base / kind.name) as system:
                            results.add(workload, kind.name, WORKLOADS[workload](Bench(system, sizes, archive)))
                    except FAILURES as error:
                        results.failures.append(f"{label}: {error}".replace(str(base), ""))
    return results


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it out; not kept")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=WORKLOADS, help=f"just this workload: {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=REPEATS, help="how often (default: %(default)s)")
    parser.add_argument("--no-juicefs", action="store_true", help="without JuiceFS")
    parser.add_argument("--system", metavar="NAME", help="just this system: mountfs, juicefs or local")
    parser.add_argument(
        "--dir", metavar="DIR", type=Path, help="where the data goes (default: the temporary directory)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="keep the results there, of any run")
    parser.add_argument("--memory", action="store_true", help="measure the daemon's memory instead of speed")
    parser.add_argument("--history", action="store_true", help="measure what looking back costs instead of speed")
    parser.add_argument("--metadata", action="store_true", help="measure commits and look-ups a second of node servers")
    parser.add_argument("--cluster", action="store_true", help="measure what 1, 3 and 6 nodes on this machine do")
    parser.add_argument("--files", metavar="N", type=int, default=200_000, help="--memory: files to walk over")
    parser.add_argument("--bytes", metavar="MIB", type=int, default=4096, help="--memory: MiB to copy in and out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
