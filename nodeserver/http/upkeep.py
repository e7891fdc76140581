"""``/v1/buckets/{bucket}/retention``, ``/holds`` and ``/purge``: what of history stays."""

from __future__ import annotations

import time

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nodeserver.http.codec import answer, hex_id, read
from nodeserver.http.problems import Refused
from nodeserver.http.services import identity, services
from nodeserver.metadata import holds, retention
from nodeserver.metadata.buckets import BucketRow
from nodeserver.metadata.checks import check_note, check_policy, check_purge
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import FileId, Hold, Holds, NewHold, Policy, Purge

ID = 16


async def policies(request: Request) -> Response:
    identity(request)
    bucket = await _bucket(request)
    return answer(request, await services(request).metadata.read(retention.policies, bucket.bucket))


class PolicyEndpoint(HTTPEndpoint):
    async def put(self, request: Request) -> Response:
        identity(request, "admin")
        bucket, directory, policy = await _bucket(request), hex_id(request, "file", ID), await read(request, Policy)
        check_policy(policy, root=directory == bucket.root)
        return await self._set(request, bucket, directory, policy)

    async def delete(self, request: Request) -> Response:
        identity(request, "admin")
        return await self._set(request, await _bucket(request), hex_id(request, "file", ID), None)

    @staticmethod
    async def _set(request: Request, bucket: BucketRow, directory: FileId, policy: Policy | None) -> Response:
        metadata = services(request).metadata
        return answer(request, await metadata.write(retention.set_policy, bucket.bucket, directory, policy))


async def preview(request: Request) -> Response:
    identity(request)
    bucket, under = await _bucket(request), _under(request)
    return answer(request, await services(request).retention.preview(bucket, under))


async def run(request: Request) -> Response:
    identity(request, "admin")
    bucket, under = await _bucket(request), _under(request)
    return answer(request, await services(request).retention.run(bucket, under))


async def every_hold(request: Request) -> Response:
    identity(request)
    bucket = await _bucket(request)
    return answer(request, Holds(await services(request).metadata.read(holds.every, bucket.bucket)))


class HoldEndpoint(HTTPEndpoint):
    async def put(self, request: Request) -> Response:
        who, bucket = identity(request, "admin"), await _bucket(request)
        file, new = hex_id(request, "file", ID), await read(request, NewHold)
        check_note(new.note)
        hold = Hold(file, time.time_ns(), who.subject, new.note)
        return answer(request, await services(request).metadata.write(holds.place, bucket.bucket, hold))

    async def delete(self, request: Request) -> Response:
        identity(request, "admin")
        bucket, file = await _bucket(request), hex_id(request, "file", ID)
        await services(request).metadata.write(holds.release, bucket.bucket, file)
        return Response(status_code=204)


async def purge(request: Request) -> Response:
    who, bucket = identity(request, "admin"), await _bucket(request)
    op = await read(request, Purge)
    check_purge(op)
    return answer(request, await services(request).retention.purge(bucket, op, who.subject))


async def _bucket(request: Request) -> BucketRow:
    return await services(request).metadata.bucket(request.path_params["bucket"])


def _under(request: Request) -> FileId:
    """The directory that is asked about, empty for the whole bucket."""
    text = request.query_params.get("under", "")
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b"\0"
    if len(value) not in (0, ID) or value.hex() != text:
        raise Refused(Code.MALFORMED, f"under is not {ID} bytes in lower-case hexadecimal")
    return value


ROUTES = [
    Route("/v1/buckets/{bucket}/retention", policies),
    Route("/v1/buckets/{bucket}/retention/preview", preview),
    Route("/v1/buckets/{bucket}/retention/run", run, methods=["POST"]),
    Route("/v1/buckets/{bucket}/retention/{file}", PolicyEndpoint),
    Route("/v1/buckets/{bucket}/holds", every_hold),
    Route("/v1/buckets/{bucket}/holds/{file}", HoldEndpoint),
    Route("/v1/buckets/{bucket}/purge", purge, methods=["POST"]),
]
