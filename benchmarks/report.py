"""The results: a table to read, and a JSON file to keep."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measures import LOCAL, MEASURES, OURS, RIVAL

SYSTEMS = (OURS, RIVAL, LOCAL)
RESULTS = Path(__file__).parent / "results"
VERDICTS = {None: "", True: "reached", False: "missed"}


@dataclass
class Results:
    """All values of a run, by measure and system, in the order of the repeats."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, workload: str, system: str, values: Mapping[str, float]) -> None:
        """Keep what one run of a workload on a system measured."""
        for what, value in values.items():
            self.values.setdefault(f"{workload}.{what}", {}).setdefault(system, []).append(value)

    def median(self, measure: str, system: str) -> float | None:
        """The median over the repeats, None when it was not measured."""
        values = self.values.get(measure, {}).get(system)
        return statistics.median(values) if values else None

    def to_json(self, about: Mapping[str, Any]) -> str:
        """Everything, for a file; ``about`` goes to its head."""
        lines: dict[str, Any] = {}
        for key, systems in self.values.items():
            ours, rival = self.median(key, OURS), self.median(key, RIVAL)
            measure = MEASURES[key]
            lines[key] = {
                "title": measure.title,
                "unit": measure.unit,
                "aim": {"times_better": measure.aim, "under": measure.limit},
                "median": {name: _rounded(statistics.median(values)) for name, values in systems.items()},
                "times_better_than_juicefs": _rounded(measure.gain(ours, rival)) if ours and rival else None,
                "reached": None if ours is None else measure.reached(ours, rival),
                "values": {name: [_rounded(value) for value in values] for name, values in systems.items()},
            }
        return json.dumps({**about, "failures": self.failures, "measures": lines}, indent=1) + "\n"


def show(results: Results, console: Console) -> None:
    """Print the table: rules and colours on a terminal, aligned text elsewhere."""
    rows = [_row(results, key) for key in MEASURES if key in results.values]
    heads = ("", "", *SYSTEMS, "to juicefs", "to local", "aim", "")
    if console.is_terminal:
        table = Table(*heads[:2])
        for head in heads[2:]:
            table.add_column(head, justify="right")
        for row in rows:
            style = {"missed": "red", "reached": "green"}.get(row[-1])
            table.add_row(*row, style=style)
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for row in (heads, *rows):
            cells = [
                cell.ljust(width) if index < 2 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip())
    for failure in results.failures:
        console.print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)


def _row(results: Results, key: str) -> tuple[str, ...]:
    measure = MEASURES[key]
    medians = {name: results.median(key, name) for name in SYSTEMS}
    ours, rival, local = (medians[name] for name in SYSTEMS)
    aim = f"{measure.aim:g}x" if measure.aim else f"< {measure.limit:g} {measure.unit}" if measure.limit else ""
    return (
        measure.title,
        measure.unit,
        *(f"{value:.4g}" if value is not None and value < 1000 else f"{value:.0f}" if value else "-"
          for value in medians.values()),
        f"{measure.gain(ours, rival):.2f}x" if ours is not None and rival is not None else "",
        f"{measure.gain(ours, local):.2f}x" if ours is not None and local is not None else "",
        aim,
        VERDICTS[measure.reached(ours, rival) if ours is not None else None],
    )  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
