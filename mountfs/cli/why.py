"""``mountfs why``."""

from __future__ import annotations

import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mountfs.cli.history.content import Reader
from mountfs.cli.history.node import Talk, talk_of
from mountfs.cli.history.paths import target
from mountfs.cli.history.show import local_time, print_json, say
from mountfs.cli.options import LocalPath
from mountfs.errors import MountError
from nodeserver.protocol.cluster import ChunkWhere, Holder, NodeStatus
from nodeserver.protocol.pieces import fragment_of, readable

SHOWN = 20
"""Chunks shown one by one, unless all are asked for."""


@click.command("why")
@click.argument("path", type=LocalPath())
@click.option("--all", "all_", is_flag=True, help=f"Show every chunk, not the first {SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(path: Path, all_: bool, as_json: bool) -> None:
    """Show where the chunks of a file are.

    By which rule, on which nodes, when each piece was last verified; at the end, what would be lost if a given node
    died now.
    """
    place = target(path)
    if not place.file:
        raise MountError(f"{place.shown}: there is no such file now")
    if not stat.S_ISREG(place.mode):
        raise MountError(f"{place.shown}: not a file, so it has no chunks")

    async def work(talk: Talk) -> tuple[list[ChunkWhere], list[NodeStatus]]:
        found = await talk.client.file(talk.name, place.file)
        slices = await Reader(talk).slices(found.file.manifest if found.file else None)
        chunks = list(dict.fromkeys(piece.chunk for piece in slices if piece.chunk))
        nodes = (await talk.client.nodes()).nodes
        return (await talk.client.where(talk.name, chunks) if chunks else []), nodes

    chunks, nodes = talk_of(place.record, place.bucket, work)
    names = {node.member.id: _name(node) for node in nodes}
    losses = _losses(chunks, names)
    if as_json:
        print_json({"chunks": [_plain(chunk) for chunk in chunks], "lost_with": losses})
        return
    if not chunks:
        say(f"{place.shown}: has no chunks; what there is of it is in the metadata")
        return
    for chunk in chunks if all_ else chunks[:SHOWN]:
        for line in _lines(chunk, names):
            say(line)
    if len(chunks) > SHOWN and not all_:
        say(f"and {len(chunks) - SHOWN} chunks more: --all shows them")
    for line in _outlook(chunks, names, losses):
        say(line)


def _lines(chunk: ChunkWhere, names: dict[bytes, str]) -> Iterable[str]:
    yield f"chunk {chunk.id.hex()[:16]}  {chunk.scheme}  {chunk.have} of {chunk.wanted}"
    there: defaultdict[bytes, list[Holder]] = defaultdict(list)
    for holder in chunk.holders:
        there[holder.node].append(holder)
    others = [node for node in there if node not in chunk.home]
    for node in [*chunk.home, *others]:
        what = ", ".join(_piece(holder) for holder in there[node])
        if not what:
            what = "does not answer" if node in chunk.silent else "MISSING"
        yield f"  {names.get(node, node.hex())}: {what}{'' if node in chunk.home else ' (left over)'}"
    for node in chunk.silent:
        if node not in chunk.home:
            yield f"  {names.get(node, node.hex())}: does not answer"


def _piece(holder: Holder) -> str:
    fragment = fragment_of(holder.held.piece)
    what = f"fragment {fragment.number} of {fragment.data}+{fragment.parity}" if fragment else "copy"
    return f"{what}, {holder.held.size} bytes, verified {local_time(holder.held.verified_ns)}"


def _outlook(chunks: list[ChunkWhere], names: dict[bytes, str], losses: dict[str, int]) -> Iterable[str]:
    gone = sum(not _readable(chunk) for chunk in chunks)
    if gone:
        yield f"{gone} chunks cannot be read from the nodes that answer"
    for node in sorted({node for chunk in chunks for node in chunk.silent}):
        yield f"node {names.get(node, node.hex())} does not answer: what it has is not counted below"
    for name, count in losses.items():
        yield f"if node {name} died: {f'{count} chunks would be lost' if count else 'nothing would be lost'}"


def _losses(chunks: list[ChunkWhere], names: dict[bytes, str]) -> dict[str, int]:
    """How many of the chunks that can be read now could not without each node that has something of them."""
    found: Counter[bytes] = Counter()
    for chunk in chunks:
        if not _readable(chunk):
            continue
        for node in {holder.node for holder in chunk.holders}:
            found[node] += not _readable(chunk, without=node)
    return {names.get(node, node.hex()): count for node, count in sorted(found.items())}


def _readable(chunk: ChunkWhere, *, without: bytes = b"") -> bool:
    return readable(holder.held.piece for holder in chunk.holders if holder.node != without)


def _name(node: NodeStatus) -> str:
    zone = f", zone {node.member.zone}" if node.member.zone else ""
    return f"{node.member.id.hex()[-8:]} ({node.member.url}{zone})"


def _plain(chunk: ChunkWhere) -> dict[str, Any]:
    return {
        "id": chunk.id.hex(),
        "scheme": chunk.scheme,
        "have": chunk.have,
        "wanted": chunk.wanted,
        "home": [node.hex() for node in chunk.home],
        "silent": [node.hex() for node in chunk.silent],
        "holders": [
            {
                "node": holder.node.hex(),
                "piece": holder.held.piece.hex(),
                "bytes": holder.held.size,
                "verified_ns": holder.held.verified_ns,
            }
            for holder in chunk.holders
        ],
    }
