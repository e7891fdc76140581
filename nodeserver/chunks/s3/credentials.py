"""Keys from the shared files of AWS. All else of the usual chain the library knows itself: variables of the
environment, web identity, containers, instances."""

from __future__ import annotations

import configparser
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import S3Credential

LIFETIME = timedelta(minutes=5)
"""How long keys are used until the files are read again: they may have been rotated."""
_FIRST = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")
"""What comes before the files."""


class NoCredentials(ValueError):
    """A profile that was asked for has no keys."""


def from_files() -> Callable[[], S3Credential] | None:
    """Reads the keys of the profile ``$AWS_PROFILE``; None when others are to be used.

    Raises ``NoCredentials``.
    """
    if any(os.environ.get(name) for name in _FIRST):
        return None
    if _read() is not None:
        return _credential
    if profile := os.environ.get("AWS_PROFILE"):
        raise NoCredentials(f"the profile {profile!r} has no aws_access_key_id and aws_secret_access_key in ~/.aws")
    return None


def region() -> str | None:
    """The region of the environment, or else of the profile."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if value := os.environ.get(name):
            return value
    profile = os.environ.get("AWS_PROFILE") or "default"
    section = profile if profile == "default" else f"profile {profile}"
    return _parsed("AWS_CONFIG_FILE", "config").get(section, "region", fallback=None)


def _credential() -> S3Credential:
    found = _read()
    if found is None:
        raise NoCredentials("the keys are no longer in ~/.aws")
    key, secret, token = found
    return {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": token,
        "expires_at": datetime.now(UTC) + LIFETIME,
    }


def _read() -> tuple[str, str, str | None] | None:
    profile = os.environ.get("AWS_PROFILE") or "default"
    in_config = profile if profile == "default" else f"profile {profile}"
    places = [("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile), ("AWS_CONFIG_FILE", "config", in_config)]
    for variable, name, section in places:
        file = _parsed(variable, name)
        key = file.get(section, "aws_access_key_id", fallback=None)
        secret = file.get(section, "aws_secret_access_key", fallback=None)
        if key and secret:
            return key, secret, file.get(section, "aws_session_token", fallback=None)
    return None


def _parsed(variable: str, name: str) -> configparser.RawConfigParser:
    path = Path(os.environ.get(variable) or Path("~/.aws") / name).expanduser()
    parser = configparser.RawConfigParser()
    try:
        parser.read(path)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise NoCredentials(f"{path} cannot be read") from error
    return parser
