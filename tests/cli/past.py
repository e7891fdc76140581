"""What the tests of the verbs of history share."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mountfs.cli.main import main
from tests.harness import Mount


class Past:
    """A mounted folder and the verbs that look back at it."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.path = mount.path

    def write(self, name: str, text: str) -> str:
        """New content that is a version from now on; the moment after it."""
        (self.path / name).write_text(text)
        return self.moment()

    def moment(self) -> str:
        """Now, with all that was done on the server."""
        self.mount.sync()
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def run(self, verb: str, *args: str | Path, code: int = 0) -> str:
        """What a verb prints."""
        result = CliRunner().invoke(main, [verb, *map(str, args)])
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout

    def json(self, verb: str, *args: str | Path, code: int = 0) -> Any:
        return json.loads(self.run(verb, *args, "--json", code=code))

    def refused(self, verb: str, *args: str | Path, code: int = 1) -> str:
        """The one line of error of a verb that fails."""
        result = CliRunner().invoke(main, [verb, *map(str, args)])
        assert result.exit_code == code, (result.output, result.exception)
        [line] = result.stderr.splitlines()
        assert line.startswith("mountfs: ")
        assert not result.stdout
        return line


def capture(tree: Path, to: Path) -> None:
    """``cp -a``."""
    subprocess.run(["cp", "-a", tree, to], check=True, timeout=60)


def same_trees(one: Path, other: Path) -> bool:
    """Content, modes, owners, times of modification, links and extended attributes, by rsync's comparison."""
    args = ["rsync", "-aHAXni", "--checksum", "--delete", f"{one}/", f"{other}/"]
    result = subprocess.run(args, check=True, capture_output=True, text=True, timeout=60)
    assert not result.stdout, result.stdout
    return True
