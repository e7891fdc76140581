"""``nodeserver metadata``: all metadata into a file and back, from one database to another."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import click

from nodeserver.cli.failures import EXIT_USAGE, Failure, failures
from nodeserver.datadir import hold
from nodeserver.metadata import moving
from nodeserver.metadata.dumpfile import BadDump

_data = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="The data directory with the SQLite database."
)
_metadata = click.option("--metadata", metavar="URL", help="The metadata database, as for serve.")


@click.group()
def metadata() -> None:
    """Move the metadata of node servers between databases."""


@metadata.command()
@_data
@_metadata
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def dump(data: Path | None, metadata: str | None, file: Path) -> None:
    """Write all metadata, as of one moment, to FILE.

    A server may run meanwhile; what is committed after the moment is not in FILE.
    """
    url = _url(data, metadata)
    if data and not (data / "metadata.sqlite").exists():
        raise Failure(f"{data} has no metadata.sqlite")
    with failures():
        try:
            _report(asyncio.run(moving.dump(url, file)))
        except moving.Refused as error:
            raise Failure(str(error)) from error


@metadata.command()
@_data
@_metadata
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
def load(data: Path | None, metadata: str | None, file: Path) -> None:
    """Fill an empty database from FILE and verify it.

    No server may run on the database. A load that was broken off goes on where it was when the command is repeated.
    """
    url = _url(data, metadata)
    with failures(), ExitStack() as held:
        if data:
            held.enter_context(hold(data.resolve()))
        try:
            _report(asyncio.run(moving.load(url, file)))
        except (BadDump, moving.Refused, moving.Mismatch) as error:
            raise Failure(str(error)) from error


def _url(data: Path | None, metadata: str | None) -> str:
    if metadata and not data:
        return metadata
    if data and not metadata:
        return f"sqlite:///{data.resolve() / 'metadata.sqlite'}"
    raise Failure("say either --data or --metadata", EXIT_USAGE)


def _report(rows: dict[str, int]) -> None:
    for table, count in rows.items():
        click.echo(f"{table} {count}")
