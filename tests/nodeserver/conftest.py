"""Fixtures of the tests of the HTTP API: buckets on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.harness import Node
from tests.nodeserver.api import Api
from tests.nodeserver.seaweed import keys, seaweed

__all__ = ["keys", "seaweed"]

_numbers = itertools.count()


@pytest.fixture
def make_api() -> Iterator[Callable[[Node], Api]]:
    """Makes clients of a bucket of their own."""
    made: list[Api] = []

    def make(node: Node) -> Api:
        made.append(Api(node, f"bucket{next(_numbers)}"))
        return made[-1]

    yield make
    for api in made:
        api.http.close()


@pytest.fixture
def api(module_node: Node, make_api: Callable[[Node], Api]) -> Api:
    """A client of an empty bucket; the server is shared by the module's tests."""
    return make_api(module_node)
