"""The calls of the ``/v1`` API that look back."""

from __future__ import annotations

from nodeserver.client.answers import check_more, check_page
from nodeserver.client.calls import Calls, as_of, base64url, of_bucket, of_file
from nodeserver.client.errors import BadAnswer
from nodeserver.protocol.wire import (
    Events,
    FileId,
    Moment,
    Occupant,
    Occupants,
    PastNames,
    TreeListing,
    Version,
    VersionAnswer,
    VersionId,
    Versions,
)


class History(Calls):
    """Calls that look back; ``at`` is the number of a commit."""

    async def moment(self, bucket: str, time_ns: int, *, deadline: float | None = None) -> Moment:
        """The newest commit not after a time in nanoseconds since the epoch; 0 and 0 when it is before the first."""
        return await self._get(f"{of_bucket(bucket)}/moment?time_ns={time_ns}", Moment, deadline)

    async def tree(
        self,
        bucket: str,
        dir_id: FileId,
        at: int | None = None,
        after: bytes = b"",
        limit: int = 5000,
        *,
        deadline: float | None = None,
    ) -> TreeListing:
        """A page of all that is, or was, below a directory: the paths that follow ``after`` in the order of a walk."""
        path = f"{of_file(bucket, dir_id)}/tree?after={base64url(after)}&limit={limit}{as_of(at)}"
        answer = await self._get(path, TreeListing, deadline)
        paths = [entry.name.split(b"/") for entry in answer.entries]
        check_page(paths, after.split(b"/") if after else [], more=answer.more)
        return answer

    async def names(
        self, bucket: str, dir_id: FileId, after: bytes = b"", limit: int = 1000, *, deadline: float | None = None
    ) -> PastNames:
        """A page of the names that have or had content in a directory, those that follow ``after``."""
        path = f"{of_file(bucket, dir_id)}/names?after={base64url(after)}&limit={limit}"
        answer = await self._get(path, PastNames, deadline)
        check_page([one.name for one in answer.names], after, more=answer.more)
        return answer

    async def versions(
        self,
        bucket: str,
        dir_id: FileId,
        name: bytes,
        after: VersionId = b"",
        limit: int = 1000,
        *,
        deadline: float | None = None,
    ) -> Versions:
        """A page of the history of a name, those versions that follow ``after``, oldest first."""
        path = f"{of_file(bucket, dir_id)}/versions?name={base64url(name)}&after={after.hex()}&limit={limit}"
        answer = await self._get(path, Versions, deadline)
        check_more([one for one in answer.versions if one.id != after], more=answer.more)
        return answer

    async def version(self, bucket: str, version_id: VersionId, *, deadline: float | None = None) -> Version:
        """A version with its whole manifest."""
        path = f"{of_bucket(bucket)}/versions/{version_id.hex()}"
        return (await self._get(path, VersionAnswer, deadline)).version

    async def occupants(
        self, bucket: str, dir_id: FileId, name: bytes, *, deadline: float | None = None
    ) -> list[Occupant]:
        """Who has or had a name in a directory, oldest first."""
        path, found, more = f"{of_file(bucket, dir_id)}/occupants?name={base64url(name)}", list[Occupant](), True
        while more:
            after = found[-1].until_seq if found else 0
            page = await self._get(f"{path}&after={after}", Occupants, deadline)
            found += page.occupants
            more = page.more and bool(page.occupants)
        return found

    async def log(
        self, bucket: str, file_id: FileId, before: int = 0, limit: int = 1000, *, deadline: float | None = None
    ) -> Events:
        """What happened to a file or below a directory, newest first; ``before``: only in commits before that one."""
        answer = await self._get(f"{of_file(bucket, file_id)}/log?before={before}&limit={limit}", Events, deadline)
        if answer.before < 0 or (before and answer.before >= before):
            raise BadAnswer("the server answered with a log that does not go back")
        return answer
