"""What was: moments, versions of names, who had them, whole trees, and the log."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import (
    MAX_SEQ,
    answer,
    at_parameter,
    base64_parameter,
    hex_id,
    hex_parameter,
    integer_parameter,
    name_parameter,
)
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, services
from nodeserver.protocol.errors import Code
from nodeserver.protocol.names import valid_name
from nodeserver.protocol.wire import MAX_LISTING, MAX_VERSIONS

MAX_TIME = (1 << 63) - 1
"""Nanoseconds; no later time can be asked for."""


async def moment(request: Request) -> Response:
    identity(request)
    bucket = request.path_params["bucket"]
    if "time_ns" not in request.query_params:
        raise Refused(Code.MALFORMED, "time_ns is missing")
    time_ns = integer_parameter(request, "time_ns", 0, 0, MAX_TIME)
    return answer(request, await services(request).metadata.moment(bucket, time_ns))


async def tree(request: Request) -> Response:
    identity(request)
    bucket, directory = request.path_params["bucket"], hex_id(request, "file", 16)
    after, at = base64_parameter(request, "after"), at_parameter(request)
    if after and not all(map(valid_name, after.split(b"/"))):
        raise Refused(Code.INVALID_NAME, "after is not a path below the directory")
    limit = integer_parameter(request, "limit", MAX_LISTING, 1, MAX_LISTING)
    return answer(request, await services(request).metadata.tree(bucket, directory, after, limit, at))


async def names(request: Request) -> Response:
    identity(request)
    bucket, directory = request.path_params["bucket"], hex_id(request, "file", 16)
    after = base64_parameter(request, "after")
    limit = integer_parameter(request, "limit", MAX_VERSIONS, 1, MAX_VERSIONS)
    return answer(request, await services(request).metadata.names(bucket, directory, after, limit))


async def versions(request: Request) -> Response:
    identity(request)
    bucket, directory, name = request.path_params["bucket"], hex_id(request, "file", 16), name_parameter(request)
    after = hex_parameter(request, "after", 16)
    limit = integer_parameter(request, "limit", MAX_VERSIONS, 1, MAX_VERSIONS)
    return answer(request, await services(request).metadata.versions(bucket, directory, name, after, limit))


async def occupants(request: Request) -> Response:
    identity(request)
    bucket, directory, name = request.path_params["bucket"], hex_id(request, "file", 16), name_parameter(request)
    after = integer_parameter(request, "after", 0, 0, MAX_SEQ)
    limit = integer_parameter(request, "limit", MAX_VERSIONS, 1, MAX_VERSIONS)
    return answer(request, await services(request).metadata.occupants(bucket, directory, name, after, limit))


async def version(request: Request) -> Response:
    identity(request)
    bucket, id_ = request.path_params["bucket"], hex_id(request, "version", 16)
    return answer(request, await services(request).metadata.version(bucket, id_))


async def log(request: Request) -> Response:
    identity(request)
    bucket, id_ = request.path_params["bucket"], hex_id(request, "file", 16)
    before = integer_parameter(request, "before", 0, 0, MAX_SEQ)
    limit = integer_parameter(request, "limit", MAX_VERSIONS, 1, MAX_VERSIONS)
    return answer(request, await services(request).metadata.log(bucket, id_, before, limit))


ROUTES = [
    Route("/v1/buckets/{bucket}/moment", moment),
    Route("/v1/buckets/{bucket}/files/{file}/tree", tree),
    Route("/v1/buckets/{bucket}/files/{file}/names", names),
    Route("/v1/buckets/{bucket}/files/{file}/versions", versions),
    Route("/v1/buckets/{bucket}/files/{file}/occupants", occupants),
    Route("/v1/buckets/{bucket}/files/{file}/log", log),
    Route("/v1/buckets/{bucket}/versions/{version}", version),
]
