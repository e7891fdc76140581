"""A home directory of its own for each test, so that nobody's configuration, state or mounts are seen or touched."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``HOME`` and the XDG directories in the test's directory."""
    home = tmp_path / "home"
    for variable, place in (
        ("HOME", "."),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_DATA_HOME", "data"),
        ("MOUNTFS_RUNTIME_DIR", "run/mountfs"),
    ):
        (home / place).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(variable, str(home / place))
    monkeypatch.delenv("MOUNTFS_TOKEN_FILE", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return home
