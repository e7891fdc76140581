"""What buckets and files may be called."""

from __future__ import annotations

import ipaddress
import re

NAME_MAX = 255
"""Bytes in one path component, as on Linux file systems."""
XATTR_VALUE_MAX = XATTR_LIST_MAX = 64 * 1024
"""Bytes in the value of an extended attribute, and in all names of a file's with a NUL each, as Linux has them."""
XATTR_MAX = 256 * 1024
"""Bytes of names and values of a file's extended attributes together."""

BUCKET_RULE = "the name of a bucket has 3 to 63 lower-case letters, digits, '-' and '.', a letter or digit at both ends"
"""For people: why ``valid_bucket`` says no."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def valid_bucket(name: str) -> bool:
    """Whether ``name`` follows the S3 rules for general purpose buckets.

    3 to 63 characters, lower-case letters, digits, dots and hyphens, a letter or digit at both
    ends, no two dots together, not an IPv4 address, none of the prefixes and suffixes S3 reserves.
    """
    if not _BUCKET.fullmatch(name) or ".." in name:
        return False
    if name.startswith(("xn--", "sthree-", "amzn-s3-demo-")):
        return False
    if name.endswith(("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")):
        return False
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return True
    return False


def xattrs_size(xattrs: dict[bytes, bytes]) -> int:
    """Bytes of names and values of extended attributes, a NUL behind each name."""
    return sum(len(name) + 1 + len(value) for name, value in xattrs.items())


def valid_name(name: bytes) -> bool:
    """Whether ``name`` can be a directory entry: 1 to 255 bytes, no ``/``, no NUL, not ``.`` or ``..``."""
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
