"""``nodeserver token``: tokens for clients, and for servers that join."""

from __future__ import annotations

from pathlib import Path

import click

from nodeserver.access.tokens import Right
from nodeserver.cli.failures import Failure, failures
from nodeserver.datadir import DataDir

DAY = 86_400.0


@click.command()
@click.argument("kind", type=click.Choice(["join"]), required=False)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The directory of the server."
)
@click.option("--subject", default="user", show_default=True, help="Who the token is for; shown as author of versions.")
@click.option("--right", type=click.Choice(["admin", "read"]), default="read", show_default=True)
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True),
    help="How long it is valid.  [default: for ever; a join token a day]",
)
def token(kind: str | None, data: Path, subject: str, right: Right, days: float | None) -> None:
    """Print a new token for the server on a data directory; it may be running.

    With join, one that makes another server a node of the cluster (serve --join), and nothing else.
    """
    if kind == "join":
        subject, right, days = "join", "join", days or 1.0
    if not (data / "signing.key").exists():
        raise Failure(f"{data} is not the data directory of a server")
    with failures():
        click.echo(DataDir(data.resolve()).keys().mint(subject, right, days * DAY if days else None))
