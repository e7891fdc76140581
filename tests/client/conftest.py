"""Fixtures for the tests of the client."""

from __future__ import annotations

from tests.faultproxy import fault_proxy

__all__ = ["fault_proxy"]
