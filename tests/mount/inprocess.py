"""The model's file system on ``mountfs.vfs`` in this process, without FUSE, for speed."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from typing import Any, TypeVar

import trio

from mountfs import daemon
from mountfs.config import MountConfig
from mountfs.local.checking import Report
from mountfs.local.database import Database
from mountfs.sync.context import Context
from mountfs.sync.engine import Engine
from mountfs.vfs.filesystem import FileSystem
from nodeserver.client import connect
from nodeserver.protocol.ids import ROOT_INO
from tests.mount.walker import ROOT_USER, Walker

T = TypeVar("T")


class InProcess:
    """The model's file system on a `Walker`: a directory of a bucket, with the sync engine behind it and no FUSE.

    `stop` ends everything but the state directory, with which `start` begins anew.
    """

    def __init__(self, config: MountConfig, directory: bytes) -> None:
        self._config = config
        self._directory = directory
        self._thread = threading.Thread()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken
        self._end: trio.Event
        self._walker: Walker

    def start(self) -> None:
        """Begin, with an empty state directory or one that was used before. Raises what that raises."""
        self._ready.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self, *, drain: bool = True) -> None:
        """End; without ``drain`` what the server does not have yet stays in the journal."""

        async def end() -> None:
            if drain:
                assert not await self._fs.drain(30)
            self._end.set()

        self._call(end)
        self._thread.join()
        self._walker.end()

    def _run(self) -> None:
        try:
            with closing(Database(self._config.state)) as db:
                trio.run(self._main, db)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self, db: Database) -> None:
        async with connect(self._config.url, self._config.token) as client:
            await self._serve(Context(self._config, db, client))

    async def _serve(self, context: Context) -> None:
        async with context.nodes.cluster, trio.open_nursery() as nursery:
            engine = Engine(context, nursery)
            await daemon._attach(self._config, engine, context.client)
            engine.start()
            self._fs = FileSystem(engine, self._config.options)
            nursery.start_soon(self._fs.run)
            try:
                root = await self._fs.lookup(ROOT_INO, self._directory)
            except FileNotFoundError:
                root = await self._fs.mkdir(ROOT_INO, self._directory, 0o755, ROOT_USER)
            self._walker = Walker(self._fs, root.ino)
            self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
            self._ready.set()
            await self._end.wait()
            self._fs.files.release_all()
            nursery.cancel_scope.cancel()
            context.slabs.close()

    def check(self) -> Report:
        """What is wrong with the state directory."""
        return self._call(self._fs.engine.context.checker.check)

    def _call(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        return trio.from_thread.run(call, *args, trio_token=self._token)

    def open(self, path: bytes, flags: int, mode: int) -> int:
        return self._call(self._walker.open, path, flags, mode)

    def close(self, handle: int) -> None:
        return self._call(self._walker.close, handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return self._call(self._walker.pread, handle, size, offset)

    def write(self, handle: int, data: bytes, offset: int) -> int:
        return self._call(self._walker.write, handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        return self._call(self._walker.ftruncate, handle, size)

    def fsync(self, handle: int) -> None:
        return self._call(self._walker.fsync, handle)

    def fstat(self, handle: int) -> os.stat_result:
        return self._call(self._walker.fstat, handle)

    def lstat(self, path: bytes) -> os.stat_result:
        return self._call(self._walker.lstat, path)

    def listdir(self, path: bytes) -> Iterable[bytes]:
        return self._call(self._walker.listdir, path)

    def mkdir(self, path: bytes, mode: int) -> None:
        return self._call(self._walker.mkdir, path, mode)

    def rmdir(self, path: bytes) -> None:
        return self._call(self._walker.rmdir, path)

    def mknod(self, path: bytes, mode: int) -> None:
        return self._call(self._walker.mknod, path, mode)

    def unlink(self, path: bytes) -> None:
        return self._call(self._walker.unlink, path)

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        return self._call(self._walker.rename, source, target, flags)

    def link(self, source: bytes, target: bytes) -> None:
        return self._call(self._walker.link, source, target)

    def symlink(self, target: bytes, path: bytes) -> None:
        return self._call(self._walker.symlink, target, path)

    def readlink(self, path: bytes) -> bytes:
        return self._call(self._walker.readlink, path)

    def truncate(self, path: bytes, size: int) -> None:
        return self._call(self._walker.truncate, path, size)

    def chmod(self, path: bytes, mode: int) -> None:
        return self._call(self._walker.chmod, path, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        return self._call(self._walker.chown, path, uid, gid)

    def utime(self, path: bytes, times: tuple[int, int] | None) -> None:
        return self._call(self._walker.utime, path, times)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        return self._call(self._walker.setxattr, path, name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        return self._call(self._walker.removexattr, path, name)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        return self._call(self._walker.xattrs, path)
