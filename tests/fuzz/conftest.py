"""Fixtures of the fuzzers."""

from tests.nodeserver.conftest import make_api

__all__ = ["make_api"]
