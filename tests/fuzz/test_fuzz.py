"""Whatever the order of ordinary calls, files contain what was written, here and on the server.

``SEED=7`` begins with that seed, ``--soak 100`` makes 10 seeds of 100,000 operations in each mode and of 1,000,000
without FUSE. A failure tells the seed and a shorter order that fails.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mountfs.config import MountConfig
from tests.conftest import MakeMount
from tests.fuzz.inkernel import InKernel
from tests.fuzz.invfs import InVfs
from tests.fuzz.orders import FINISH, ODDS, Calls, Different, Drawn, Odds, Op, Script, drive, listed, shortened
from tests.harness import Node

NUMBERS = itertools.count()
SHORTEN_SECONDS = 60.0

Run = Callable[[Calls], None]
"""Makes calls on something new and empty. Raises when the result is not right."""


def check(run: Run, seed: int, count: int, odds: Odds = ODDS) -> None:
    """Random operations. Raises AssertionError with the seed and a short order that fails."""
    script = Script()
    drawn = Drawn(script, seed, count, odds)
    try:
        run(script.all(drawn))
    except Exception as error:
        shorter = shortened(drawn.done, lambda ops: fails(run, ops), SHORTEN_SECONDS)
        raise AssertionError(
            f"SEED={seed}, after {len(drawn.done)} operations: {error!r}\n{listed(shorter)}"
        ) from error


def fails(run: Run, ops: list[Op]) -> bool:
    """Whether an order of operations goes wrong."""
    try:
        run(Script().all(ops + FINISH))
    except Exception:
        return True
    return False


def seeds(soak: int) -> range:
    """One, or ten for a long run."""
    first = int(os.environ.get("SEED", "1"))
    return range(first, first + max(1, min(10, soak // 10)))


class Mode(NamedTuple):
    """A way to use a mount."""

    options: dict[str, object]
    how: dict[str, Any]
    odds: Odds = ODDS


MODES = {
    "write-back": Mode({}, {}),
    "nowriteback": Mode({"nowriteback": True}, {}),
    "mmap": Mode({}, {"mapped": True}),
    "direct": Mode({}, {"direct": True}),
    "re-open": Mode({}, {}, {**ODDS, "open": 30, "close": 40}),
    "remount": Mode({}, {}, {**ODDS, "remount": 1, "fresh": 0.5}),
}


@pytest.mark.parametrize("name", MODES)
def test_files_contain_what_was_written_through_a_mount(
    name: str, module_node: Node, make_mount: MakeMount, soak: int
) -> None:
    mode = MODES[name]

    def run(calls: Calls) -> None:
        mount = make_mount(module_node, module_node.create_bucket(f"fuzz-{next(NUMBERS)}"), options=mode.options)
        try:
            InKernel(mount, module_node, **mode.how).run(calls)
        finally:
            mount.destroy()

    for seed in seeds(soak):
        check(run, seed, 250 if soak == 1 else 1000 * soak, mode.odds)


CACHES = {"large-cache": 10 << 30, "small-cache": 24 << 20}
"""Bytes; in the small one what was sent is evicted all the time, and fetched again."""


@pytest.fixture(params=CACHES)
def run_in_vfs(request: pytest.FixtureRequest, module_node: Node, tmp_path: Path) -> Run:
    def run(calls: Calls) -> None:
        bucket = module_node.create_bucket(f"vfs-{next(NUMBERS)}")
        config = MountConfig(
            url=module_node.url,
            bucket=bucket,
            mountpoint=tmp_path,
            token=module_node.token,
            state=tmp_path / bucket,
            settle=0.01,
            cache_size=CACHES[request.param],
        )
        InVfs(config, module_node).run(calls)

    return run


def test_files_contain_what_was_written_without_fuse(run_in_vfs: Run, soak: int) -> None:
    for seed in seeds(soak):
        check(run_in_vfs, seed, 1000 if soak == 1 else 10_000 * soak)


KIB = 1 << 10
MIB = 1 << 20
ORDERS = {
    "a cut file grows again and another gets its old content": [
        Op("open", "0", to="d"),
        Op("write", "0", 0, MIB),
        Op("fsync", "0"),
        Op("truncate", "0", 512 * KIB),
        Op("write", "0", 0, 1, tag=7),
        Op("fsync", "0"),
        Op("write", "0", 512 * KIB, 512 * KIB, tag=2 * MIB),
        Op("fsync", "0"),
        Op("close", "0"),
        Op("copy", "e"),
        Op("sync"),
    ],
    "a cut file grows again while its older content goes up": [
        Op("open", "0", to="c"),
        Op("write", "0", 0, 256 * KIB),
        Op("stop"),
        Op("link", "c", to="d"),
        Op("pause", length=50),
        Op("write", "0", 256 * KIB, 256 * KIB, tag=MIB),
        Op("truncate", "0", 100 * KIB),
        Op("write", "0", 256 * KIB, 256 * KIB, tag=2 * MIB),
        Op("go"),
        Op("pause", length=200),
        Op("sync"),
    ],
}
"""That once damaged content."""


@pytest.mark.parametrize("name", ORDERS)
def test_orders_that_damaged_content_do_not(name: str, run_in_vfs: Run) -> None:
    run_in_vfs(Script().all(ORDERS[name] + FINISH))


class Forgetful:
    """Files in memory; a write of 128 KiB and more is lost."""

    def __init__(self) -> None:
        self._names: dict[str, bytearray] = {}

    def open(self, name: str, empty: bool) -> bytearray:
        content = self._names.setdefault(name, bytearray())
        if empty:
            content.clear()
        return content

    def write(self, content: bytearray, data: bytes, offset: int) -> None:
        content += bytes(max(0, offset - len(content)))
        content[offset : offset + len(data)] = data if len(data) < 128 * KIB else bytes(len(data))

    def read(self, content: bytearray, size: int, offset: int) -> bytes:
        return bytes(content[offset : offset + size])

    def truncate(self, content: bytearray, size: int) -> None:
        content += bytes(max(0, size - len(content)))
        del content[size:]

    def content(self, name: str) -> bytes:
        return bytes(self._names[name])

    def names(self) -> list[str]:
        return list(self._names)

    def link(self, source: str, target: str) -> None:
        self._names[target] = self._names[source]

    def rename(self, source: str, target: str) -> None:
        self._names[target] = self._names.pop(source)

    def unlink(self, name: str) -> None:
        del self._names[name]

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_a_difference_is_found_and_told_with_a_short_order() -> None:
    """The fuzzer itself, on files that forget."""
    with pytest.raises(AssertionError, match="SEED=5") as raised:
        check(lambda calls: drive(calls, Forgetful()), 5, 1000)
    assert isinstance(raised.value.__cause__, Different)
    assert str(raised.value).count("Op(") == 2, raised.value
