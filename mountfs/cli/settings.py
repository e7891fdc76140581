"""Command line, environment and configuration files, merged into what a mount is started with."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from mountfs import mounts
from mountfs.cli import options
from mountfs.config import MountConfig, MountOptions
from mountfs.errors import Misused, MountError
from nodeserver.protocol.names import BUCKET_RULE, valid_bucket

TOKEN = "token"  # noqa: S105
"""The file in a state directory that keeps the token its mount was last started with."""
_OPTION_FIELDS = {field.name for field in dataclasses.fields(MountOptions)}


def parse_source(source: str) -> tuple[str, str | None]:
    """The server's address and the bucket in ``URL[/BUCKET]``. Raises ``Misused``."""
    no_address = f"{source}: not the address of a node server, such as http://HOST:PORT or http://HOST:PORT/BUCKET"
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Misused(no_address) from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise Misused(no_address)
    bucket = parts.path.strip("/") or None
    if bucket is not None and not valid_bucket(bucket):
        raise Misused(f"{source}: {bucket!r} cannot be the name of a bucket: {BUCKET_RULE}")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}", bucket


def absolute(path: Path) -> Path:
    """``path`` as the kernel's table of mounts has it.

    The last component is looked at only when no mount of ours is there: a dead or mute daemon must not stop us.
    """
    point = Path(os.path.realpath(path.expanduser().parent), path.name) if path.name not in ("", "..") else path
    return point if mounts.find(point) else Path(os.path.realpath(path.expanduser()))


def default_state(url: str, bucket: str | None) -> Path:
    """The state directory of a source: the same whenever and wherever it is mounted."""
    digest = hashlib.sha256(f"{url}\0{bucket or ''}".encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{urlsplit(url).netloc}-{bucket or 'all'}")
    return mounts.state_root() / f"{readable}-{digest}"


def config_files() -> list[Path]:
    """The configuration files, the stronger one last."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path("/etc/mountfs/config.toml"), Path(home) / "mountfs/config.toml"]


def from_files(url: str, bucket: str | None, mountpoint: Path | None) -> dict[str, Any]:
    """What the configuration files say about one mount: general, by server, by bucket, by mount point."""
    found: dict[str, Any] = {}
    keys = [url, *([f"{url}/{bucket}"] if bucket else []), *([str(mountpoint)] if mountpoint else [])]
    for file in config_files():
        general, sections = _load(file)
        found |= general
        for key in keys:
            found |= sections.get(key, {})
    return found


def read_token(file: Path) -> str:
    """The token in a file. Warns when others can read it. Raises ``MountError``."""
    try:
        with open(file.expanduser()) as stream:
            open_to_others = os.fstat(stream.fileno()).st_mode & 0o077
            token = stream.read(64 * 1024).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MountError(f"token file {file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not token or any(character.isspace() or not character.isprintable() for character in token):
        raise MountError(f"token file {file}: there is no token in it")
    if open_to_others:
        click.echo(f"mountfs: warning: token file {file} is open to other users; chmod 600 {file}", err=True)
    return token


def find_token(given: str | None, configured: str | None, state: Path | None) -> str:
    """The token: of the file given, of ``MOUNTFS_TOKEN_FILE``, of the configuration, or kept in the state."""
    if file := given or os.environ.get("MOUNTFS_TOKEN_FILE") or configured:
        return read_token(Path(file))
    if state and (state / TOKEN).exists():
        return read_token(state / TOKEN)
    raise MountError(
        "no token: give --token-file FILE, or name the file in MOUNTFS_TOKEN_FILE; that of the server is admin.token in"
        " its --data directory"
    )


def build(source: str, mountpoint: Path, given: dict[str, Any]) -> MountConfig:
    """The configuration of a mount. ``given`` (the command line) wins over the files. Raises ``MountError``."""
    url, bucket = parse_source(source)
    point = absolute(mountpoint)
    files = from_files(url, bucket, point)
    values = files | given
    state_given = values.pop("state", None)
    state = Path(os.path.abspath(Path(state_given).expanduser())) if state_given else default_state(url, bucket)
    token = find_token(given.get("token_file"), files.get("token_file"), state)
    values["token_file"] = given.get("token_file") or ""
    chosen = MountOptions(**{key: values.pop(key) for key in _OPTION_FIELDS & values.keys()})
    return MountConfig(url=url, bucket=bucket, mountpoint=point, token=token, state=state, options=chosen, **values)


def _load(file: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The general settings of a file, and its sections by URL, bucket or mount point."""
    try:
        with open(file, "rb") as stream:
            content = tomllib.load(stream)
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    except OSError as error:
        raise MountError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise Misused(f"{file}: {error}") from None
    if unknown := content.keys() - {"mount"}:
        raise Misused(f"{file}: [{min(unknown)}] is not known; settings go below [mount]")
    table = content.get("mount", {})
    if not isinstance(table, dict):
        raise Misused(f"{file}: mount is not a table")
    general = {key: value for key, value in table.items() if not isinstance(value, dict)}
    sections = {
        os.path.expanduser(key).rstrip("/"): _settings(file, value)
        for key, value in table.items()
        if isinstance(value, dict)
    }
    return _settings(file, general), sections


def _settings(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in a file are the ``-o`` options by name; ``options`` holds a list of them as fstab has it."""
    found: dict[str, Any] = {}
    try:
        for key, value in values.items():
            name = key.replace("-", "_")
            if key == "options":
                found |= options.parse(options.split([str(value)]))
            elif isinstance(value, bool) and name in options.FLAGS:
                field, on = options.FLAGS[name]
                found[field] = on if value else not on
            else:
                found |= options.parse([f"{key}={value}"])
    except MountError as error:
        raise Misused(f"{file}: {error}") from None
    return found
