"""``nodeserver serve``: its options."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
import tomllib
from functools import partial
from pathlib import Path

import click

from nodeserver.chunks.s3 import Address
from nodeserver.cli.chunks import ChunksAddress, open_chunks
from nodeserver.cli.failures import EXIT_USAGE, Failure, failures
from nodeserver.cli.joining import join_token as find_join_token
from nodeserver.cli.serving import Plan, run
from nodeserver.cli.units import Duration, Size
from nodeserver.datadir import hold
from nodeserver.http.assembly import Standing
from nodeserver.http.logs import OneLine
from nodeserver.workers.schedule import Times

DEFAULT_LISTEN = "127.0.0.1:7070"


def _load_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Make the values of a TOML file the defaults of the options."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}") from error
    known = {parameter.name for parameter in context.command.params} - {"config"}
    if unknown := sorted(set(values) - known):
        raise click.BadParameter(f"{path}: unknown key {unknown[0]!r}")
    context.default_map = {**(context.default_map or {}), **values}


_config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_load_config,
    is_eager=True,
    expose_value=False,
    help="A TOML file with the names of these options as keys; the command line wins.",
)
_data = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where everything is kept; made if absent. One server at a time.",
)


@click.command("serve")
@_data
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT", help="Port 0 picks one.")
@click.option("--metadata", metavar="URL", help="The metadata database.  [default: SQLite in the data directory]")
@click.option(
    "--chunks",
    type=ChunksAddress(),
    metavar="s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]",
    help="Where chunks are kept; with credentials from the environment or ~/.aws.  [default: the data directory]",
)
@click.option("--capacity", type=Size(), metavar="SIZE", help="The room there is with --chunks.  [default: 1 EiB]")
@click.option("--insecure", is_flag=True, help="Allow plain HTTP on addresses that other machines reach.")
@click.option(
    "--gc-grace",
    type=Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="How long chunks that nothing needs are kept: longer than the upload of any one file takes.",
)
@click.option(
    "--gc-interval",
    type=Duration(),
    default="6h",
    show_default=True,
    metavar="TIME",
    help="How often chunks that nothing needs are looked for.",
)
@click.option(
    "--retention-interval",
    type=Duration(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How often versions that no policy keeps are taken out.",
)
@click.option("--join", metavar="URL", help="Become a node of the cluster of this server, and keep chunks for it.")
@click.option("--join-token", metavar="TOKEN", help="What `nodeserver token join` printed there.")
@click.option(
    "--join-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with it, instead of --join-token.",
)
@click.option("--url", metavar="URL", help="Where others reach this server.  [default: the address it listens on]")
@click.option("--zone", default="", help="What fails together with this node: a rack, a room.")
@click.option("--region", default="", help="Where the zone is.")
@click.option(
    "--weight", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Its share of chunks."
)
@click.option(
    "--roles",
    type=click.Choice(["metadata,chunks", "metadata", "chunks"]),
    help="What it answers for.  [default: metadata,chunks; with --join chunks]",
)
@click.option(
    "--scrub-period",
    type=Duration(),
    default="30d",
    show_default=True,
    metavar="TIME",
    help="In which the checksum of everything on the disk is looked at.",
)
@click.option(
    "--down-after",
    type=Duration(),
    default="15s",
    show_default=True,
    metavar="TIME",
    help="How long a node may be silent until it is taken for down.",
)
@click.option(
    "--repair-after",
    type=Duration(),
    default="15m",
    show_default=True,
    metavar="TIME",
    help="How long a node may be down until others get what it has.",
)
@click.option(
    "--beat", type=Duration(), default="3s", show_default=True, metavar="TIME", help="Between two signs of life."
)
@_config
def command(
    data: Path,
    listen: str,
    metadata: str | None,
    chunks: Address | None,
    capacity: int | None,
    insecure: bool,
    join: str | None,
    join_token: str | None,
    join_token_file: Path | None,
    url: str | None,
    zone: str,
    region: str,
    weight: float,
    roles: str | None,
    **times: float,
) -> None:
    """Serve until SIGTERM; prints "ready URL" once requests are answered."""
    host, port = _address(listen)
    if not insecure and not _is_loopback(host):
        raise Failure(
            f"{host} is not a loopback address and this release has no TLS: anyone on the way could read the files "
            "and the token. Put a TLS proxy in front, or use --insecure.",
            EXIT_USAGE,
        )
    if chunks and chunks.plain and not insecure:
        raise Failure("the endpoint of --chunks is reached by plain HTTP: use https, or --insecure.", EXIT_USAGE)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if roles and "metadata" in roles and join:
        raise Failure(
            "a node that joins keeps chunks alone: metadata on several servers takes --metadata postgresql://, "
            "and no --join",
            EXIT_USAGE,
        )
    if join and (metadata or chunks):
        raise Failure("--join takes neither --metadata nor --chunks", EXIT_USAGE)
    with failures(), hold(data.resolve()) as directory:
        if roles == "chunks" and not join and not directory.joined:
            raise Failure("a node with chunks alone has to --join a cluster", EXIT_USAGE)
        standing = Standing(url or "", zone, region, weight, (roles or "metadata,chunks").split(","))
        store = partial(open_chunks, directory.path, chunks, capacity)
        joining = (join, find_join_token(join_token, join_token_file)) if join else None
        plan = Plan(host, port, metadata, store, Times(**times), standing, joining)
        asyncio.run(run(directory, plan))


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{listen!r} is not HOST:PORT", param_hint="--listen")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
