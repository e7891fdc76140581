"""Damage to what lies on this machine: it stays here, it is told, and it holds up nothing else."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node, command

KIB, MIB = 1 << 10, 1 << 20
SIZE = 300 * KIB
"""Enough for a slab of its own."""


@pytest.fixture
def mount(module_node: Node, make_mount: MakeMount) -> Mount:
    mount = make_mount(module_node, module_node.create_bucket(f"damage-{os.urandom(4).hex()}"))
    assert os.listdir(mount.path) == []  # from now on a new name is known to be new, also without the server
    return mount


def some(size: int, seed: int) -> bytes:
    """Bytes that no compression and no chance makes equal."""
    return random.Random(seed).randbytes(size)


def rows(mount: Mount, query: str, *values: object) -> list[Any]:
    """What the mount's database says."""
    with contextlib.closing(sqlite3.connect(mount.state / "mount.db", timeout=30)) as database, database:
        return database.execute(query, values).fetchall()


def slab(mount: Mount, number: int) -> Path:
    return mount.state / "slabs" / f"{number:016d}.slab"


def damage_cache(mount: Mount) -> int:
    """Change a few bytes of every cached chunk; returns how many there are."""
    found = rows(mount, "SELECT slab, position, length FROM chunk")
    for number, position, length in found:
        with slab(mount, number).open("r+b") as file:
            file.seek(position + length // 2)
            file.write(b"damaged")
    return len(found)


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """The server does not answer."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


def elsewhere(mount: Mount, node: Node, make_mount: MakeMount) -> Path:
    """What the server has, seen by a mount that knows nothing."""
    mount.sync()
    return make_mount(node, mount.url.rsplit("/", 1)[1]).path


def fails_with_eio(path: Path) -> bool:
    """Whether reading a file is an input/output error."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno == errno.EIO
    return False


@pytest.mark.parametrize("size", [10 * KIB, 300 * KIB, 3 * MIB])
def test_a_damaged_cached_chunk_never_goes_up_again(
    size: int, mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    content, page = some(size, 1), some(4096, 2)
    (mount.path / "f").write_bytes(content)
    mount.sync()
    assert damage_cache(mount)
    with (mount.path / "f").open("r+b", buffering=0) as file:
        file.write(page)
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "f").read_bytes() == page + content[4096:]
    mount.remount()
    assert (mount.path / "f").read_bytes() == page + content[4096:]


def test_what_is_lost_with_a_slab_is_named_and_holds_up_nothing_else(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    (mount.path / "whole").write_bytes(b"old")
    mount.sync()
    with stopped(module_node):
        (mount.path / "lost").write_bytes(some(SIZE, 1))
        (mount.path / "small").write_bytes(b"small")
        ino = (mount.path / "lost").stat().st_ino
        mount.kill()
    numbers = {int(path.stem) for path in (mount.state / "slabs").iterdir()}
    [(gone,)] = rows(mount, "SELECT DISTINCT slab FROM staged WHERE ino = ?", ino)
    assert gone == max(numbers), "the last number is the one that would come next if numbers were used twice"
    slab(mount, gone).unlink()
    mount.start()
    (mount.path / "after").write_bytes(some(SIZE, 2))
    (mount.path / "whole").write_bytes(b"new")
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "after").read_bytes() == some(SIZE, 2)
    assert (there / "whole").read_bytes() == b"new"
    assert (there / "small").read_bytes() == b"small"
    assert fails_with_eio(mount.path / "lost")
    assert mount.status()["lost"] == ["lost"]
    assert any("lost" in error["text"] for error in mount.status()["errors"])
    with (mount.path / "lost").open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.fsync(file.fileno())
    mount.remount()
    assert mount.status()["lost"] == ["lost"]
    assert not slab(mount, gone).exists()
    (mount.path / "lost").write_bytes(some(SIZE, 3))
    assert mount.status()["lost"] == []
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "lost").read_bytes() == some(SIZE, 3)


def test_what_is_lost_while_the_daemon_runs_holds_up_nothing_else(
    mount: Mount, module_node: Node, make_mount: MakeMount
) -> None:
    with stopped(module_node):
        (mount.path / "lost").write_bytes(some(SIZE, 1))
        ino = (mount.path / "lost").stat().st_ino
        [(number,)] = rows(mount, "SELECT DISTINCT slab FROM staged WHERE ino = ?", ino)
        os.truncate(slab(mount, number), SIZE // 2)
        (mount.path / "other").write_bytes(b"other")
    there = elsewhere(mount, module_node, make_mount)
    assert (there / "other").read_bytes() == b"other"
    assert mount.status()["lost"] == ["lost"]
    (mount.path / "lost").unlink()
    mount.sync()
    assert mount.status()["lost"] == []


def deep(mount: Mount) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code of ``mountfs doctor --deep``, and its findings about the state of this mount."""
    result = command("mountfs", "doctor", "--deep", "--state", mount.state, "--json", timeout=120)
    found = {it["check"]: it for it in json.loads(result.stdout)}
    return result.returncode, {
        name.removesuffix(f" in {mount.state}"): it for name, it in found.items() if name.endswith(f" in {mount.state}")
    }


@pytest.mark.parametrize("running", [True, False], ids=["mounted", "not mounted"])
def test_doctor_finds_damaged_chunks_and_the_files_that_have_them(running: bool, mount: Mount) -> None:
    (mount.path / "hit").write_bytes(some(SIZE, 1))
    mount.sync()
    _, found = deep(mount)
    assert {it["outcome"] for it in found.values()} == {"ok"}, found
    assert damage_cache(mount) == 1
    if not running:
        mount.stop()
    code, found = deep(mount)
    assert code == 1
    assert found["cached chunks"]["outcome"] == "failed"
    assert "hit" in found["cached chunks"]["detail"]
    assert found["slabs"]["outcome"] == "ok"
    _, found = deep(mount)
    assert found["cached chunks"]["outcome"] == "warning", "seen before, and dropped"
    if not running:
        mount.start()
    else:
        mount.remount()
    assert (mount.path / "hit").read_bytes() == some(SIZE, 1)


def test_a_cache_of_an_older_version_is_compared_before_it_is_believed(mount: Mount) -> None:
    for name in "good", "hit", "shared":
        (mount.path / name).write_bytes(name.encode() * SIZE)
    mount.sync()
    mount.stop()
    places = dict(rows(mount, "SELECT id, slab FROM chunk"))
    assert len(places) == 3
    [(hit, number, position)] = rows(mount, "SELECT id, slab, position FROM chunk LIMIT 1")
    with slab(mount, number).open("r+b") as file:
        file.seek(position)
        file.write(b"damaged")
    with contextlib.closing(sqlite3.connect(mount.state / "mount.db")) as database, database:
        database.executescript(
            """DROP INDEX chunk_place; DROP INDEX staged_place; DROP TABLE damaged;
            ALTER TABLE chunk DROP COLUMN checked; CREATE INDEX chunk_slab ON chunk (slab);
            DELETE FROM meta WHERE key = 'slabs'; PRAGMA user_version = 3;"""
        )
    # A second chunk that says it lies where the first does: one of them was written over.
    with contextlib.closing(sqlite3.connect(mount.state / "mount.db")) as database, database:
        [(other, there, at)] = database.execute(
            "SELECT id, slab, position FROM chunk WHERE id != ? LIMIT 1", (hit,)
        ).fetchall()
        database.execute("INSERT INTO chunk VALUES (?, ?, ?, 100, 0)", (bytes(32), there, at + 50))
    mount.start()
    for name in "good", "hit", "shared":
        assert (mount.path / name).read_bytes() == name.encode() * SIZE
    assert {row[0] for row in rows(mount, "SELECT id FROM damaged")} == {hit, other, bytes(32)}
    _, found = deep(mount)
    assert found["cached chunks"]["outcome"] == "warning"
    assert found["slabs"]["outcome"] == "ok"
