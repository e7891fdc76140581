"""``/v1/buckets`` and ``/v1/buckets/{bucket}``."""

from __future__ import annotations

from msgspec import UNSET
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import answer, read
from nodeserver.http.problems import Refused
from nodeserver.http.services import Services, identity, services
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.checks import check_bucket, check_quota, check_redundancy
from nodeserver.placement.scheme import bucket_scheme
from nodeserver.protocol.errors import Code
from nodeserver.protocol.names import valid_bucket
from nodeserver.protocol.wire import Bucket, Buckets, BucketSettings, NewBucket, Usage


class BucketsEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        identity(request)
        here = services(request)
        rows = await here.metadata.buckets()
        return answer(request, Buckets([_bucket(here, row) for row in rows]))


class BucketEndpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        identity(request)
        here = services(request)
        return answer(request, _bucket(here, await here.metadata.bucket(_name(request))))

    async def put(self, request: Request) -> Response:
        identity(request, "admin")
        here, name = services(request), _name(request)
        if not valid_bucket(name):
            raise Refused(Code.INVALID_NAME, f"{name[:80]!r} cannot be the name of a bucket")
        new = await read(request, NewBucket)
        check_bucket(new)
        return answer(request, _bucket(here, await here.metadata.create_bucket(name, new)))

    async def patch(self, request: Request) -> Response:
        identity(request, "admin")
        here, settings = services(request), await read(request, BucketSettings)
        if settings.quota_bytes is not UNSET:
            check_quota(settings.quota_bytes)
        redundancy = UNSET if settings.redundancy is UNSET else check_redundancy(settings.redundancy)
        coded = redundancy is not UNSET and redundancy.startswith("erasure")
        if redundancy is not UNSET and coded and not settings.force and (lack := lacking(here, redundancy)):
            raise Refused(Code.MALFORMED, f"{lack}; with --force it is taken all the same")
        row = await here.metadata.bucket(_name(request))
        if settings.quota_bytes is not UNSET:
            row = await here.metadata.set_quota(row.name, settings.quota_bytes)
        if redundancy is not UNSET:
            row = await here.metadata.set_redundancy(row.name, redundancy)
            if here.healer:
                here.workers["rebalance"].wake()
        return answer(request, _bucket(here, row))

    async def delete(self, request: Request) -> Response:
        identity(request, "admin")
        here = services(request)
        history = request.query_params.get("history", "")
        if history not in ("", "destroy"):
            raise Refused(Code.MALFORMED, "history is not destroy")
        await here.metadata.delete_bucket(_name(request), history=bool(history))
        here.workers["purge-buckets"].wake()
        return Response(status_code=204)


def lacking(here: Services, redundancy: str) -> str:
    """Why there are too few nodes for a bucket's redundancy; empty when there are enough."""
    if here.healer is None:  # a store of its own keeps the chunks
        return ""
    nodes = len(here.membership.map.sharing)
    scheme = bucket_scheme(redundancy, nodes)
    return f"{scheme} takes {scheme.pieces} nodes, and there are {nodes}" if scheme.pieces > nodes else ""


def usage(here: Services, row: BucketRow) -> Usage:
    """What a bucket holds and the room there is."""
    space = here.chunks.usage()
    return Usage(row.used_bytes, row.used_files, row.quota_bytes, space.capacity_bytes, space.free_bytes)


def _bucket(here: Services, row: BucketRow) -> Bucket:
    return Bucket(row.id, row.name, row.root, row.chunk_key, row.created_ns, row.seq, usage(here, row), row.redundancy)


def _name(request: Request) -> str:
    name: str = request.path_params["bucket"]
    return name


ROUTES = [Route("/v1/buckets", BucketsEndpoint), Route("/v1/buckets/{bucket}", BucketEndpoint)]
