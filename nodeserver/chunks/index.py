"""Where each packed chunk lies: a SQLite file that can be rebuilt from the packs at any time."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from nodeserver.chunks.derived import AT_ONCE, Derived, as_oserror
from nodeserver.chunks.record import PACK_HEADER, RECORD_HEADER
from nodeserver.protocol.cluster import Held

if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeserver.chunks.pack import Appended

_SCHEMA = """
CREATE TABLE chunk (
    bucket BLOB NOT NULL, id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (bucket, id)
) WITHOUT ROWID;
CREATE TABLE pack (
    bucket BLOB NOT NULL, number INTEGER NOT NULL, indexed INTEGER NOT NULL, dead INTEGER NOT NULL,
    PRIMARY KEY (bucket, number)
) WITHOUT ROWID;
"""


class Place(NamedTuple):
    """A stored chunk's pack, and its place there in bytes."""

    pack: int
    offset: int
    length: int


class Index(Derived):
    """One connection to the index, for one thread at a time."""

    VERSION = 2
    SCHEMA = _SCHEMA

    def find(self, bucket: bytes, ids: Collection[bytes]) -> dict[bytes, Place]:
        """Where those of ``ids`` lie that are in packs. Raises ``OSError``."""
        found: dict[bytes, Place] = {}
        rest = iter(ids)
        with as_oserror():
            while some := list(islice(rest, AT_ONCE)):
                marks = ",".join("?" * len(some))
                query = f"SELECT id, pack, offset, length FROM chunk WHERE bucket = ? AND id IN ({marks})"  # noqa: S608
                for chunk, *place in self._db.execute(query, (bucket, *some)):
                    found[chunk] = Place(*place)
        return found

    def add(self, bucket: bytes, new: Appended) -> None:
        """Enter what was appended to a pack. Raises ``OSError``; nothing is entered then."""
        places = {record.id: record for record in new.records}  # of several with one id the last counts
        now = time.time_ns()
        rows = [(bucket, record.id, new.number, record.offset, record.length, now) for record in places.values()]
        live = sum(RECORD_HEADER + record.length for record in places.values())
        with self._transaction():
            self._bury(bucket, places)
            self._db.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?)", rows)
            query = "SELECT indexed, dead FROM pack WHERE bucket = ? AND number = ?"
            start, dead = self._db.execute(query, (bucket, new.number)).fetchone() or (PACK_HEADER, 0)
            dead += new.end - start - live
            self._db.execute("INSERT OR REPLACE INTO pack VALUES (?, ?, ?, ?)", (bucket, new.number, new.end, dead))

    def remove(self, bucket: bytes, ids: Collection[bytes]) -> None:
        """Forget chunks. Raises ``OSError``; none is forgotten then."""
        with self._transaction():
            self._bury(bucket, ids)
            self._db.executemany("DELETE FROM chunk WHERE bucket = ? AND id = ?", [(bucket, chunk) for chunk in ids])

    def count(self, bucket: bytes) -> int:
        """How many chunks of a bucket are in packs. Raises ``OSError``."""
        with as_oserror():
            return int(self._db.execute("SELECT count(*) FROM chunk WHERE bucket = ?", (bucket,)).fetchone()[0])

    def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> list[bytes]:
        """The chunks whose ids begin with a byte from ``first`` on and below ``beyond`` that came before a moment.

        Raises ``OSError``.
        """
        query = "SELECT id FROM chunk WHERE bucket = ? AND id >= ? AND id < ? AND stored_ns < ?"
        with as_oserror():
            return [row[0] for row in self._db.execute(query, (bucket, bytes([first]), _end(beyond), before_ns))]

    def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """The chunks whose ids begin with a byte from ``first`` on and below ``beyond``. Raises ``OSError``."""
        query = "SELECT id, length, stored_ns FROM chunk WHERE bucket = ? AND id >= ? AND id < ?"
        with as_oserror():
            rows = self._db.execute(query, (bucket, bytes([first]), _end(beyond)))
            return [Held(chunk, length, stored_ns) for chunk, length, stored_ns in rows]

    def totals(self, bucket: bytes) -> tuple[int, int]:
        """How many chunks of a bucket are in packs, and their bytes. Raises ``OSError``."""
        with as_oserror():
            query = "SELECT count(*), total(length) FROM chunk WHERE bucket = ?"
            count, size = self._db.execute(query, (bucket,)).fetchone()
            return int(count), int(size)

    def stored(self, bucket: bytes, ids: Collection[bytes]) -> list[Held]:
        """Those of ``ids`` that are in packs. Raises ``OSError``."""
        found: list[Held] = []
        rest = iter(ids)
        with as_oserror():
            while some := list(islice(rest, AT_ONCE)):
                marks = ",".join("?" * len(some))
                query = f"SELECT id, length, stored_ns FROM chunk WHERE bucket = ? AND id IN ({marks})"  # noqa: S608
                found += [Held(*row) for row in self._db.execute(query, (bucket, *some))]
        return found

    def packs(self) -> dict[tuple[bytes, int], int]:
        """How many bytes of each (bucket, pack) are in the index."""
        rows = self._db.execute("SELECT bucket, number, indexed FROM pack")
        return {(bucket, number): end for bucket, number, end in rows}

    def wasteful(self, bucket: bytes, share: float) -> list[tuple[int, int]]:
        """The packs of which at least ``share`` is dead, records of what is not there any more, with those bytes.

        Raises ``OSError``.
        """
        query = "SELECT number, dead FROM pack WHERE bucket = ? AND dead > 0 AND dead >= ? * (indexed - ?)"
        with as_oserror():
            return sorted(self._db.execute(query, (bucket, share, PACK_HEADER)))

    def retire(self, bucket: bytes, number: int) -> bool:
        """Forget a pack, durably, if all of it is dead. Raises ``OSError``."""
        with as_oserror():
            # What was moved elsewhere must not be looked for in a pack that is gone.
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                with self._transaction():
                    query = "DELETE FROM pack WHERE bucket = ? AND number = ? AND dead >= indexed - ?"
                    return self._db.execute(query, (bucket, number, PACK_HEADER)).rowcount > 0
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")

    def cut(self, bucket: bytes, number: int, end: int) -> int:
        """Forget the chunks of a pack that reach beyond byte ``end``; how many there were."""
        with self._transaction():
            gone = self._db.execute(
                "DELETE FROM chunk WHERE bucket = ? AND pack = ? AND offset + length > ?", (bucket, number, end)
            ).rowcount
            if end:
                query = "SELECT total(? + length) FROM chunk WHERE bucket = ? AND pack = ?"
                live = int(self._db.execute(query, (RECORD_HEADER, bucket, number)).fetchone()[0])
                self._db.execute(
                    "UPDATE pack SET indexed = ?, dead = ? WHERE bucket = ? AND number = ?",
                    (end, max(0, end - PACK_HEADER - live), bucket, number),
                )
            else:
                self._db.execute("DELETE FROM pack WHERE bucket = ? AND number = ?", (bucket, number))
        return gone

    def drop(self, bucket: bytes) -> None:
        """Forget a bucket."""
        with self._transaction():
            self._db.execute("DELETE FROM chunk WHERE bucket = ?", (bucket,))
            self._db.execute("DELETE FROM pack WHERE bucket = ?", (bucket,))

    def _bury(self, bucket: bytes, ids: Collection[bytes]) -> None:
        """Count the records that chunks have now as dead."""
        dead = Counter[int]()
        for place in self.find(bucket, ids).values():
            dead[place.pack] += RECORD_HEADER + place.length
        rows = [(size, bucket, number) for number, size in dead.items()]
        self._db.executemany("UPDATE pack SET dead = dead + ? WHERE bucket = ? AND number = ?", rows)


def _end(beyond: int) -> bytes:
    """What is greater than all ids that begin with a byte below ``beyond``."""
    return bytes([beyond]) if beyond < 256 else b"\xff" * 33
