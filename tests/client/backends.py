"""Run a test under each event loop that the client promises to work with."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest


def both(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The asynchronous ``test`` once under trio and once under asyncio; cancelled after 20 seconds."""

    async def limited(**fixtures: Any) -> None:
        with anyio.fail_after(20):
            await test(**fixtures)

    def run(backend: str, **fixtures: Any) -> None:
        anyio.run(partial(limited, **fixtures), backend=backend)

    signature = inspect.signature(test)
    backend = inspect.Parameter("backend", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[backend, *signature.parameters.values()])  # type: ignore[attr-defined]
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    parametrized: Callable[..., None] = pytest.mark.parametrize("backend", ["trio", "asyncio"])(run)
    return parametrized
