"""``/v1/buckets/{bucket}/files/…``: files by id, names in directories, listings; now and as of a commit."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import answer, at_parameter, base64_parameter, hex_id, integer_parameter, name_parameter
from nodeserver.http.services import identity, services
from nodeserver.protocol.wire import MAX_LISTING


async def file(request: Request) -> Response:
    identity(request)
    bucket, id_ = request.path_params["bucket"], hex_id(request, "file", 16)
    return answer(request, await services(request).metadata.file(bucket, id_, at_parameter(request)))


async def lookup(request: Request) -> Response:
    identity(request)
    bucket, directory, name = request.path_params["bucket"], hex_id(request, "file", 16), name_parameter(request)
    return answer(request, await services(request).metadata.lookup(bucket, directory, name, at_parameter(request)))


async def entries(request: Request) -> Response:
    identity(request)
    bucket, directory = request.path_params["bucket"], hex_id(request, "file", 16)
    after, at = base64_parameter(request, "after"), at_parameter(request)
    limit = integer_parameter(request, "limit", MAX_LISTING, 1, MAX_LISTING)
    return answer(request, await services(request).metadata.entries(bucket, directory, after, limit, at))


ROUTES = [
    Route("/v1/buckets/{bucket}/files/{file}", file),
    Route("/v1/buckets/{bucket}/files/{file}/lookup", lookup),
    Route("/v1/buckets/{bucket}/files/{file}/entries", entries),
]
