"""``nodeserver nodes``, ``node`` and ``status``: the cluster for who runs it."""

from __future__ import annotations

import time

import click
import msgspec

from nodeserver.cli.target import Server, target
from nodeserver.cli.units import duration, size
from nodeserver.client import Client
from nodeserver.protocol.cluster import ClusterStatus, MovePreview, NodeChange, Nodes, NodeStatus

PREVIEW = 600.0
"""Seconds that a look at all chunks may take."""


@click.command()
@target
def nodes(server: Server, *, as_json: bool) -> None:
    """List the nodes of the cluster, with what they last said of themselves."""
    found = server.ask(lambda client: client.nodes())
    if as_json:
        click.echo(_json(found))
        return
    rows: list[tuple[str, ...]] = [
        ("NODE", "STATE", "ZONE", "ROLES", "WEIGHT", "USED", "FREE", "PIECES", "SEEN", "VERSION", "URL")
    ]
    rows += [_row(one) for one in found.nodes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command()
@click.argument("action", type=click.Choice(["drain", "undrain", "remove", "weight"]))
@click.argument("node")
@click.argument("value", type=click.FloatRange(min=0, min_open=True), required=False)
@click.option("--apply", "really", is_flag=True, help="Do it, instead of only showing what would move.")
@click.option("--lose-data", is_flag=True, help="With --apply: remove a node even if chunks are lost with it.")
@target
def node(
    action: str, node: str, value: float | None, server: Server, *, really: bool, lose_data: bool, as_json: bool
) -> None:
    """Change a node's place in the cluster: show what would move, and with --apply do it.

    drain: it gets nothing new, and what it has moves to the others; undrain takes that back. remove: it is gone for
    ever, and what it had is made anew from the others. weight VALUE: its share of the chunks, relative to the others'.
    NODE is its id, or any part that no other has, as `nodeserver nodes` shows it.
    """
    if (action == "weight") != (value is not None):
        raise click.UsageError("weight takes a VALUE" if value is None else f"{action} takes no VALUE")
    state = {"drain": "draining", "undrain": "up", "remove": "removed"}.get(action)
    change = NodeChange(state, value)
    preview, known, done = server.ask(lambda client: _change(client, node, change, really=really, lose_data=lose_data))
    if as_json:
        click.echo(_json(preview))
    else:
        for line in _moves(preview, known):
            click.echo(line)
    if really and not done:
        raise click.ClickException(
            "nothing was changed: drain the node first, so that others have its chunks; or let them go with --lose-data"
        )
    if as_json:
        return
    if done:
        click.echo(f"done: node {_name(done)} is {done.state}, weight {done.member.weight:g}")
    else:
        click.echo("nothing was changed: --apply does it")


@click.command()
@target
def status(server: Server, *, as_json: bool) -> None:
    """Say whether the cluster is healthy, or what is wrong. Exits with 1 unless it is healthy."""
    found = server.ask(lambda client: client.status())
    if as_json:
        click.echo(_json(found))
    else:
        for line in _health(found):
            click.echo(line)
    if not found.healthy:
        raise SystemExit(1)


async def _change(
    client: Client, name: str, change: NodeChange, *, really: bool, lose_data: bool
) -> tuple[MovePreview, Nodes, NodeStatus | None]:
    """What would move, the nodes, and the one that was changed if it was."""
    known = await client.nodes()
    found = [one for one in known.nodes if name.lower() in one.member.id.hex()]
    if len(found) != 1:
        several = "several nodes have ids" if found else "no node has an id"
        raise click.ClickException(f"{several} with {name!r} in it: nodeserver nodes lists them")
    preview = await client.preview_node(found[0].member.id, change, deadline=PREVIEW)
    if not really or (preview.lost and not lose_data):
        return preview, known, None
    return preview, known, await client.change_node(found[0].member.id, change)


def _moves(preview: MovePreview, known: Nodes) -> list[str]:
    names = {one.member.id: _name(one) for one in known.nodes}
    about = "about " if preview.share < 1 else ""
    lines = [f"{about}{preview.pieces} pieces move, {about}{size(preview.size)}"]
    for flow in sorted(preview.flows, key=lambda flow: (flow.source, flow.target)):
        source = names[flow.source] if flow.source else "made from the others"
        lines.append(f"  {source} -> {names[flow.target]}: {flow.pieces} pieces, {size(flow.size)}")
    if preview.missing:
        lines.append(f"warning: there is no node for {preview.missing} pieces: chunks stay below their redundancy")
    if preview.lost:
        lines.append(f"warning: {about}{preview.lost} chunks are on no node that stays, and would be LOST")
    if preview.seconds:
        lines.append(f"at the present throttle of the worker rebalance: {duration(preview.seconds)}")
    return lines


def _health(found: ClusterStatus) -> list[str]:
    lines = ["healthy" if found.healthy else "not healthy", f"{found.up} of {found.nodes} nodes are up"]
    lines += [f"- {problem}" for problem in found.problems]
    if found.seconds:
        lines.append(f"repairs are through in about {duration(found.seconds)}")
    if found.surveyed_ns:
        lines.append(f"all chunks were looked at {duration(time.time() - found.surveyed_ns / 1e9)} ago")
    return lines


def _row(one: NodeStatus) -> tuple[str, ...]:
    member = one.member
    seen = f"{duration(time.time() - one.last_seen_ns / 1e9)} ago" if one.last_seen_ns else "never"
    used, free = size(member.used_bytes), size(member.free_bytes)
    zone = f"{member.region}/{member.zone}" if member.region else member.zone or "-"
    shown = (_name(one), one.state, zone, ",".join(member.roles), f"{member.weight:g}", used, free)
    return (*shown, str(member.pieces), seen, member.version, member.url)


def _name(one: NodeStatus) -> str:
    return one.member.id.hex()[-8:]


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
