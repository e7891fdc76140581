"""``nodeserver durability``: how likely it is that a cluster loses data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from typing import Any

import click

from nodeserver.durability import Cluster, Durability, ImpossibleCluster, model
from nodeserver.placement.scheme import BadScheme, parse_scheme

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)(i?)", re.IGNORECASE | re.ASCII)


class _Bytes(click.ParamType[float]):
    """A number of bytes: 50M is 50 million, 50Mi is 50 times 2 to the 20th."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _SIZE.fullmatch(str(value))
        if match is None or (match[3] and not match[2]):
            self.fail(f"{value!r} is not a number of bytes such as 50M or 4T", param, ctx)
        power = list(UNITS).index(match[2].upper())
        return float(match[1]) * float((1024 if match[3] else 1000) ** power)


@click.command()
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="Nodes that hold data.")
@click.option("--scheme", default="replicate:3", show_default=True, help="replicate:N or erasure:k+m.")
@click.option(
    "--afr",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="Failures a node and year that lose it.",
)
@click.option(
    "--repair-rate", type=_Bytes(), default="50M", show_default=True, help="Bytes a second a node reads for it."
)
@click.option(
    "--scrub-days", type=click.FloatRange(min=0), default=30, show_default=True, help="Days in which all is checked."
)
@click.option("--capacity", type=_Bytes(), default="4T", show_default=True, help="Bytes that a node holds.")
@click.option("--chunk-size", type=_Bytes(), default="1Mi", show_default=True, help="Bytes of a chunk.")
@click.option(
    "--grace", type=click.FloatRange(min=0), default=900, show_default=True, help="Seconds before a repair begins."
)
@click.option(
    "--latent", type=click.FloatRange(min=0), default=0.1, show_default=True, help="Pieces that decay, a TB and year."
)
@click.option("--json", "as_json", is_flag=True, help="JSON for scripts.")
def durability(scheme: str, as_json: bool, **figures: Any) -> None:
    """Say how likely a cluster loses data within a year.

    A Markov model of independent failures of nodes, repair and scrub. The loss of a zone at once, and mistakes of
    people and programs, are not in it.
    """
    try:
        cluster = Cluster(scheme=parse_scheme(scheme), **figures)
        found = model(cluster)
    except BadScheme as error:
        raise click.BadParameter(str(error), param_hint="--scheme") from error
    except ImpossibleCluster as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps(_plain(cluster, found)))
        return
    years = f"{found.years:.3g} years" if math.isfinite(found.years) else "never"
    click.echo(f"any data lost within a year     {found.loss:.2e}")
    click.echo(f"mean time to the first loss     {years}")
    click.echo(f"one chunk lost within a year    {found.chunk_loss:.2e}  ({_nines(found)} nines)")
    click.echo(f"repair after a node's failure   {found.repair_seconds / 3600:.1f} hours")
    click.echo(f"bytes stored for each byte      {found.overhead:.2f}")


def _nines(found: Durability) -> str:
    return str(math.floor(found.nines)) if math.isfinite(found.nines) else "all"


def _plain(cluster: Cluster, found: Durability) -> dict[str, Any]:
    """As JSON has it: null for what is infinite."""
    figures = {**asdict(cluster), "scheme": str(cluster.scheme)}
    results = asdict(found) | {"nines": found.nines}
    return figures | {name: value if math.isfinite(value) else None for name, value in results.items()}
