"""How the cluster is, where chunks are, and what a change of the map would move."""

from __future__ import annotations

import time
from collections import defaultdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.chunks.distributed import DistributedStore, readable, stored_size
from nodeserver.http.buckets import lacking
from nodeserver.http.chunks import check_ids
from nodeserver.http.cluster import check_change
from nodeserver.http.codec import ASKED, answer, hex_id, read
from nodeserver.http.problems import Refused
from nodeserver.http.services import Services, identity, services
from nodeserver.metadata import members, repairs, surveys
from nodeserver.placement.map import NODE_ID, NodeId, State
from nodeserver.placement.moves import Preview, preview
from nodeserver.placement.rendezvous import Placement
from nodeserver.placement.scheme import Erasure, Scheme, bucket_scheme, chunk_scheme, copies_instead
from nodeserver.protocol.cluster import (
    MAX_FIND,
    ChunksAsked,
    ChunkWhere,
    ClusterStatus,
    Flow,
    Held,
    Holder,
    MovePreview,
    NodeChange,
    Where,
)
from nodeserver.protocol.errors import Code
from nodeserver.protocol.pieces import fragment_of
from nodeserver.protocol.wire import ChunkId

LOOKED_AT = 200_000
"""Chunks of a bucket that a preview looks at; with more it takes those whose ids begin with some bytes."""


async def status(request: Request) -> Response:
    identity(request)
    here = services(request)
    _, nodes = await here.metadata.read(members.statuses)
    queued = await here.metadata.read(repairs.count)
    survey = await here.metadata.read(surveys.last)
    problems = []
    for node in nodes:
        name = f"node {node.member.id.hex()[-8:]} ({node.member.url})"
        if node.state == State.DOWN.value:
            problems.append(f"{name} is down for {_ago(node.last_seen_ns)}")
        elif node.state == State.DRAINING.value:
            left = node.member.pieces
            problems.append(f"{name} is being drained: {left} pieces left" if left else f"{name} is drained: remove it")
        elif node.state == State.UP.value and node.member.free_bytes < node.member.capacity_bytes // 20:
            problems.append(f"{name} has less than 5 % of its disk free")
    if survey.lost:
        where = "from the nodes that answer" if here.healer else "from the store: they are damaged or not there"
        problems.append(f"{survey.lost} chunks cannot be read {where}")
    if survey.below:
        problems.append(f"{survey.below} chunks have fewer pieces than they should")
    buckets = await here.metadata.buckets()
    problems += [f"bucket {row.name}: {lack}" for row in buckets if (lack := lacking(here, row.redundancy))]
    if queued:
        problems.append(f"{queued} chunks wait to be repaired")
    seconds = here.workers["repair"].seconds_left if here.healer else 0.0
    up = sum(node.state == State.UP.value for node in nodes)
    there = sum(node.state != State.REMOVED.value for node in nodes)
    answered = ClusterStatus(
        not problems, problems, there, up, survey.below, survey.lost, queued, seconds, survey.time_ns
    )
    return answer(request, answered)


async def where(request: Request) -> Response:
    identity(request)
    here, asked = services(request), await _asked(request)
    bucket = await here.metadata.bucket(request.path_params["bucket"])
    store = _distributed(here)
    found = await store.cluster.locate(bucket.id, asked)
    cluster = store.cluster.map
    scheme = bucket_scheme(bucket.redundancy, len(cluster.sharing))
    placements: dict[int, Placement] = {}
    answers = []
    for chunk in asked:
        holders = found.held.get(chunk, {})
        wanted = chunk_scheme(scheme, stored_size(holders))
        placement = placements.setdefault(wanted.pieces, Placement(cluster, wanted.pieces))
        home = [node.id for node in placement.home(chunk)]
        there = [(node, held) for node, pieces in holders.items() for held in pieces]
        is_, have = _as_it_is(wanted, there, enough=wanted.pieces <= len(cluster.sharing))
        holding = [Holder(*one) for one in there]
        answers.append(ChunkWhere(chunk, str(is_), home, holding, sorted(found.silent), have, is_.pieces))
    return answer(request, Where(answers))


async def report(request: Request) -> Response:
    identity(request)
    here, asked = services(request), await _asked(request)
    store = _distributed(here)
    bucket = await here.metadata.bucket(request.path_params["bucket"])
    found = await store.cluster.locate(bucket.id, asked)
    # Of what nobody has there is nothing to repair; who does not answer may have it.
    if there := [chunk for chunk in asked if found.silent or chunk in found.held]:
        await here.metadata.write(repairs.note, bucket.bucket, there, time.time_ns())
        here.workers["repair"].wake()
    return Response(status_code=204)


async def preview_change(request: Request) -> Response:
    identity(request)
    here, node, wanted = services(request), hex_id(request, "node", NODE_ID), await read(request, NodeChange, ASKED)
    check_change(wanted)
    before = here.membership.map
    after = members.changed_map(before, node, wanted)
    store, found = _distributed(here), Preview()
    share, lost = 1.0, 0
    removed = {node} if wanted.state == State.REMOVED.value else set()
    silent: set[NodeId] = set()
    for bucket in await here.metadata.buckets():
        first_bytes = min(256, max(1, 256 * LOOKED_AT // max(1, await store.count(bucket.id))))
        share = min(share, first_bytes / 256)
        old, new = (bucket_scheme(bucket.redundancy, len(cluster.sharing)) for cluster in (before, after))
        groups: dict[tuple[Scheme, Scheme], list[tuple[ChunkId, int]]] = {}
        for chunk, holders in (await store.survey(bucket.id, 0, first_bytes, silent)).items():
            size = stored_size(holders)
            staying = {holder: held for holder, held in holders.items() if holder not in removed}
            lost += readable(holders) and not readable(staying)
            groups.setdefault((chunk_scheme(old, size), chunk_scheme(new, size)), []).append((chunk, size))
        for (was, becomes), chunks in groups.items():
            preview(chunks, becomes, before, after, into=found, old_scheme=was)
    lost = round(lost / share)
    if removed & silent:
        # It does not answer, and may have what nobody else has.
        lost += (await here.metadata.read(surveys.last)).lost
    rate = here.workers["rebalance"].rate
    flows = [
        Flow(source or b"", target, round(amount.pieces / share), round(amount.bytes / share))
        for (source, target), amount in found.flows.items()
    ]
    return answer(
        request,
        MovePreview(
            found.chunks,
            share,
            round(found.moved / share),
            round(found.total.pieces / share),
            round(found.total.bytes / share),
            round(found.missing / share),
            flows,
            found.total.bytes / share / rate if rate else 0.0,
            lost,
        ),
    )


def _as_it_is(wanted: Scheme, there: list[tuple[NodeId, Held]], *, enough: bool) -> tuple[Scheme, int]:
    """How a chunk is kept, and how many pieces there are of that: while it is still to be re-encoded, in another form
    than is wanted. Without ``enough`` nodes it never will be: then what is wanted is missing."""
    copies = len({node for node, held in there if fragment_of(held.piece) is None})
    codes: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for _, held in there:
        if fragment := fragment_of(held.piece):
            codes[fragment[:2]].add(fragment.number)
    if isinstance(wanted, Erasure):
        have = len(codes[wanted.data, wanted.parity])
        if have < wanted.data and copies and enough:
            instead = copies_instead(wanted)
            return instead, min(copies, instead.pieces)
        return wanted, have
    if not copies and codes:
        code, numbers = max(codes.items(), key=lambda one: len(one[1]) - one[0][0])
        return Erasure(*code), len(numbers)
    return wanted, min(copies, wanted.pieces)


async def _asked(request: Request) -> list[ChunkId]:
    chunks = (await read(request, ChunksAsked, ASKED)).chunks
    if len(chunks) > MAX_FIND:
        raise Refused(Code.TOO_LARGE, f"more than {MAX_FIND} chunks")
    check_ids(chunks)
    return chunks


def _distributed(here: Services) -> DistributedStore:
    if not isinstance(here.chunks, DistributedStore):
        raise Refused(Code.NO_ROUTE, "chunks are in a store of its own, which knows where")
    return here.chunks


def _ago(time_ns: int) -> str:
    seconds = max(0, (time.time_ns() - time_ns) // 1_000_000_000)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


ROUTES = [
    Route("/v1/status", status),
    Route("/v1/nodes/{node}/preview", preview_change, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/where", where, methods=["POST"]),
    Route("/v1/buckets/{bucket}/chunks/report", report, methods=["POST"]),
]
