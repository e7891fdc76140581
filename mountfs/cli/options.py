"""The ``-o`` options of mount and fstab, and sizes as people write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from mountfs.errors import Misused
from nodeserver.protocol.names import valid_name

IGNORED = {
    "_netdev", "async", "atime", "auto", "default_permissions", "defaults", "diratime", "group", "lazytime",
    "noatime", "noauto", "nodiratime", "nofail", "nolazytime", "norelatime", "nostrictatime", "nouser", "owner",
    "relatime", "remount", "rw", "strictatime", "user", "users",
}  # fmt: skip
"""For mount(8), systemd or the kernel, or what a mount is anyway."""
IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "helper=", "uhelper=", "user_id=", "group_id=", "max_read=")

_UNITS = {unit: 1024**power for power, unit in enumerate("BKMGTP")}


def parse_size(text: str) -> int:
    """Bytes of ``10G``, ``1.5 TiB``, ``4096``; units are powers of 1024. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size, such as 500M or 10G")
    size = float(match[1]) * _UNITS[match[2].upper() or "B"]
    if size >= 1 << 63:
        raise ValueError(f"{text!r} is out of range")
    return int(size)


def show_size(size: float) -> str:
    """``size`` bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


class Size(click.ParamType[int]):
    """A command line value that is a size."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class LocalPath(click.ParamType[Path]):
    """A path on the command line. Nothing is asked about it: it may be gone, unreadable, or in a mute mount."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


def _one_of(*values: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is not one of {', '.join(values)}")
        return text

    return check


def _file_name(text: str) -> str:
    if not valid_name(os.fsencode(text)):
        raise ValueError(f"{text!r} cannot be the name of a file")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", text, re.ASCII) or not float(text):
        raise ValueError(f"{text!r} is not a number of seconds more than 0")
    return float(text)


def _id(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) >= (1 << 32) - 1:
        raise ValueError(f"{text!r} is not the number of a user or group")
    return int(text)


def _mask(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise ValueError(f"{text!r} is not a mask, such as 022")
    return int(text, 8)


def _bound(text: str) -> float | None:
    if text == "none":
        return None
    if not (seconds := float(text)) >= 2:
        raise ValueError("must be none, or 2 or more")
    return seconds


FLAGS = {
    "ro": ("ro", True),
    "allow_other": ("allow_other", True),
    "exec": ("noexec", False),
    "noexec": ("noexec", True),
    "suid": ("nosuid", False),
    "nosuid": ("nosuid", True),
    "dev": ("nodev", False),
    "nodev": ("nodev", True),
    "xattr": ("xattr", True),
    "noxattr": ("xattr", False),
    "writeback": ("writeback", True),
    "nowriteback": ("writeback", False),
}
VALUES: dict[str, Callable[[str], Any]] = {
    "uid": _id,
    "gid": _id,
    "umask": _mask,
    "close": _one_of("local", "cluster"),
    "max_stale": _bound,
    "versions": _one_of("hidden", "root", "off"),
    "versions_name": _file_name,
    "token_file": str,
    "state": str,
    "cache_size": parse_size,
    "metadata_deadline": _seconds,
    "data_deadline": _seconds,
    "drain_deadline": _seconds,
    "settle": _seconds,
}


def split(texts: Iterable[str]) -> list[str]:
    """The options in comma-separated lists."""
    return [option for text in texts for option in text.split(",") if option]


def parse(items: Iterable[str], *, sloppy: bool = False) -> dict[str, Any]:
    """The settings that options stand for, later ones winning.

    Hyphens and underscores in names are the same. Raises ``Misused`` on what is unknown (unless ``sloppy``) or
    has a bad value.
    """
    found: dict[str, Any] = {}
    for option in items:
        key, equals, value = option.partition("=")
        key = key.replace("-", "_")
        if not equals and key in FLAGS:
            name, on = FLAGS[key]
            found[name] = on
        elif equals and key in VALUES:
            try:
                found[key] = VALUES[key](value)
            except ValueError as error:
                raise Misused(f"mount option {option}: {error}") from None
        elif option == "rw":
            found["ro"] = False
        elif not (sloppy or option in IGNORED or option.startswith(IGNORED_PREFIXES)):
            raise Misused(f"mount option {option} is not known")
    return found
