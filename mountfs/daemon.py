"""The mount daemon: opens the state, finds the server, mounts, serves, drains, ends."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import trio

from mountfs import control, mounts
from mountfs.config import MountConfig
from mountfs.ending import Ending
from mountfs.errors import MountError, Pending
from mountfs.fuse import session
from mountfs.local.database import Database
from mountfs.local.inodes import Inode
from mountfs.sync import rewound
from mountfs.sync.context import Context
from mountfs.sync.engine import Engine
from mountfs.vfs import refusals, whereabouts
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
                token = f" --token-file {config.token_file}" if config.token_file else ""
                create = f"mountfs bucket create {name} --url {config.url}{token}"
                raise MountError(f"{config.url} has no bucket {name}; this creates it: {create}") from None
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
        self._ending = Ending(config, fs)

    async def serve(self, nursery: trio.Nursery, ready: Callable[[], None]) -> None:
        """Mount, serve until the end, and drain."""
        config = self._config
        source = config.url if config.bucket is None else f"{config.url.rstrip('/')}/{config.bucket}"
        handlers = {
            "status": self._status,
            "sync": self._sync,
            "stop": self._stop,
            "compare": self._compare,
            "check": self._check,
            **whereabouts.commands(self._fs),
            **refusals.commands(self._fs),
        }
        with ExitStack() as stack:
            await nursery.start(control.serve, config.state / control.NAME, handlers)
            self._ending.device = stack.enter_context(session.mounted(self._fs, config.mountpoint, source))
            mounts.register(config)
            stack.callback(mounts.unregister, config)
            await nursery.start(self._ending.signals)
            nursery.start_soon(self._fs.run)
            nursery.start_soon(self._read_ahead)
            ready()
            await session.serve()
            left = await self._ending.served()
            left += refusals.named(self._fs)
        if left:
            raise Pending(f"not on the nodes yet, to be sent at the next mount: {', '.join(left)}")

    async def _read_ahead(self) -> None:
        """Raise the kernel's read-ahead, after the first answer: with it the kernel has lowered what was set before."""
        try:
            await trio.to_thread.run_sync(os.statvfs, self._config.mountpoint, abandon_on_cancel=True)
        except OSError as error:
            log.info("%s: %s", self._config.mountpoint, error)  # it is going already
            return
        session.raise_read_ahead(self._ending.device)

    # Commands of the control socket

    async def _sync(self, params: control.Params) -> dict[str, Any]:
        until = trio.current_time() + float(params.get("deadline", self._config.drain_deadline))
        with trio.move_on_at(until):
            await self._fs.engine.agreed()
        pending = await self._ending.sync(until - trio.current_time())
        told, self._context.untold = self._context.untold, []
        return {"pending": pending, **({"told": told} if told else {})}

    async def _stop(self, params: control.Params) -> dict[str, Any]:
        deadline = float(params.get("deadline", self._config.drain_deadline))
        pending = await self._ending.end(deadline, lazy=bool(params.get("lazy")))
        return {"pending": pending + refusals.named(self._fs)}

    async def _compare(self, params: control.Params) -> dict[str, Any]:
        """Settings that somebody believes in; raises MountError when the mount has others."""
        ours = vars(self._config) | vars(self._config.options) | {"state": str(self._config.state)}
        if other := [key for key, value in params.items() if key in ours and ours[key] != value]:
            raise MountError(f"a remount cannot change {', '.join(other)}: unmount it, and mount it again")
        return {}

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
            "draining": self._ending.certain,
            "connected": bool(state.connected),
            "since": state.since,
            "heard": min(map(context.freshness.last, context.buckets.by_id), default=0.0) or None,
            "max_stale": config.options.max_stale,
            "nodes": context.nodes.states(),
            "requests": context.client.requests + context.nodes.requests,
            "pending": {"operations": context.journal.count, "bytes": dirty, "files": self._fs.pending_names()},
            "refused": refusals.listed(self._fs),
            "lost": list(filter(None, map(context.inodes.path, context.staging.lost()))),
            "cache": {"used": used, "cap": cap, "dirty": dirty},
            "rewound": [
                {"bucket": bucket, "time": it.time, "text": it.text(), "lost": it.lost}
                for bucket, it in rewound.noticed(context)
            ],
            "full": self._fs.full(),
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
