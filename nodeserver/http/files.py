"""``/v1/buckets/{bucket}/files/…``: files by id, names in directories, listings."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import answer, base64_parameter, hex_id, integer_parameter
from nodeserver.http.services import identity, services
from nodeserver.metadata.checks import check_names
from nodeserver.protocol.wire import MAX_LISTING


async def file(request: Request) -> Response:
    identity(request)
    found = await services(request).metadata.file(request.path_params["bucket"], hex_id(request, "file", 16))
    return answer(request, found)


async def lookup(request: Request) -> Response:
    identity(request)
    bucket, directory = request.path_params["bucket"], hex_id(request, "file", 16)
    name = base64_parameter(request, "name")
    check_names(name)
    return answer(request, await services(request).metadata.lookup(bucket, directory, name))


async def entries(request: Request) -> Response:
    identity(request)
    bucket, directory = request.path_params["bucket"], hex_id(request, "file", 16)
    after = base64_parameter(request, "after")
    limit = integer_parameter(request, "limit", MAX_LISTING, 1, MAX_LISTING)
    return answer(request, await services(request).metadata.entries(bucket, directory, after, limit))


ROUTES = [
    Route("/v1/buckets/{bucket}/files/{file}", file),
    Route("/v1/buckets/{bucket}/files/{file}/lookup", lookup),
    Route("/v1/buckets/{bucket}/files/{file}/entries", entries),
]
