"""The mount daemon: opens the state, finds the server, mounts, serves, drains, ends."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import trio

from mountfs import control, mounts
from mountfs.config import MountConfig
from mountfs.errors import MountError, Pending
from mountfs.fuse import session
from mountfs.local.database import Database
from mountfs.local.inodes import Inode
from mountfs.sync.context import Context
from mountfs.sync.engine import Engine
from mountfs.vfs import whereabouts
from mountfs.vfs.filesystem import FileSystem
from nodeserver import __version__
from nodeserver.client import BadAnswer, Client, ClientError, Refused, Unreachable, connect
from nodeserver.content.manifest import pack_slices
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import ROOT_INO

GC_THRESHOLD = 100_000
"""Objects that come before garbage is looked for, as on the server."""

log = logging.getLogger(__name__)


def run(config: MountConfig, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted or told to stop; calls ``ready`` once the mount answers.

    Raises MountError when it cannot mount.
    """
    with closing(Database(config.state)) as db:
        try:
            trio.run(_main, config, db, ready)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from group


async def _main(config: MountConfig, db: Database, ready: Callable[[], None]) -> None:
    async with connect(
        config.url, config.token, metadata_deadline=config.metadata_deadline, data_deadline=config.data_deadline
    ) as client:
        context = Context(config, db, client)
        await _serve(config, context, ready)


async def _serve(config: MountConfig, context: Context, ready: Callable[[], None]) -> None:
    async with context.nodes.cluster, trio.open_nursery() as nursery:
        engine = Engine(context, nursery)
        await _attach(config, engine, context.client)
        engine.start()
        fs = FileSystem(engine, config.options)
        await engine.caught_up()
        gc.freeze()  # what is there now stays; scanning it again and again doubles the time of a large listing
        gc.set_threshold(GC_THRESHOLD)
        try:
            await Daemon(config, fs).serve(nursery, ready)
        finally:
            nursery.cancel_scope.cancel()
            context.inodes.write_times()
            context.slabs.close()


async def _attach(config: MountConfig, engine: Engine, client: Client) -> None:
    """Make sure that the state belongs to this server and shows the bucket; works offline when it does.

    Raises MountError.
    """
    context = engine.context
    known = context.db.get_meta("server")
    online = True
    try:
        server = await client.server()
        await context.nodes.learn()
    except (Unreachable, BadAnswer) as error:
        if known is None:
            raise MountError(f"{config.url} does not answer, and nothing is known of it here: {error}") from error
        log.warning("%s does not answer, starting from what is known: %s", config.url, error)
        online = False
    except ClientError as error:
        raise MountError(f"{config.url}: {error}") from error
    else:
        found = server.cluster or server.id
        if known is not None and known != found:
            raise MountError(
                f"{config.state} holds the state of another server than {config.url}: give another --state"
            )
        if known is None:
            with context.db.transaction():
                context.db.set_meta("server", found)
    if config.bucket is None:
        _make_root(engine)
        if online:
            await _explained(engine.remote.refresh_buckets, config)
    else:
        await _attach_bucket(config, engine, client, config.bucket, online=online)


async def _attach_bucket(config: MountConfig, engine: Engine, client: Client, name: str, *, online: bool) -> None:
    context = engine.context
    state = context.buckets.by_name(name)
    if online:
        try:
            info = await client.bucket(name)
        except Refused as refusal:
            if refusal.code is Code.NO_BUCKET:
                raise MountError(f"{config.url} has no bucket {name}: create it with `mountfs bucket create`") from None
            raise MountError(f"{config.url}: {refusal}") from refusal
        except ClientError as error:
            raise MountError(f"{config.url}: {error}") from error
        if state is not None and state.uuid != info.id:
            raise MountError(f"{config.state} holds another bucket that was called {name}: give another --state")
        context.inodes.root_file = info.root
        if state is not None:
            state.redundancy = info.redundancy
        if state is None:
            await _explained(lambda: engine.remote.adopt(info, 0), config)
        return
    root = context.inodes.get(ROOT_INO)
    if state is None or root is None:
        raise MountError(f"{config.url} does not answer, and bucket {name} is not known here")
    context.inodes.root_file = root.file_id


async def _explained(call: Callable[[], Any], config: MountConfig) -> None:
    try:
        await call()
    except OSError as error:
        raise MountError(f"{config.url}: {error.strerror or error}") from error


def _make_root(engine: Engine) -> None:
    """The root above all buckets, if it is not there yet."""
    context = engine.context
    if context.inodes.get(ROOT_INO) is None:
        now = time.time_ns()
        root = Inode(
            ROOT_INO, 0, b"", 0o40755, os.getuid(), os.getgid(), 0, 2, 0, 0, now, now, now, 0, 0, 0, b"", b"", None
        )
        with context.db.transaction():
            context.inodes.insert(root, pack_slices([]))


class Daemon:
    """A mount while it lives, and what can be commanded of it."""

    def __init__(self, config: MountConfig, fs: FileSystem) -> None:
        self._config = config
        self._fs = fs
        self._context = fs.engine.context
        self._started = time.time()
        self._stopping = trio.Event()

    async def serve(self, nursery: trio.Nursery, ready: Callable[[], None]) -> None:
        """Mount, serve until the end, and drain."""
        config = self._config
        source = config.url if config.bucket is None else f"{config.url.rstrip('/')}/{config.bucket}"
        handlers = {
            "status": self._status,
            "sync": self._sync,
            "stop": self._stop,
            "check": self._check,
            **whereabouts.commands(self._fs),
        }
        with ExitStack() as stack:
            await nursery.start(control.serve, config.state / control.NAME, handlers)
            stack.enter_context(session.mounted(self._fs, config.mountpoint, source))
            mounts.register(config)
            stack.callback(mounts.unregister, config)
            await nursery.start(self._signals)
            nursery.start_soon(self._fs.run)
            nursery.start_soon(self._end_when_stopping)
            nursery.start_soon(self._read_ahead)
            ready()
            await session.serve()
            self._fs.files.release_all()
            left = await self._fs.drain(config.drain_deadline if not self._stopping.is_set() else 0)
        if left:
            raise Pending(f"not on the nodes yet, to be sent at the next mount: {', '.join(left)}")

    async def _read_ahead(self) -> None:
        """Raise the kernel's read-ahead, after the first answer: with it the kernel has lowered what was set before."""
        try:
            await trio.to_thread.run_sync(os.statvfs, self._config.mountpoint, abandon_on_cancel=True)
        except OSError as error:
            log.info("%s: %s", self._config.mountpoint, error)  # it is going already
            return
        device = next((m for m in _devices() if m[0] == str(self._config.mountpoint)), None)
        if device is not None:
            session.raise_read_ahead(device[1])

    async def _signals(self, task_status: trio.TaskStatus[None]) -> None:
        """SIGTERM and SIGINT drain and end; a second one does not wait any longer."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for _ in signals:
                    nursery.start_soon(self._drain_and_end)
                    break
                async for _ in signals:
                    self._stopping.set()

    async def _drain_and_end(self) -> None:
        await self._drain(self._config.drain_deadline)
        self._stopping.set()

    async def _end_when_stopping(self) -> None:
        await self._stopping.wait()
        session.end()

    async def _drain(self, deadline: float) -> list[str]:
        """Everything written so far to the nodes; names of what is left at the deadline (seconds)."""
        until = trio.current_time() + deadline
        with trio.move_on_at(until):
            await trio.to_thread.run_sync(_flush_kernel, self._config.mountpoint, abandon_on_cancel=True)
        return await self._fs.drain(max(0.0, until - trio.current_time()))

    # Commands of the control socket

    async def _sync(self, params: control.Params) -> dict[str, Any]:
        return {"pending": await self._drain(float(params.get("deadline", self._config.drain_deadline)))}

    async def _stop(self, params: control.Params) -> dict[str, Any]:
        pending = await self._drain(float(params.get("deadline", self._config.drain_deadline)))
        self._stopping.set()
        return {"pending": pending}

    async def _check(self, _params: control.Params) -> dict[str, Any]:
        return dataclasses.asdict(await self._context.checker.check())

    async def _status(self, _params: control.Params) -> dict[str, Any]:
        context, config = self._context, self._config
        state = context.client.state
        used, cap = context.cache.size()
        dirty = context.staging.staged_bytes()
        status: control.Status = {
            "mountpoint": str(config.mountpoint),
            "url": config.url,
            "bucket": config.bucket,
            "pid": os.getpid(),
            "state": str(config.state),
            "version": __version__,
            "started": self._started,
            "connected": bool(state.connected),
            "since": state.since,
            "nodes": context.nodes.states(),
            "requests": context.client.requests + context.nodes.requests,
            "pending": {"operations": context.journal.count, "bytes": dirty, "files": self._fs.pending_names()},
            "lost": list(filter(None, map(context.inodes.path, context.staging.lost()))),
            "cache": {"used": used, "cap": cap, "dirty": dirty},
            "errors": [
                {
                    "time": problem.time_ns / 1e9,
                    "text": f"{problem.path}: {problem.message}" if problem.path else problem.message,
                }
                for problem in context.problems
            ],
        }
        if state.error is not None and not state.connected:
            status["errors"].append({"time": state.error_at, "text": str(state.error)})
        return dict(status)


def _devices() -> list[tuple[str, tuple[int, int]]]:
    """(mount point, (major, minor)) of every mount, innermost last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        major, minor = fields[2].split(":")
        found.append((fields[4], (int(major), int(minor))))
    return found


def _flush_kernel(mountpoint: Path) -> None:
    """Make the kernel hand over what it has collected of writes. Blocks."""
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ENOENT, errno.EACCES):
            raise
        return
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            # It tells errors of long ago too. What is pending decides.
            log.info("syncfs %s: %s", mountpoint, os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
