"""The committer: takes the journal to the server, in order, in batches.

One for each bucket. Content goes up before the commit that refers to it; while one commit is on its
way the content of the next is sent. A commit is stored before it is sent, so that after any crash,
here or there, the same batch is sent again and applied once.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice, takewhile

import msgspec
import trio

from mountfs.local.buckets import BucketState
from mountfs.local.inodes import UNKNOWN
from mountfs.local.journal import Field, Op, Row, Sent
from mountfs.local.staging import Content, Snapshot
from mountfs.sync.batches import Batch, build, cancelled
from mountfs.sync.carry import Chunks, carry
from mountfs.sync.context import LOST, Context
from mountfs.sync.errors import hopeless, unreadable
from mountfs.sync.rewound import PutBack
from mountfs.sync.uploads import Upload, Uploads
from nodeserver.client import BadAnswer, ClientError, QuorumLost, Refused, Unreachable
from nodeserver.content.manifest import unpack_slices
from nodeserver.protocol import wire
from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id

log = logging.getLogger(__name__)

BATCH_ROWS = 1000
WINDOW_ROWS = 4 * BATCH_ROWS
"""Rows looked at for changes that cancel out."""
BATCH_BYTES = 64 << 20
"""Content sent for one commit, but for a single larger file."""
EAGER_ROWS = 500
"""With so many rows waiting there is nothing to settle for."""
RETRY_FIRST, RETRY_MOST = 0.2, 15.0
"""Seconds between attempts while the server does not take what is sent."""
ANEW = (Code.MISSING_CHUNKS, Code.HISTORY_GONE)
"""Refusals of which a batch has to be made anew, with what the server lacked."""


class Committer:
    """Drains the journal of one bucket."""

    def __init__(
        self, context: Context, uploads: Uploads, bucket: BucketState, merged: Callable[[int, int], None]
    ) -> None:
        """``merged`` is told of directories that became others, and by which commit."""
        self._context = context
        self._merged = merged
        self._uploads = uploads
        self._bucket = bucket
        self._hurried = 0
        self._hurry = trio.Event()
        self._resumed = False
        self._commit_done = trio.Event()
        self._commit_done.set()
        self._given_back: ClientError | None = None
        """Why nothing of the last commit was applied."""
        self._failed = -math.inf
        """When the attempt began that the server refused last."""
        self._most = BATCH_ROWS
        """Rows for the next commit: halved when the server refuses one for good, to find the row it does not take."""
        self._doubles: set[int] = set()
        """Numbers of directories that have another one since they were met."""
        self._refused: dict[int, float] = {}
        """When to try a row again that the server refused, in trio time."""
        self._forgotten: trio.Event | None = None
        """The server has forgotten commits; set when what it lacks is in the journal."""

    def hurry(self) -> None:
        """Someone waits: let nothing that is in the journal settle, and try again at once."""
        self._hurried = self._context.journal.last()
        self._hurry.set()

    async def put_back(self) -> None:
        """The server has forgotten commits: return when what it lacks is in the journal, to be sent again."""
        if self._forgotten is None:
            self._forgotten = trio.Event()
        self._hurry.set()
        await self._forgotten.wait()

    async def run(self, nursery: trio.Nursery) -> None:
        """Send what there is, for ever; commits on their way run in ``nursery``."""
        delay = RETRY_FIRST
        while True:
            self._hurry = trio.Event()
            began = trio.current_time()
            try:
                if not self._resumed:
                    await self._finish_stored()
                    self._resumed = True
                if self._forgotten is not None:
                    await self._compare(self._forgotten)
                await self._wait_for_rows()
                if self._forgotten is not None:
                    continue
                began = trio.current_time()
                await self._drain(nursery)
                delay = RETRY_FIRST
            except (ClientError, OSError) as error:
                if not (hopeless(error) or unreadable(error)):  # else it is set aside, or the search for it goes on
                    self._note_failure(error, began)
                    delay = await self._pause(delay)

    async def _compare(self, done: trio.Event) -> None:
        """Journal what the server lacks, while nothing is on its way. Raises ClientError, OSError."""
        await self._settled()
        await PutBack(self._context, self._uploads.downloads, self._bucket).run()
        self._forgotten = None
        done.set()

    async def _pause(self, delay: float) -> float:
        """Wait before the next attempt, unless someone hurries; returns the next delay."""
        with trio.move_on_after(delay * (0.5 + random.random())):  # noqa: S311
            await self._hurry.wait()
        return min(delay * 2, RETRY_MOST)

    def _note_failure(self, error: ClientError | OSError, began: float) -> None:
        """Note why an attempt failed that began at a time."""
        if isinstance(error, Refused):
            self._context.server_full = error.code is Code.FULL
            self._failed = began
        noticed = isinstance(error, Unreachable) and not isinstance(error, QuorumLost)
        if not noticed and self._forgotten is None:  # else it is told once it is put right
            self._context.report(0, f"bucket {self._bucket.name}: {error}")
        self._context.journal.announce()

    # What to send

    async def _wait_for_rows(self) -> None:
        """Return when the oldest row has settled, or someone waits for it."""
        settle = self._context.config.settle
        while self._forgotten is None:
            first = next(iter(self._rows(1)), None)
            wait = math.inf
            if first is not None:
                age = (time.time_ns() - first.time) / 1e9
                if age >= settle or age < 0 or self._hurried >= first.id:
                    return
                wait = settle - age
            elif self._refused:
                wait = min(self._refused.values()) - trio.current_time()
            self._hurry = trio.Event()
            with trio.move_on_after(max(0, wait)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_then_cancel, self._hurry.wait, nursery.cancel_scope)
                    if first is None:
                        nursery.start_soon(_then_cancel, self._row, nursery.cancel_scope)

    async def _row(self) -> None:
        """Return when there may be a row to send. Looks before it waits: one may have come since its caller looked."""
        if not self._rows(1):
            await self._context.journal.added()

    def _rows(self, limit: int) -> list[Row]:
        """Rows that nobody has taken and that need not wait."""
        now = trio.current_time()
        aside = self._context.aside
        aside.look()
        self._refused = {row: at for row, at in self._refused.items() if at > now}
        journal = self._context.journal
        taken = journal.taken
        skipped = len(taken) + len(self._refused) + len(journal.held) + len(aside.rows)
        rows = journal.rows(self._bucket.id, limit=limit + skipped)
        rows = [row for row in rows if row.id not in taken and row.id not in aside.rows]
        free = (row for row in rows if row.id not in self._refused and not journal.waits(row))
        return list(islice(free, limit))

    def _select(self) -> list[Row]:
        """The next rows to send; forgets those that cancel out."""
        context = self._context
        rows = self._rows(WINDOW_ROWS)
        gone = cancelled(context.journal, context.inodes, rows)
        if gone:
            with context.db.transaction():
                context.journal.remove(gone)
                self._keep_times(gone)
            context.server_full = context.server_full and context.unsent()
            context.journal.announce()
            ids = {row.id for row in gone}
            rows = [row for row in rows if row.id not in ids]
        if len(rows) < EAGER_ROWS:
            # Half as old will do for company: else the next batch would be due at once.
            horizon = time.time_ns() - int(context.config.settle / 2 * 1e9)
            rows = list(takewhile(lambda row: row.time <= horizon or row.id <= self._hurried, rows))
        chosen: list[Row] = []
        size = 0
        for row in rows:
            if len(chosen) >= self._most and not (self._most > 1 and row.follows(chosen[-1])):
                break
            if row.op == Op.WRITE:
                inode = context.inodes.get(row.ino)
                size += inode.size if inode else 0
                if chosen and size > BATCH_BYTES:
                    break
            chosen.append(row)
        return chosen

    def _keep_times(self, gone: list[Row]) -> None:
        """What came and went leaves no trace but the times of its directories."""
        inos = {row.ino for row in gone}
        last = {parent: row for row in sorted(gone) for parent, _ in row.names() if parent not in inos}
        for parent, row in last.items():
            self._context.journal.add(self._bucket.id, Op.ATTR, parent, row.time, mask=Field.MTIME, row_id=row.id)

    async def _drain(self, nursery: trio.Nursery) -> None:
        """Send what has settled; while much is left, the content of a batch as the one before commits."""
        await self._settled()
        rows = self._select()
        while rows:
            try:
                uploads, chunks = await self._send_content(rows)
            except (ClientError, OSError) as error:
                self._narrow(rows, error)
                raise
            try:
                await self._settled()
            except ClientError:  # what comes after it must not go before it
                self._give_back(rows, uploads.values())
                for upload in uploads.values():
                    self._context.staging.release(upload.content)
                raise
            self._commit_done = trio.Event()
            nursery.start_soon(self._commit_rows, rows, uploads, chunks)
            rows = self._select() if len(self._rows(EAGER_ROWS)) == EAGER_ROWS else []
        await self._settled()

    async def _settled(self) -> None:
        """Return when no commit is on its way. Raises ClientError when the last one has to be made anew."""
        await self._commit_done.wait()
        error, self._given_back = self._given_back, None
        if error:
            raise error

    async def _send_content(self, rows: list[Row]) -> tuple[dict[int, Upload], Chunks]:
        """Send what WRITE rows refer to, but for chunks that the commit is to carry; takes all rows."""
        context = self._context
        row_of: dict[int, int] = {}
        work = []
        for row in list(rows):
            context.journal.take(row)
            inode = context.inodes.get(row.ino)
            # Of two rows for one file the first sends what both were written for.
            if row.op != Op.WRITE or row.ino in row_of or inode is None or not inode.nlink:
                continue
            content = context.staging.acquire(row.ino)
            if content is None:
                context.report(row.ino, "what lies under its changes is not known here: kept, and tried again")
                context.journal.give_back(row)
                self._refused[row.id] = trio.current_time() + RETRY_MOST
                rows.remove(row)
                continue
            if context.staging.has_lost(row.ino):
                # Its row goes with this batch, without content.
                context.staging.set_aside(content)
                context.staging.release(content)
                continue
            row_of[row.ino] = row.id
            work.append((content, context.staging.send(content)))
        try:
            carried = await carry(self._bucket, self._uploads.downloads, work)
            uploads, chunks = carried or (await self._uploads.send(self._bucket, work), [])
        except BaseException:
            self._take_back(work)
            for row in rows:
                context.journal.give_back(row)
            raise
        return {row_of[upload.content.ino]: upload for upload in uploads}, chunks

    def _take_back(self, work: list[tuple[Content, Snapshot]]) -> None:
        """Content was not sent. If that is because it is gone, it must not hold up others again."""
        context = self._context
        for content, snapshot in work:
            context.staging.give_back(content, snapshot)
            if context.staging.find_lost(content):
                context.staging.set_aside(content)
                if context.staging.has_lost(content.ino):
                    context.report(content.ino, LOST)
            context.staging.release(content)

    async def _commit_rows(self, rows: list[Row], uploads: dict[int, Upload], chunks: Chunks) -> None:
        context = self._context
        try:
            batch = build(context.inodes, rows, uploads)
            known = self._bucket.known, self._bucket.known_ns
            commit = wire.Commit(context.client_id, new_id(), batch.ops, context.client_name, chunks, *known)
            body = wire.pack(commit)
            sent = Sent(
                [row.id for row in batch.rows],
                [(index, upload.snapshot.ino, upload.snapshot.gen) for index, upload in batch.uploads.items()],
            )
            try:
                with context.db.transaction():
                    context.inodes.write_times()
                    context.db.execute(
                        "INSERT INTO batch VALUES (?, ?, ?)", (self._bucket.id, body, msgspec.msgpack.encode(sent))
                    )
            except OSError as error:
                self._note_failure(error, trio.current_time())
                self._give_back(batch.rows, batch.uploads.values())
            else:
                await self._commit(body, batch)
        finally:
            for upload in uploads.values():
                context.staging.release(upload.content)
            self._commit_done.set()

    # Sending

    async def _finish_stored(self) -> None:
        """Send the commit again that was on its way when the last daemon ended."""
        context = self._context
        stored = context.db.execute("SELECT body, rows FROM batch WHERE bucket = ?", (self._bucket.id,)).fetchone()
        if stored is None:
            return
        commit = wire.unpack(stored[0], wire.Commit)
        sent = msgspec.msgpack.decode(stored[1], type=Sent)
        ids = set(sent.rows)
        rows = [row for row in context.journal.rows(self._bucket.id) if row.id in ids]
        for row in rows:
            context.journal.take(row)
        batch = Batch(rows, commit.ops, {})
        for index, ino, gen in sent.writes:
            op = commit.ops[index]
            assert isinstance(op, wire.Write)
            slices = op.manifest.slices
            if op.manifest.indirect:
                parts = [await self._uploads.downloads.chunk(self._bucket, piece.chunk) for piece in slices]
                slices = unpack_slices(b"".join(parts))
            content = context.staging.acquire(ino)
            if content is None:
                continue
            snapshot = context.staging.send(content, gen)
            batch.uploads[index] = Upload(content, snapshot, slices, op.manifest, op.hash, op.version)
        try:
            await self._commit(stored[0], batch)
        finally:
            for upload in batch.uploads.values():
                context.staging.release(upload.content)

    async def _commit(self, body: bytes, batch: Batch) -> None:
        """Send a stored commit until the server has answered it and the answer is stored."""
        delay = RETRY_FIRST
        while True:
            self._hurry = trio.Event()
            began = trio.current_time()
            try:
                answer = await self._context.client.commit_packed(self._bucket.name, body)
                if len(answer.results) != len(batch.ops):
                    raise BadAnswer(f"{len(answer.results)} results of {len(batch.ops)} operations")
                self._acknowledged(batch, answer)
            except (ClientError, OSError) as error:
                if isinstance(error, Refused) and (hopeless(error) or error.code in ANEW):
                    if error.code is Code.HISTORY_GONE and self._forgotten is None:
                        self._forgotten = trio.Event()
                    with self._context.db.transaction():
                        self._context.db.execute("DELETE FROM batch WHERE bucket = ?", (self._bucket.id,))
                    self._give_back(batch.rows, batch.uploads.values())
                    self._given_back = error
                    self._narrow(batch.rows, error)
                    return
                self._note_failure(error, began)
            else:
                return
            delay = await self._pause(delay)

    def _narrow(self, rows: list[Row], error: ClientError | OSError) -> None:
        """When one of these rows is refused for good, or its content cannot be read: find it, by halves.

        The others go on; the one is set aside, or tried again after a while.
        """
        if not (hopeless(error) or unreadable(error)):
            return
        self._most = max(1, len(rows) // 2)
        if len(rows) != 1:
            return
        context, [row] = self._context, rows
        if hopeless(error):
            reason = str(error).replace("operation 0: ", "", 1)
            context.aside.add(row, reason)
            context.report(row.ino, f"the server refuses it, the rest goes on; see mountfs refused: {reason}")
        elif not context.staging.has_lost(row.ino):  # of which its row goes without content
            if context.refused.get(row.ino) != errno.EIO:
                context.report(row.ino, f"what lies under its changes cannot be read: kept, and tried again: {error}")
            context.refused[row.ino] = errno.EIO
            self._refused[row.id] = trio.current_time() + RETRY_MOST
        context.journal.announce()

    def _give_back(self, rows: Iterable[Row], uploads: Iterable[Upload]) -> None:
        """Nothing of a commit was applied: its rows go again, with content sent anew."""
        for row in rows:
            self._context.journal.give_back(row)
        for upload in uploads:
            self._context.staging.give_back(upload.content, upload.snapshot)

    def _acknowledged(self, batch: Batch, answer: wire.Committed) -> None:
        """Take note of the server's answer. Raises OSError with nothing changed when the disk is full."""
        context, bucket = self._context, self._bucket
        refused = [
            batch.uploads[index]
            for index, result in enumerate(answer.results)
            if result.status == "quota" and index in batch.uploads
        ]
        stay = {upload.content.ino for upload in refused}
        rows = [row for row in batch.rows if not (row.op == Op.WRITE and row.ino in stay)]
        taken = [
            dataclasses.replace(upload, version=answer.results[index].version or upload.version)  # ``same``: the head's
            for index, upload in batch.uploads.items()
            if upload.content.ino not in stay
        ]
        merged: list[int] = []
        try:
            with context.db.transaction():
                for upload in taken:
                    context.staging.committed(upload.snapshot, upload.slices, upload.version)
                for op, result in zip(batch.ops, answer.results, strict=True):
                    if result.status in ("conflict", "dropped"):
                        if self._became(op, result):
                            merged.append(context.inodes.ino(result.file))
                        else:
                            self._resolve(op, result)
                context.db.execute("DELETE FROM batch WHERE bucket = ?", (bucket.id,))
                context.journal.remove(rows)
                context.buckets.heard(bucket, answer.seq, answer.time_ns)
                context.buckets.save(bucket)
                self._drop_doubles()
        except OSError:
            for row in batch.rows:
                context.journal.take(row)
            raise
        self._most = min(BATCH_ROWS, 2 * self._most)
        context.server_full = False
        for upload in taken:
            context.staging.settle(upload.snapshot, upload.slices, upload.version)
            context.refused.pop(upload.content.ino, None)
            context.growth.pop(upload.content.ino, None)
        for upload in refused:
            self._refuse(batch, upload)
        for ino in merged:
            self._merged(ino, answer.seq)
        context.cache.space.collect()
        context.made_progress()
        context.journal.announce()

    def _refuse(self, batch: Batch, upload: Upload) -> None:
        """There is no quota for this content: it stays here, and is tried again."""
        context, ino = self._context, upload.content.ino
        context.staging.give_back(upload.content, upload.snapshot)
        for row in batch.rows:
            if row.op == Op.WRITE and row.ino == ino:
                context.journal.give_back(row)
                self._refused[row.id] = trio.current_time() + RETRY_MOST
        if context.refused.get(ino) != errno.EDQUOT:
            context.report(ino, "the bucket's quota is exceeded: kept here, and tried again")
        context.refused[ino] = errno.EDQUOT

    def _became(self, op: wire.Op, result: wire.Result) -> bool:
        """Whether a directory met one that the server has under its name: it is that one from now on."""
        other, inodes = wire.became(op, result), self._context.inodes
        if not other or not isinstance(op, wire.Create):
            return False
        if (inodes.ino(op.parent), op.name) != (inodes.ino(result.parent), result.name):
            return False
        here = inodes.ino(other)
        if here in (self._bucket.root, inodes.ino(op.parent)):  # nothing is in itself: never true, and the end of both
            return False
        known = inodes.get(here)
        if len(other) != len(op.file.id) or (known and (known.bucket != self._bucket.id or not known.is_dir)):
            return False
        if double := inodes.become(inodes.ino(op.file.id), other):
            self._doubles.add(double)
        return True

    def _drop_doubles(self) -> None:
        """Of directories that became others which were known here by another name: forget these once nothing is
        pending of them, and until then ask for the names in them, some of which are sent under both numbers.

        Inside the caller's transaction.
        """
        inodes, journal = self._context.inodes, self._context.journal
        for double in list(self._doubles):
            inode = inodes.get(double)
            if inode is not None:
                inodes.update(inodes.ino(inode.file_id), complete=0)
                if double in journal.inos or any(parent == double for parent, _ in journal.names):
                    continue
                inodes.drop_double(double)
            self._doubles.discard(double)

    def _resolve(self, op: wire.Op, result: wire.Result) -> None:
        """The server did something else than we did here: what is concerned has to be asked for."""
        context = self._context
        names = [
            (getattr(op, parent), getattr(op, name))
            for parent, name in (("parent", "name"), ("new_parent", "new_name"), ("other_parent", "other_name"))
            if hasattr(op, parent)
        ]
        if result.name:
            names.append((result.parent, result.name))
        file = op.file.id if isinstance(op, wire.Create) else op.file
        concerned = context.inodes.ino(file)
        what = f"kept as {result.name.decode(errors='backslashreplace')!r}" if result.name else "without effect"
        context.report(concerned, f"{type(op).__name__.lower()} met a change from elsewhere: {what}")
        for parent, name in names:
            directory = context.inodes.ino(parent)
            if context.inodes.get(directory) is not None:
                context.inodes.enter(directory, name, UNKNOWN)
            context.kernel.entry(directory, name)
        context.inodes.mark_stale([concerned, *({context.inodes.ino(parent) for parent, _ in names})])
        for directory, name in context.inodes.names(concerned):
            context.kernel.entry(directory, name)
        context.kernel.inode(concerned)

    async def drained(self, ino: int | None = None) -> None:
        """Return when everything journalled so far is acknowledged, but for content that is being written.

        ``ino``: what concerns this file, or the names in this directory. Raises OSError when the server
        refuses it for good reason: ENOSPC, EDQUOT; EIO for what is set aside, when a file is asked for.
        """
        journal = self._context.journal
        last = journal.last()
        asked = trio.current_time()
        self._retry(ino)
        self.hurry()
        aside = self._context.aside
        while journal.left(last, ino, aside=aside.rows):
            await journal.acknowledged()
            aside.look()  # what was refused may have been all that is left, with what needs it
            if self._context.server_full and self._failed >= asked:
                raise OSError(errno.ENOSPC, "the node server's disk is full")
            if ino is not None and ino in self._context.refused:
                raise OSError(self._context.refused[ino], "the node server refused the content")
        if ino is not None and aside.concerning(ino, last):
            raise OSError(errno.EIO, "the node server refuses it; see mountfs refused")

    def _retry(self, ino: int | None) -> None:
        """Try content again that was refused before: of a file, or all."""
        if ino is None:
            self._refused.clear()
        elif self._context.refused.pop(ino, None) is not None:
            for row in self._context.journal.of_ino(ino):
                self._refused.pop(row.id, None)


async def _then_cancel(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
