"""What versions are called, without a mount."""

from __future__ import annotations

from mountfs.vfs.history import names
from nodeserver.protocol.wire import Version

NOON = 1_795_348_800_123_999_999
"""2026-11-22T12:00:00.123999999Z."""


def version(tail: str, committed_ns: int = NOON) -> Version:
    """A version whose id ends so."""
    return Version(bytes.fromhex(tail.rjust(32, "0")), b"", 1, 0, b"", 0, 1, committed_ns, 0o100644)


def test_versions_that_would_be_called_the_same_differ() -> None:
    same = [version("aa12345678"), version("bb12345678"), version("cc12345678", NOON + 1_000_000)]
    assert list(names.version_names(b"a.odt", same)) == [
        b"2026-11-22T12-00-00.123Z_12345678.odt",
        b"2026-11-22T12-00-00.123Z_0000000000000000000000bb12345678.odt",
        b"2026-11-22T12-00-00.124Z_12345678.odt",
    ]
    assert list(names.version_names(b"a.odt", [*same, version("dd12345678")]))[:3] == list(
        names.version_names(b"a.odt", same)
    ), "names stay when more come"


def test_names_that_begin_like_times_are_doubled() -> None:
    for name in b"a", b"@", b"@now", b"@@", b"@" + b"n" * 254:
        assert names.real(names.shown(name)) == name
    assert names.real(b"@now") is None
    assert names.shown(b"a@") == b"a@"
