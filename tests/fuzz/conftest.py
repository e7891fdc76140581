"""Fixtures of the fuzzers, and their watchdog: as for other tests on mounts, with time for long runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.harness import Watchdog
from tests.nodeserver.conftest import make_api

__all__ = ["make_api"]

if not os.access("/dev/fuse", os.R_OK | os.W_OK):
    pytest.skip("no access to /dev/fuse", allow_module_level=True)


@pytest.fixture(autouse=True)
def watchdog(soak: int) -> Iterator[None]:
    """No test hangs: after its time the daemons are killed and the test fails."""
    with Watchdog(180.0 if soak == 1 else 6000.0 * soak) as dog:
        yield
    assert not dog.barked, "the test took too long and its mounts were killed"
