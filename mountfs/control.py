"""The control socket of a mount: one JSON object a line, both ways.

A request is ``{"command": NAME, "params": {…}}``, an answer ``{"result": {…}}`` or ``{"error": TEXT}``.
Who can open the socket (0600) may command the mount.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mountfs.errors import MountError, NotMounted

if TYPE_CHECKING:
    # Only the serving side needs it at run time; importing it takes longer than most commands do.
    import trio

Params = dict[str, Any]
Handler = Callable[[Params], Awaitable[dict[str, Any]]]


class PendingStatus(TypedDict):
    """What is not on the nodes yet."""

    operations: int
    bytes: int
    files: list[str]
    """Paths below the mount point, the oldest change first."""


class CacheStatus(TypedDict):
    """The local cache, in bytes. ``dirty`` is the part of ``used`` that cannot be evicted."""

    used: int
    cap: int
    dirty: int


class ErrorStatus(TypedDict):
    """Something that went wrong lately; ``time`` in seconds since the epoch."""

    time: float
    text: str


class Status(TypedDict):
    """The answer to ``status``. Times are seconds since the epoch."""

    mountpoint: str
    url: str
    bucket: str | None
    pid: int
    state: str
    version: str
    started: float
    connected: bool
    since: float
    """Since when it is connected, or not."""
    nodes: list[dict[str, str]]
    """Those of the cluster: ``id``, ``url``, ``zone``, ``state``."""
    requests: int
    """Sent to servers and nodes since the mount started."""
    pending: PendingStatus
    cache: CacheStatus
    lost: list[str]
    """Paths of files of which bytes are gone that the nodes never had."""
    errors: list[ErrorStatus]


NAME = "control.sock"
"""The socket's name in the state directory."""
MAX_LINE = 64 * 1024
"""Bytes a request may have."""
FAREWELL = 1.0
"""Seconds an answer may take to leave when the mount is ending."""

log = logging.getLogger(__name__)


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Answer commands on the socket ``path`` until cancelled; ``task_status`` tells that it listens.

    A handler's ``MountError`` is the caller's answer. Any other exception is too, and is logged; neither ends the
    service. A handler that ends the mount still gets its answer sent.
    """
    import trio

    with _listening(path) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        if task_status is not None:
            task_status.started()
        await trio.serve_listeners(partial(_converse, handlers), [listener])


async def _converse(handlers: Mapping[str, Handler], stream: trio.SocketStream) -> None:
    """Answer one client's requests until it hangs up."""
    import trio

    buffer = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    answer = json.dumps(await _answer(handlers, line), default=os.fspath).encode() + b"\n"
                    with trio.move_on_after(FAREWELL, shield=True):
                        await stream.send_all(answer)
                if len(buffer) > MAX_LINE:
                    return


async def _answer(handlers: Mapping[str, Handler], line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        handler = handlers[request["command"]]
        params = request.get("params", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"error": "not a request this mount knows"}
    try:
        return {"result": await handler(params)}
    except MountError as error:
        return {"error": str(error)}
    except Exception as error:
        log.exception("control command %s", request["command"])
        return {"error": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at ``path``, of mode 0600 from its first moment, instead of what a dead mount left there."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        fresh.unlink(missing_ok=True)
        with _short(fresh) as address:
            sock.bind(address)
        os.chmod(fresh, stat.S_IRUSR | stat.S_IWUSR)
        sock.listen()
        os.rename(fresh, path)
        inode = os.stat(path).st_ino
        sock.setblocking(False)
        try:
            yield sock
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for ``path``, which may be longer than the 107 bytes a socket's address can have."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def call(path: Path, command: str, params: Params | None = None, *, timeout: float = 10.0) -> dict[str, Any]:
    """The answer of the mount behind the socket ``path``. Blocks up to ``timeout`` seconds.

    Raises ``NotMounted`` when nothing answers there in time, ``MountError`` with what the mount says when it refuses.
    """
    request = json.dumps({"command": command, "params": params or {}}, default=os.fspath).encode() + b"\n"
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(timeout)
            with _short(path) as address:
                sock.connect(address)
            sock.sendall(request)
            with sock.makefile("rb") as lines:
                line = lines.readline()
        if not line:
            raise NotMounted(f"the mount ended without an answer to {command!r}")
        answer: dict[str, Any] = json.loads(line)
    except TimeoutError:
        raise NotMounted(f"the mount did not answer {command!r} within {timeout:g} s") from None
    except PermissionError:
        raise MountError(f"{path}: the mount belongs to another user") from None
    except OSError as error:
        raise NotMounted(f"no mount answers at {path}: {error.strerror}") from None
    if "error" in answer:
        raise MountError(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result
