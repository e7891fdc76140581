"""Which running server a command is about, and how it is asked."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from nodeserver.client import Client, ClientError, connect
from nodeserver.client.errors import InvalidUrl
from nodeserver.layout import ADDRESS, ADMIN_TOKEN

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A server and the right to ask it."""

    url: str
    token: str

    def ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        """What ``question`` finds out with a client. Raises ``click.ClickException``."""

        async def asked() -> T:
            async with connect(self.url, self.token) as client:
                return await question(client)

        try:
            return asyncio.run(asked())
        except (ClientError, InvalidUrl, ValueError) as error:
            raise click.ClickException(f"{self.url}: {error}") from error


def target(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which server is meant, handed on as ``server``; and ``--json``, as ``as_json``."""

    @click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data directory of the server.")
    @click.option("--url", metavar="URL", help="The server, instead of --data.")
    @click.option(
        "--token-file", type=click.Path(path_type=Path, dir_okay=False), help="File with the token for --url."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
    @functools.wraps(command)
    def with_server(data: Path | None, url: str | None, token_file: Path | None, **rest: Any) -> None:
        command(server=_server(data, url, token_file), **rest)

    return with_server


def _server(data: Path | None, url: str | None, token_file: Path | None) -> Server:
    """The server that is meant."""
    if (data is None) == (url is None):
        raise click.UsageError("give either --data or --url")
    try:
        if data is not None:
            return Server((data / ADDRESS).read_text().strip(), (token_file or data / ADMIN_TOKEN).read_text().strip())
        if token_file is None:
            raise click.UsageError("--url needs --token-file")
        return Server(str(url), token_file.read_text().strip())
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}; does a server run there?") from error
