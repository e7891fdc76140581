"""``nodeserver cluster``: a cluster on one machine, for trying things out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import BIN, command, eventually

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts three nodes, in a directory that stays the same."""
    made: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        words: list[str | Path] = [
            BIN / "nodeserver",
            "cluster",
            "--nodes",
            "3",
            "--port",
            "0",
            "--data",
            tmp_path / "site",
        ]
        made.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield run
    for process in made:
        process.terminate()
        process.communicate(timeout=60)


def said(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The lines up to one that has a text in it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if wanted in line:
            return lines
    raise AssertionError(lines)


def test_nodes_run_together_and_are_found_again(start: Start, tmp_path: Path) -> None:
    first = tmp_path / "site" / "node1"
    process = start()
    lines = said(process, "nodeserver nodes --data")
    pids = [int(found[1]) for line in lines if (found := re.search(r"process (\d+)$", line))]
    assert len(pids) == 3
    url, token = (first / "address").read_text().strip(), first / "admin.token"
    assert any(f"mountfs mount {url} MOUNTPOINT --token-file {token}" in line for line in lines)
    done = command("mountfs", "bucket", "create", "docs", "--url", url, "--token-file", token)
    assert done.returncode == 0, done.stderr
    os.kill(pids[2], signal.SIGKILL)
    assert "node3: ended by signal 9" in said(process, "ended")[0]
    assert command("nodeserver", "nodes", "--data", first).stdout.count("metadata,chunks") == 1
    process.terminate()
    assert process.wait(timeout=60) == 0
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20, "all nodes have ended")

    said(start(), "nodeserver nodes --data")
    url = (first / "address").read_text().strip()
    assert "docs" in command("mountfs", "bucket", "list", "--url", url, "--token-file", token).stdout
    eventually(lambda: command("nodeserver", "status", "--data", first).returncode == 0, 60, "healthy")
