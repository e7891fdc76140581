"""The watchdog, as for the other tests on mounts."""

from tests.mount.conftest import watchdog

__all__ = ["watchdog"]
