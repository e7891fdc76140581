"""The control socket."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mountfs import control
from mountfs.errors import MountError, NotMounted


async def echo(params: dict[str, Any]) -> dict[str, Any]:
    return params


async def refuse(params: dict[str, Any]) -> dict[str, Any]:
    raise MountError("not now")


async def fail(params: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("surprise")


async def stall(params: dict[str, Any]) -> dict[str, Any]:
    await trio.Event().wait()
    return {}


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """A serving socket, in a directory whose path is longer than a socket's address can be."""
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    handlers = {"echo": echo, "refuse": refuse, "fail": fail, "stall": stall}
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(control.serve, directory / control.NAME, handlers))
        yield directory / control.NAME
        nursery.cancel_scope.cancel()


async def call(path: Path, command: str, params: dict[str, Any] | None = None, within: float = 10.0) -> dict[str, Any]:
    return await trio.to_thread.run_sync(partial(control.call, path, command, params, timeout=within))


async def test_answers_and_is_private(path: Path) -> None:
    assert await call(path, "echo", {"text": "größer\n", "path": "/a b"}) == {"text": "größer\n", "path": "/a b"}
    assert await call(path, "echo") == {}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_errors_are_answers_and_the_service_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MountError, match=r"^not now$"):
        await call(path, "refuse")
    assert not caplog.records
    with pytest.raises(MountError, match="a fault of mountfs; see its log"):
        await call(path, "fail")
    assert caplog.records[0].exc_info
    with pytest.raises(MountError, match="not a request"):
        await call(path, "unknown")
    assert await call(path, "echo", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize(
    "request_", [b"\n", b"{}\n", b"[]\n", b"3\n", b'{"command": []}\n', b"\xff\xfe\n", b'{"command":"echo"']
)
async def test_malformed_requests_are_refused(path: Path, request_: bytes) -> None:
    answer = await trio.to_thread.run_sync(talk, path, request_)
    assert answer == (b'{"error": "not a request this mount knows"}\n' if request_.endswith(b"\n") else b"")
    assert await call(path, "echo", {"n": 1}) == {"n": 1}


async def test_an_endless_line_is_hung_up_on(path: Path) -> None:
    with contextlib.suppress(ConnectionError):
        assert await trio.to_thread.run_sync(talk, path, b"x" * (control.MAX_LINE * 4)) == b""
    assert await call(path, "echo", {"n": 1}) == {"n": 1}


async def test_a_stalled_command_keeps_to_the_callers_time_and_blocks_no_other(path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(NotMounted, match="did not answer"):
                await call(path, "stall", within=0.3)

        nursery.start_soon(wait)
        assert await call(path, "echo", {"n": 1}) == {"n": 1}


async def test_the_command_that_ends_the_service_gets_its_answer(tmp_path: Path) -> None:
    path = tmp_path / control.NAME
    async with trio.open_nursery() as nursery:

        async def stop(params: dict[str, Any]) -> dict[str, Any]:
            nursery.cancel_scope.cancel()
            return {"pending": ["a"]}

        await nursery.start(partial(control.serve, path, {"stop": stop}))
        answers = []

        async def ask() -> None:
            with trio.CancelScope(shield=True):
                answers.append(await call(path, "stop"))

        nursery.start_soon(ask)
    assert answers == [{"pending": ["a"]}]
    assert not path.exists()


async def test_a_socket_that_a_dead_mount_left_is_replaced(path: Path, tmp_path: Path) -> None:
    left = tmp_path / "left.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(left))
    with pytest.raises(NotMounted, match="no mount answers"):
        await call(left, "echo")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(control.serve, left, {"echo": echo}))
        assert await call(left, "echo", {"n": 1}) == {"n": 1}
        nursery.cancel_scope.cancel()


async def test_no_socket_means_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(NotMounted):
        await call(tmp_path / "absent.sock", "echo")
    with pytest.raises(NotMounted):
        await call(tmp_path / "absent/absent.sock", "echo")


def talk(path: Path, data: bytes) -> bytes:
    """Send bytes, hang up for writing, return all that is answered."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock, control._short(path) as address:
        sock.settimeout(10)
        sock.connect(address)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))
