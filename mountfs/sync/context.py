"""What the tasks of ``sync`` and the file system share."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections import deque
from pathlib import Path

import trio

from mountfs.config import MountConfig
from mountfs.local.buckets import Buckets
from mountfs.local.cache import Cache
from mountfs.local.checking import Checker
from mountfs.local.database import Database
from mountfs.local.inodes import Inodes
from mountfs.local.journal import Journal, Op
from mountfs.local.slabs import Slabs
from mountfs.local.staging import Staging
from mountfs.sync.nodes import Nodes
from nodeserver.client import Client
from nodeserver.protocol.ids import new_id

log = logging.getLogger(__name__)

REMEMBERED_ERRORS = 50
LOST = "some of what was not on the nodes yet is gone from the state directory: reading it fails, it is not sent"


class Kernel:
    """What the kernel's caches are told; the FUSE side puts itself in place of these."""

    def entry(self, parent: int, name: bytes) -> None:
        """A name may stand for something else now."""

    def inode(self, ino: int) -> None:
        """Attributes and content of a file may have changed."""

    async def settled(self) -> None:
        """Return when the kernel knows what it was told so far."""


@dataclasses.dataclass
class Problem:
    """Something a person may want to know of."""

    time_ns: int
    path: str
    message: str


class Context:
    """The parts of an open state directory, and the client."""

    def __init__(self, config: MountConfig, db: Database, client: Client) -> None:
        self.config = config
        self.db = db
        self.client = client
        self.inodes = Inodes(db)
        self.journal = Journal(db)
        self.buckets = Buckets(db)
        self.slabs = Slabs(config.state / "slabs")
        self.cache = Cache(db, self.slabs, config.cache_size)
        self.staging = Staging(db, self.inodes, self.journal, self.slabs, self.cache)
        self.nodes = Nodes(db, client, config.url)
        self.kernel = Kernel()
        self.problems: deque[Problem] = deque(maxlen=REMEMBERED_ERRORS)
        self.refused: dict[int, int] = {}
        """errno by inode whose content the server did not take."""
        self.server_full = False
        """Whether the server has no room for what waits. When nothing does, nobody knows."""
        self.growth: dict[int, int] = {}
        """Bytes by inode that files have grown by and the server does not count yet."""
        self.progress = trio.Event()
        """Replaced and set whenever content reached the nodes."""
        self.checker = Checker(db, self.slabs, self.cache, self.inodes, self.staging.faults)
        client_id = db.get_meta("client")
        if client_id is None:
            client_id = new_id()
            with db.transaction():
                db.set_meta("client", client_id)
        self.client_id = client_id
        self.client_name = socket.gethostname()
        self._recover_times()
        self._check_boot()
        for ino in self.staging.lost():
            self.report(ino, LOST)

    def _check_boot(self) -> None:
        """After the machine went down, not just the daemon: what was only in its memory may be gone.

        Cached chunks can be compared with their ids. What the nodes do not have yet can only be named.
        """
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        known = self.db.get_meta("boot")
        if known == boot:
            return
        with self.db.transaction():
            self.db.set_meta("boot", boot)
            if known is not None:
                self.cache.distrust()
        if known is not None:
            for (ino,) in self.db.execute("SELECT DISTINCT ino FROM staged WHERE slab > 0"):
                self.report(ino, "was not on the nodes when the machine went down: look whether it is whole")

    def _recover_times(self) -> None:
        """Times that were not in their rows when a daemon died: the journal tells when things changed."""
        for row in self.journal.rows():
            for ino in {row.ino if row.op == Op.WRITE else 0, row.parent, row.parent2} - {0}:
                inode = self.inodes.get(ino)
                if inode is not None and inode.ctime < row.time:
                    self.inodes.hold_times(ino, row.time, row.time)

    def pending(self, ino: int) -> bool:
        """Whether what we know of a file is newer than what the server can say."""
        if ino in self.journal.inos:
            return True
        content = self.staging.contents.get(ino)
        return content is not None and content.unsent

    def unsent(self) -> bool:
        """Whether anything waits for the nodes."""
        return self.journal.count > 0 or any(content.dirty for content in self.staging.contents.values())

    def report(self, ino: int, message: str) -> None:
        """Log a problem and remember it for ``mountfs status``."""
        path = self.inodes.path(ino) if ino else ""
        log.warning("%s: %s", path or "/", message)
        self.problems.append(Problem(time.time_ns(), path, message))

    def made_progress(self) -> None:
        """Wake those who wait for room."""
        event, self.progress = self.progress, trio.Event()
        event.set()
