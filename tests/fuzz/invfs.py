"""Makes a script's calls on ``mountfs.vfs`` in this process, without FUSE: a call takes microseconds."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import trio

from mountfs import daemon
from mountfs.config import MountConfig
from mountfs.local.database import Database
from mountfs.sync.context import Context
from mountfs.sync.engine import Engine
from mountfs.vfs.attributes import Changes
from mountfs.vfs.caller import Caller
from mountfs.vfs.filesystem import FileSystem
from nodeserver.client import connect
from nodeserver.protocol.ids import ROOT_INO
from tests.fuzz.orders import Calls, Different
from tests.fuzz.stops import Stops
from tests.harness import Node

ROOT_USER = Caller(0, 0)
PATIENCE = 60.0
"""Seconds that a call may wait for the server."""


class InVfs:
    """One bucket of a node, in the directory ``config.state`` and others beside it."""

    def __init__(self, config: MountConfig, node: Node) -> None:
        self._config = config
        self._node = node
        self._fs: FileSystem
        self._failure: Exception | None = None
        self._states = 0

    def run(self, calls: Calls) -> None:
        """Make all calls. Raises Different, OSError, and what else went wrong."""
        with Stops(self._node) as self._stops:
            trio.run(self._run, calls)
        if self._failure is not None:
            raise self._failure

    async def _run(self, calls: Calls) -> None:
        again = True
        while again:
            self._config.state.mkdir(exist_ok=True)
            async with self._serving():
                try:
                    again = await self._until_remount(calls)
                except (AssertionError, OSError, trio.TooSlowError) as error:
                    self._failure = error
                    return

    async def _until_remount(self, calls: Calls) -> bool:
        """Make calls; False when there are none any more."""
        result = None
        while True:
            try:
                name, *arguments = calls.send(result)
            except StopIteration:
                return False
            if name in ("remount", "fresh"):
                await getattr(self, name)(*arguments)
                return True
            result = await getattr(self, name)(*arguments)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        with closing(Database(self._config.state)) as db:
            async with connect(self._config.url, self._config.token) as client:
                context = Context(self._config, db, client)
                async with context.nodes.cluster, trio.open_nursery() as nursery:
                    engine = Engine(context, nursery)
                    await daemon._attach(self._config, engine, client)
                    engine.start()
                    self._fs = FileSystem(engine, self._config.options)
                    nursery.start_soon(self._fs.run)
                    await self.names()
                    yield
                    self._fs.files.release_all()
                    nursery.cancel_scope.cancel()
                context.slabs.close()

    # Calls of the script

    async def open(self, name: str, empty: bool) -> tuple[int, int]:
        try:
            inode = await self._fs.lookup(ROOT_INO, name.encode())
        except FileNotFoundError:
            handle, inode = await self._fs.create(
                ROOT_INO, name.encode(), stat.S_IFREG | 0o644, os.O_RDWR | os.O_CREAT, ROOT_USER
            )
            return handle, inode.ino
        handle = await self._fs.files.open(inode.ino, os.O_RDWR)
        if empty:
            await self.truncate((handle, inode.ino), 0)
        return handle, inode.ino

    async def close(self, handle: tuple[int, int]) -> None:
        await self._fs.release(handle[0])

    async def write(self, handle: tuple[int, int], data: bytes, offset: int) -> None:
        await self._fs.files.write(handle[0], offset, data)

    async def read(self, handle: tuple[int, int], size: int, offset: int) -> bytes:
        with trio.fail_after(PATIENCE):
            return await self._fs.files.read(handle[0], offset, size)

    async def truncate(self, handle: tuple[int, int], size: int) -> None:
        await self._fs.attributes.set(handle[1], Changes(size=size, mtime=time.time_ns()))

    async def fsync(self, handle: tuple[int, int]) -> None:
        with trio.fail_after(PATIENCE):
            await self._fs.files.sync(handle[0])

    async def content(self, name: str) -> bytes:
        handle = await self.open(name, False)
        size = (await self._fs.tree.inode(handle[1])).size
        try:
            return await self.read(handle, size + 1, 0)
        finally:
            await self.close(handle)

    async def names(self) -> list[str]:
        cursor = await self._fs.directories.open(ROOT_INO)
        try:
            names: list[str] = []
            position = 0
            while batch := list(await self._fs.directories.read(cursor, position)):
                names += [name.decode() for name, _, _ in batch]
                position = batch[-1][2]
            return [name for name in names if name not in (".", "..")]
        finally:
            self._fs.directories.close(cursor)

    async def link(self, source: str, target: str) -> None:
        inode = await self._fs.lookup(ROOT_INO, source.encode())
        await self._fs.tree.link(inode.ino, ROOT_INO, target.encode())

    async def rename(self, source: str, target: str) -> None:
        await self._fs.tree.rename(ROOT_INO, source.encode(), ROOT_INO, target.encode(), 0, ROOT_USER)

    async def unlink(self, name: str) -> None:
        await self._fs.tree.unlink(ROOT_INO, name.encode())

    async def stop(self) -> None:
        self._stops.stop()

    async def go(self) -> None:
        self._stops.go()

    async def pause(self, turns: int) -> None:
        """Let the uploads go on."""
        await trio.sleep(turns / 1000)

    async def sync(self) -> None:
        left = await self._fs.drain(PATIENCE)
        if left:
            raise Different(f"not on the server after {PATIENCE:g} s: {left}")

    async def verify(self) -> None:
        """The state directory is as it must be: every cached chunk, every range."""
        found = await self._fs.engine.context.checker.check()
        if wrong := [*found.faults, *found.damaged, *found.lost]:
            raise Different("; ".join(wrong))

    async def remount(self, drain: bool) -> None:
        if drain:
            await self.sync()

    async def fresh(self) -> None:
        await self.sync()
        self._states += 1
        shutil.rmtree(self._config.state, ignore_errors=True)
        state = self._config.state.with_name(f"{self._config.bucket}-{self._states}")
        self._config = dataclasses.replace(self._config, state=state)
