"""The calls of the ``/v1`` API that say what of history stays, and those about background work."""

from __future__ import annotations

from nodeserver.client.calls import Calls, of_bucket
from nodeserver.client.connection import Buffer
from nodeserver.protocol.wire import (
    FileId,
    Hold,
    Holds,
    NewHold,
    Policy,
    Purge,
    Purged,
    Retention,
    RetentionReport,
    Workers,
    WorkerStatus,
    pack,
)


class Upkeep(Calls):
    """Calls for who looks after a bucket or a server."""

    async def retention(self, bucket: str, *, deadline: float | None = None) -> Retention:
        """The policies of a bucket."""
        return await self._get(f"{of_bucket(bucket)}/retention", Retention, deadline)

    async def set_retention(
        self, bucket: str, dir_id: FileId, policy: Policy | None, *, deadline: float | None = None
    ) -> Retention:
        """Set the policy of a directory, or with None take it away; the policies of the bucket then."""
        path, seconds = f"{of_bucket(bucket)}/retention/{dir_id.hex()}", self._seconds(deadline)
        method, body = ("DELETE", None) if policy is None else ("PUT", pack(policy))
        return await self._node.call(method, path, Retention, body=body, deadline=seconds)

    async def retention_preview(
        self, bucket: str, under: FileId = b"", *, deadline: float | None = None
    ) -> RetentionReport:
        """What retention would take out now, below a directory or everywhere."""
        return await self._get(f"{of_bucket(bucket)}/retention/preview?under={under.hex()}", RetentionReport, deadline)

    async def run_retention(
        self, bucket: str, under: FileId = b"", *, deadline: float | None = None
    ) -> RetentionReport:
        """Let retention run now, below a directory or everywhere; what it took out.

        Not retried: the second answer would tell less.
        """
        path, seconds = f"{of_bucket(bucket)}/retention/run?under={under.hex()}", self._seconds(deadline)
        return await self._node.call("POST", path, RetentionReport, deadline=seconds, once=True)

    async def holds(self, bucket: str, *, deadline: float | None = None) -> list[Hold]:
        """What is held in a bucket, oldest first."""
        return (await self._get(f"{of_bucket(bucket)}/holds", Holds, deadline)).holds

    async def hold(self, bucket: str, file_id: FileId, note: str = "", *, deadline: float | None = None) -> Hold:
        """Hold the history of a file, or of all below a directory."""
        path, seconds = f"{of_bucket(bucket)}/holds/{file_id.hex()}", self._seconds(deadline)
        return await self._node.call("PUT", path, Hold, body=pack(NewHold(note)), deadline=seconds)

    async def release(self, bucket: str, file_id: FileId, *, deadline: float | None = None) -> None:
        """End a hold, if there is one."""
        path, seconds = f"{of_bucket(bucket)}/holds/{file_id.hex()}", self._seconds(deadline)
        await self._node.send("DELETE", path, _ignore, deadline=seconds)

    async def purge(self, bucket: str, purge: Purge, *, deadline: float | None = None) -> Purged:
        """Destroy history for good. Not retried: what is gone cannot be purged again."""
        path, seconds = f"{of_bucket(bucket)}/purge", self._seconds(deadline)
        return await self._node.call("POST", path, Purged, body=pack(purge), deadline=seconds, once=True)

    async def workers(self, *, deadline: float | None = None) -> list[WorkerStatus]:
        """The background workers of the server."""
        return (await self._get("workers", Workers, deadline)).workers

    async def throttle(self, name: str, rate: int, *, deadline: float | None = None) -> WorkerStatus:
        """Let a worker read or move at most ``rate`` bytes a second, 0 for no limit."""
        path = f"workers/{name}/throttle?rate={rate}"
        return await self._node.call("POST", path, WorkerStatus, deadline=self._seconds(deadline))

    async def worker(self, name: str, action: str, *, deadline: float | None = None) -> WorkerStatus:
        """Let a worker ``run``, ``pause`` or ``resume``; a run is over when this returns."""
        return await self._node.call("POST", f"workers/{name}/{action}", WorkerStatus, deadline=self._seconds(deadline))


def _ignore(body: Buffer) -> None:
    """For answers that say nothing."""
