"""Content that is written again as it was makes no version; the mount goes on from the one there is."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeMount
from tests.harness import Node
from tests.mount.conftest import Folder

_numbers = itertools.count()


@pytest.fixture
def folder(module_node: Node, make_mount: MakeMount) -> Folder:
    """A mount of a bucket of its own."""
    mount = make_mount(module_node, module_node.create_bucket(f"same{next(_numbers)}"))
    return Folder(mount.path, mount, module_node)


def versions(folder: Folder, name: str) -> list[dict[str, Any]]:
    """The history of a name in the root of the bucket, oldest first."""
    assert folder.mount
    assert folder.node
    bucket = f"/buckets/{folder.mount.url.rpartition('/')[2]}"
    root = base64.b64decode(folder.node.api("GET", bucket)["root"]).hex()
    encoded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
    found: list[dict[str, Any]] = folder.node.api("GET", f"{bucket}/files/{root}/versions?name={encoded}")["versions"]
    return found


def save(path: Path, content: bytes) -> None:
    """Write a file anew, and wait until the server has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def test_the_same_content_again_makes_no_version(folder: Folder) -> None:
    path = folder.path / "report"
    for content in (b"first", b"first", b"first", b"second", b"second", b"first"):
        save(path, content)
    assert [version["size"] for version in versions(folder, "report")] == [5, 6, 5]
    before = path.stat()
    folder.remount()
    assert path.read_bytes() == b"first"
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, 5)
    assert os.listdir(folder.path) == ["report"], "no conflict copies"


def test_large_content_again_makes_no_version(folder: Folder) -> None:
    path, content = folder.path / "image", os.urandom(3 << 20)
    save(path, content)
    save(path, content)
    assert len(versions(folder, "image")) == 1
    with path.open("ab") as file:
        file.write(b"more")
    folder.sync()
    assert path.read_bytes() == content + b"more"
    assert [version["size"] for version in versions(folder, "image")] == [3 << 20, (3 << 20) + 4]


def test_touch_and_chmod_make_no_version(folder: Folder) -> None:
    path = folder.path / "notes"
    save(path, b"notes")
    subprocess.run(["touch", "-d", "2001-02-03 04:05:06 UTC", path], check=True)
    subprocess.run(["chmod", "600", path], check=True)
    path.rename(folder.path / "moved")
    folder.sync()
    [version] = versions(folder, "moved")
    assert version.get("current")
    folder.remount()
    assert (folder.path / "moved").stat().st_mtime == 981173106


def test_what_follows_in_the_same_session(folder: Folder) -> None:
    """Changes made after the same content are based on the version there is."""
    path = folder.path / "log"
    save(path, b"one\n")
    with path.open("r+b") as file:
        for line in (b"one\n", b"two\n", b"three\n"):
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    folder.sync()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert [version["size"] for version in versions(folder, "log")] == [4, 14]
    assert os.listdir(folder.path) == ["log"], "no conflict copies"
