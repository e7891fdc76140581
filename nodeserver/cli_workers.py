"""``nodeserver workers``: what goes on behind the requests of a running server."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

import click
import msgspec

from nodeserver.client import ClientError, connect
from nodeserver.client.errors import InvalidUrl
from nodeserver.datadir import ADDRESS, ADMIN_TOKEN
from nodeserver.protocol.wire import Workers, WorkerStatus

PATIENCE = 30 * 86_400.0
"""Seconds that a run may take."""


@click.command()
@click.argument("action", type=click.Choice(["list", "run", "pause", "resume"]), default="list")
@click.argument("name", default="")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data directory of the server.")
@click.option("--url", metavar="URL", help="The server, instead of --data.")
@click.option("--token-file", type=click.Path(path_type=Path, dir_okay=False), help="File with the token for --url.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def workers(
    action: str, name: str, data: Path | None, url: str | None, token_file: Path | None, *, as_json: bool
) -> None:
    """List background workers, or let one run now, pause until it is resumed, or resume.

    A run is over when the command ends. A pause ends with the server.
    """
    if (action == "list") == bool(name):
        raise click.UsageError(f"{action} takes no NAME" if name else f"{action} takes the NAME of a worker")
    address, token = _server(data, url, token_file)
    try:
        found = asyncio.run(_ask(address, token, action, name))
    except (ClientError, InvalidUrl, ValueError) as error:
        raise click.ClickException(f"{address}: {error}") from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(Workers(found)), indent=2).decode())
    else:
        for status in found:
            click.echo("\n".join(_lines(status)))
    if action == "run" and found[0].error:
        raise click.ClickException(f"{name} failed: {found[0].error}")


def _server(data: Path | None, url: str | None, token_file: Path | None) -> tuple[str, str]:
    """Address and token of the server that is meant."""
    if (data is None) == (url is None):
        raise click.UsageError("give either --data or --url")
    try:
        if data is not None:
            return (data / ADDRESS).read_text().strip(), (token_file or data / ADMIN_TOKEN).read_text().strip()
        if token_file is None:
            raise click.UsageError("--url needs --token-file")
        return str(url), token_file.read_text().strip()
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; does a server run there?") from error


async def _ask(address: str, token: str, action: str, name: str) -> list[WorkerStatus]:
    async with connect(address, token) as client:
        if action == "list":
            return await client.workers()
        return [await client.worker(name, action, deadline=PATIENCE if action == "run" else None)]


def _lines(status: WorkerStatus) -> list[str]:
    progress = f", {status.done} of {max(status.done, status.total)}" if status.state == "running" else ""
    lines = [f"{status.name}: {status.state}{progress}"]
    if status.last_ns:
        lines.append(f"  last {_time(status.last_ns)}: {status.error or status.summary}")
    if status.next_ns and status.state == "idle":
        lines.append(f"  next {_time(status.next_ns)}")
    return lines


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000).astimezone().isoformat(sep=" ")
