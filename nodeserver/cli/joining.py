"""How a server becomes a node of a cluster that others run."""

from __future__ import annotations

from pathlib import Path

from nodeserver import __version__
from nodeserver.cli.failures import EXIT_USAGE, Failure
from nodeserver.client import ClientError, connect
from nodeserver.client.errors import InvalidUrl
from nodeserver.datadir import DataDir, Joined
from nodeserver.http.assembly import Standing
from nodeserver.protocol.cluster import Member


async def join(directory: DataDir, url: str, token: str, standing: Standing) -> Joined:
    """Belong to the cluster of the server at ``url``, to which ``token`` gives the right. Raises
    ``Failure``, ``OSError``."""
    member = Member(
        directory.node, standing.url, __version__, standing.zone, standing.region, standing.weight, list(standing.roles)
    )
    try:
        async with connect(url, token) as client:
            answer = await client.join(member)
    except (ClientError, InvalidUrl, ValueError) as error:
        raise Failure(f"cannot join {url}: {error}") from error
    known = directory.joined
    if known is not None and known.audience != answer.audience:
        raise Failure(f"{directory.path} belongs to another cluster than {url}", EXIT_USAGE)
    joined = Joined(answer.audience, answer.public_key.decode(), answer.token, answer.map)
    directory.join(joined)
    return joined


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
