"""Fixtures of the tests on mounts: a folder the tests of a module share, and the watchdog."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node, Watchdog

if not os.access("/dev/fuse", os.R_OK | os.W_OK):
    pytest.skip("no access to /dev/fuse", allow_module_level=True)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest, soak: int) -> Iterator[None]:
    """No test hangs: after its time the daemons are killed and the test fails."""
    with Watchdog(180.0 * soak) as dog:
        yield
    assert not dog.barked, "the test took too long and its mounts were killed"


@dataclasses.dataclass
class Folder:
    """A mounted bucket, or with ``--plain`` a directory, on which the tests themselves are tried."""

    path: Path
    mount: Mount | None = None
    node: Node | None = None

    def remount(self) -> None:
        if self.mount:
            self.mount.remount()

    def sync(self) -> None:
        if self.mount:
            self.mount.sync()


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """One mount of one bucket for all tests of a module."""
    if request.config.getoption("plain"):
        yield Folder(tmp_path_factory.mktemp("plain"))
        return
    node: Node = request.getfixturevalue("module_node")
    make_mount: MakeMount = request.getfixturevalue("make_module_mount")
    mount = make_mount(node, node.create_bucket("programs"), options={"allow_other": True})
    yield Folder(mount.path, mount, node)


@pytest.fixture
def here(request: pytest.FixtureRequest, folder: Folder) -> Path:
    """A new directory in the shared folder, named after the test."""
    if folder.mount and not folder.mount.alive:
        folder.mount.destroy()
        folder.mount.start()
    path = folder.path / re.sub(r"\W+", "-", request.node.name)[:100]
    path.mkdir()
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A new plain directory for what a program reads from or writes to."""
    path = tmp_path / "there"
    path.mkdir()
    return path


def need(*programs: str) -> None:
    """Skip the test when one of ``programs`` is not installed."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
