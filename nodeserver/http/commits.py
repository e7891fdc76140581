"""``/v1/buckets/{bucket}/commits`` and its other side, ``/v1/buckets/{bucket}/changes``."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.chunks import NoChunk
from nodeserver.content.manifest import BadManifest
from nodeserver.http.buckets import usage
from nodeserver.http.chunks import put
from nodeserver.http.codec import MAX_SEQ, answer, integer_parameter, read, seconds_parameter
from nodeserver.http.limits import address_of, limits
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, services
from nodeserver.metadata.checks import check_commit
from nodeserver.metadata.errors import Doomed
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import MAX_CHANGES, Changes, ChunkId, Commit, Committed, Write
from nodeserver.workers.references import inner_chunks

MAX_WAIT = 60.0
"""Seconds of the longest long poll."""


async def commit(request: Request) -> Response:
    who, here, bucket = identity(request, "admin"), services(request), request.path_params["bucket"]
    known = await here.metadata.identify(bucket)
    batch = await read(request, Commit)
    stored = check_commit(batch)
    chunks = stored.union(chunk for chunk, _ in batch.chunks)
    manifests = [op.manifest for op in batch.ops if isinstance(op, Write)]
    sizes = [op.size for op in batch.ops if isinstance(op, Write)]

    async def attempt(anew: Mapping[ChunkId, int]) -> Committed:
        # What it refers to must stay until the commit does.
        async with here.chunks.using(known.id, chunks):
            if batch.chunks:
                await put(request, known, batch.chunks)
            inner = await inner_chunks(here.chunks, known, manifests, sizes=sizes)
            async with here.chunks.using(known.id, inner):
                if missing := await here.chunks.missing(known.id, list(stored | inner)):
                    raise NoChunk(missing)
                return await here.metadata.commit(
                    bucket, batch, author=who.subject, chunks=chunks | inner, anew=anew, id_=known.id
                )

    try:
        try:
            return answer(request, await attempt({}))
        except Doomed as error:
            # Another server deletes them: what this one remembers of them must not be believed.
            here.chunks.forget(known.id, error.ids)
            if not error.gone:
                raise
            return answer(request, await attempt(error.gone))
    except BadManifest as error:
        raise Refused(Code.MALFORMED, str(error)) from error
    except (NoChunk, Doomed) as error:
        if (first := await here.metadata.answered(bucket, batch)) is not None:
            return answer(request, first)
        raise Refused(Code.MISSING_CHUNKS, f"{len(error.ids)} chunks are not stored", error.ids) from error


async def changes(request: Request) -> Response:
    identity(request)
    here, bucket = services(request), request.path_params["bucket"]
    since = integer_parameter(request, "since", 0, 0, MAX_SEQ)
    limit = integer_parameter(request, "limit", MAX_CHANGES, 1, MAX_CHANGES)
    wait = seconds_parameter(request, "wait", MAX_WAIT)
    known = integer_parameter(request, "known", 0, 0, MAX_SEQ)
    known_ns = integer_parameter(request, "known_ns", 0, 0, MAX_SEQ)
    news = None
    if wait:
        waiting = here.metadata.changes(bucket, since, limit, wait, known, known_ns)
        news = await limits(request).waiting.wait(address_of(request), waiting)
    seq, time_ns, found = news or await here.metadata.changes(bucket, since, limit, 0, known, known_ns)
    row = await here.metadata.bucket(bucket)
    told = Changes(seq, found, usage(here, row), row.redundancy, here.membership.map.epoch, time_ns, more=row.seq > seq)
    return answer(request, told)


ROUTES = [
    Route("/v1/buckets/{bucket}/commits", commit, methods=["POST"]),
    Route("/v1/buckets/{bucket}/changes", changes),
]
