"""How a server becomes a node of a cluster that others run."""

from __future__ import annotations

from pathlib import Path

from nodeserver import __version__
from nodeserver.cli.failures import EXIT_USAGE, Failure
from nodeserver.client import ClientError, connect
from nodeserver.client.errors import InvalidUrl
from nodeserver.datadir import DataDir, Joined
from nodeserver.http.assembly import Standing
from nodeserver.protocol.cluster import Joined as Answer
from nodeserver.protocol.cluster import Member


async def join(directory: DataDir, url: str, token: str, standing: Standing) -> Joined:
    """Belong to the cluster of the server at ``url``, to which ``token`` gives the right. Raises
    ``Failure``, ``OSError``."""
    member = Member(
        directory.node, standing.url, __version__, standing.zone, standing.region, standing.weight, list(standing.roles)
    )
    known = directory.joined
    try:
        answer = await _ask(url, known.token, member) if known else None
    except (ClientError, InvalidUrl, ValueError):
        answer = None  # its own token has expired, or is of an earlier release: as if it joined for the first time
    try:
        answer = answer or await _ask(url, token, member)
    except (ClientError, InvalidUrl, ValueError) as error:
        raise Failure(f"cannot join {url}: {error}") from error
    if known is not None and known.audience != answer.audience:
        raise Failure(f"{directory.path} belongs to another cluster than {url}", EXIT_USAGE)
    joined = Joined(answer.audience, answer.public_key.decode(), answer.token, answer.map)
    directory.join(joined)
    return joined


async def _ask(url: str, token: str, member: Member) -> Answer:
    async with connect(url, token) as client:
        return await client.join(member)


def join_token(token: str | None, file: Path | None) -> str:
    """The token, given as it is or in a file. Raises ``Failure``."""
    if (token is None) == (file is None):
        raise Failure("--join takes either --join-token or --join-token-file", EXIT_USAGE)
    if token is not None:
        return token.strip()
    assert file is not None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
