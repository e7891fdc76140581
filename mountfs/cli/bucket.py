"""``mountfs bucket``."""

from __future__ import annotations

import grp
import json
import os
import pwd
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from msgspec import UNSET

from mountfs import mounts
from mountfs.cli import live, settings
from mountfs.cli.options import Size, show_size
from mountfs.errors import Misused, MountError, NotMounted
from nodeserver.client import Client, ClientError, Refused, connect
from nodeserver.protocol.errors import Code
from nodeserver.protocol.names import BUCKET_RULE, valid_bucket
from nodeserver.protocol.wire import Bucket, BucketSettings

T = TypeVar("T")

DEADLINE = 5.0
"""Seconds a call may take: less than a mount waits, as a person does here."""


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a server."""
    function = click.option("--token-file", metavar="FILE", help="File with the token.")(function)
    where = "The node server (default: of the mount you are in, or of all)."
    return click.option("--url", metavar="URL", help=where)(function)


def ask(url: str, token: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``work`` with a client. Raises ``MountError`` for whatever the server or the network says."""

    async def session() -> T:
        async with connect(url, token, metadata_deadline=DEADLINE) as client:
            return await work(client)

    try:
        return trio.run(session)
    except ClientError as error:
        raise MountError(f"{url}: {error}") from error


def server(url: str | None, token_file: str | None) -> tuple[str, str]:
    """The address and token of the server meant: given, of the mount that contains the current directory, or of all."""
    if url:
        address, bucket = settings.parse_source(url)
        if bucket:
            raise Misused(f"{url}: the address of a server is needed, without a bucket")
        configured = settings.from_files(address, None, None).get("token_file")
        return address, settings.find_token(token_file, configured, settings.default_state(address, None))
    try:
        record = live.record_at(Path.cwd())
    except NotMounted:
        running = [record for record in mounts.records() if record.running]
        if len({record.url for record in running}) != 1:
            raise NotMounted("the current directory is not in a mountfs mount; give --url http://HOST:PORT") from None
        record = running[0]
    return record.url, settings.find_token(token_file, None, Path(record.state))


@click.group("bucket")
def command() -> None:
    """Create, list, set up and delete buckets."""


@command.command("create")
@click.argument("name")
@click.option("--quota", type=Size(), help="Most bytes the bucket may hold, such as 100G.")
@click.option("--owner", metavar="USER[:GROUP]", help="Who owns its root directory.  [default: you]")
@server_options
def create(name: str, quota: int | None, owner: str | None, url: str | None, token_file: str | None) -> None:
    """Create the bucket NAME."""
    _check(name)
    uid, gid = _owner(owner) if owner else (os.getuid(), os.getgid())

    async def work(client: Client) -> None:
        await client.create_bucket(name, quota=quota, uid=uid, gid=gid)

    ask(*server(url, token_file), work)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@server_options
def list_(as_json: bool, url: str | None, token_file: str | None) -> None:
    """List the buckets."""

    async def work(client: Client) -> list[Bucket]:
        return await client.buckets()

    buckets = ask(*server(url, token_file), work)
    if as_json:
        click.echo(json.dumps([_plain(bucket) for bucket in buckets], indent=2))
        return
    for bucket in buckets:
        quota = f" of {show_size(bucket.usage.quota_bytes)}" if bucket.usage.quota_bytes is not None else ""
        click.echo(f"{bucket.name}  {show_size(bucket.usage.used_bytes)}{quota} in {bucket.usage.used_files} files")


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@server_options
def show(name: str, as_json: bool, url: str | None, token_file: str | None) -> None:
    """Show the settings of the bucket NAME."""
    _check(name)

    async def work(client: Client) -> Bucket:
        return await client.bucket(name)

    bucket = ask(*server(url, token_file), work)
    if as_json:
        click.echo(json.dumps(_plain(bucket), indent=2))
        return
    quota = "none" if bucket.usage.quota_bytes is None else show_size(bucket.usage.quota_bytes)
    click.echo(f"redundancy  {bucket.redundancy or 'auto'}\nquota       {quota}")
    click.echo(f"used        {show_size(bucket.usage.used_bytes)} in {bucket.usage.used_files} files")


@command.command("set")
@click.argument("name")
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--force", is_flag=True, help="Take an erasure code for more nodes than there are.")
@server_options
def set_(name: str, values: tuple[str, ...], force: bool, url: str | None, token_file: str | None) -> None:
    """Change settings of the bucket NAME.

    redundancy=auto (as many copies as there are nodes, three at most), replicate:N, replicate:N:W (a write is
    acknowledged by W nodes) or erasure:K+M; what is stored is brought to it in the background. quota=100G, or
    quota=none.
    """
    _check(name)
    wanted = BucketSettings(force=force)
    for value in values:
        key, _, text = value.partition("=")
        if key == "redundancy":
            wanted.redundancy = "" if text == "auto" else text
        elif key == "quota":
            wanted.quota_bytes = None if text == "none" else Size().convert(text, None, None)
        else:
            raise Misused(f"{value!r}: there are redundancy=… and quota=…")

    async def work(client: Client) -> Bucket:
        return await client.set_bucket(name, wanted)

    bucket = ask(*server(url, token_file), work)
    if wanted.redundancy is not UNSET:
        click.echo(f"{name}: redundancy is {bucket.redundancy or 'auto'}; nodeserver workers shows how far it is")


@command.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options
def delete(name: str, yes: bool, url: str | None, token_file: str | None) -> None:
    """Delete the bucket NAME, in which no files may be.

    Asks first when it keeps the history of deleted files, which goes with it.
    """
    _check(name)

    async def work(client: Client, *, history: bool) -> bool:
        try:
            await client.delete_bucket(name, history=history)
        except Refused as refused:
            if refused.code is not Code.HAS_HISTORY:
                raise
            return False
        return True

    where = server(url, token_file)
    if not ask(*where, lambda client: work(client, history=yes)):
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise MountError(f"{name}: keeps the history of deleted files; --yes destroys it with the bucket")
        if not click.confirm(f"{name} keeps the history of deleted files. Destroy it for good?", err=True):
            raise MountError(f"{name}: nothing was deleted")
        ask(*where, lambda client: work(client, history=True))


def _owner(text: str) -> tuple[int, int]:
    """The numbers of a user and group, by name or number; the user's own group if none is given."""
    user, colon, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except (KeyError, OverflowError):
        if not (user.isascii() and user.isdigit() and colon):
            raise MountError(f"there is no user {user!r}") from None
        uid, gid = int(user), 0  # one that is known elsewhere
    if not colon:
        return uid, gid
    if group.isascii() and group.isdigit():
        return uid, int(group)
    try:
        return uid, grp.getgrnam(group).gr_gid
    except KeyError:
        raise MountError(f"there is no group {group!r}") from None


def _check(name: str) -> None:
    if not valid_bucket(name):
        raise Misused(f"{name!r} cannot be the name of a bucket: {BUCKET_RULE}")


def _plain(bucket: Bucket) -> dict[str, Any]:
    created = datetime.fromtimestamp(bucket.created_ns / 1e9, UTC)
    return {
        "name": bucket.name,
        "created": created.isoformat(timespec="milliseconds"),
        "used_bytes": bucket.usage.used_bytes,
        "used_files": bucket.usage.used_files,
        "quota_bytes": bucket.usage.quota_bytes,
        "redundancy": bucket.redundancy or "auto",
    }
