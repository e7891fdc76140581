"""``nodeserver workers``: what goes on behind the requests of a running server."""

from __future__ import annotations

from datetime import datetime

import click
import msgspec

from nodeserver.cli.target import Server, target
from nodeserver.cli.units import Size, size
from nodeserver.client import Client
from nodeserver.protocol.wire import Workers, WorkerStatus

PATIENCE = 30 * 86_400.0
"""Seconds that a run may take."""


@click.command()
@click.argument("action", type=click.Choice(["list", "run", "pause", "resume", "throttle"]), default="list")
@click.argument("name", default="")
@click.argument("rate", type=Size(), required=False)
@target
def workers(action: str, name: str, rate: int | None, server: Server, *, as_json: bool) -> None:
    """List background workers, or let one run now, pause, resume, or be throttled to a RATE.

    A run is over when the command ends. RATE is in bytes a second, as 50M; 0 takes the limit away. A pause and a
    throttle end with the server. Each node has workers of its own, asked for with its --data or --url.
    """
    if (action == "list") == bool(name):
        raise click.UsageError(f"{action} takes no NAME" if name else f"{action} takes the NAME of a worker")
    if (action == "throttle") != (rate is not None):
        raise click.UsageError("throttle takes a NAME and a RATE" if rate is None else f"{action} takes no RATE")
    found = server.ask(lambda client: _ask(client, action, name, rate))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(Workers(found)), indent=2).decode())
    else:
        for status in found:
            click.echo("\n".join(_lines(status)))
    if action == "run" and found[0].error:
        raise click.ClickException(f"{name} failed: {found[0].error}")


async def _ask(client: Client, action: str, name: str, rate: int | None) -> list[WorkerStatus]:
    if action == "list":
        return await client.workers()
    if rate is not None:
        return [await client.throttle(name, rate)]
    return [await client.worker(name, action, deadline=PATIENCE if action == "run" else None)]


def _lines(status: WorkerStatus) -> list[str]:
    progress = f", {status.done} of {max(status.done, status.total)}" if status.state == "running" else ""
    lines = [f"{status.name}: {status.state}{progress}"]
    if status.last_ns:
        lines.append(f"  last {_time(status.last_ns)}: {status.error or status.summary}")
    if status.rate:
        lines.append(f"  at most {size(status.rate)}/s")
    if status.next_ns and status.state == "idle":
        lines.append(f"  next {_time(status.next_ns)}")
    return lines


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000).astimezone().isoformat(sep=" ")
