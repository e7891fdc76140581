"""Where each packed chunk lies: a SQLite file that can be made anew from the packs and notes in the store."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from nodeserver.chunks.derived import AT_ONCE, Derived, as_oserror
from nodeserver.chunks.s3.format import NO_PACK
from nodeserver.protocol.cluster import Held

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nodeserver.chunks.record import Record
    from nodeserver.chunks.s3.format import Gone


class Place(NamedTuple):
    """A stored chunk's pack, by its name, and its place there in bytes."""

    pack: str
    offset: int
    length: int


class Pack(NamedTuple):
    """A pack, and how many bytes in it are of chunks that are there."""

    name: str
    size: int
    live: int


class Index(Derived):
    """Methods raise ``OSError``; nothing is changed then."""

    VERSION = 1
    SCHEMA = """
CREATE TABLE store (address TEXT NOT NULL);
CREATE TABLE chunk (
    bucket BLOB NOT NULL, id BLOB NOT NULL, pack TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    stored_ns INTEGER NOT NULL,
    PRIMARY KEY (bucket, id)
) WITHOUT ROWID;
CREATE INDEX chunk_pack ON chunk (bucket, pack);
CREATE TABLE pack (
    bucket BLOB NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, live INTEGER NOT NULL,
    PRIMARY KEY (bucket, name)
) WITHOUT ROWID;
CREATE TABLE note (
    bucket BLOB NOT NULL, name TEXT NOT NULL, pack TEXT NOT NULL,
    PRIMARY KEY (bucket, name, pack)
) WITHOUT ROWID;
"""

    def belongs_to(self, address: str) -> None:
        """Forget everything that is known of another store."""
        with self._transaction():
            if self._db.execute("SELECT address FROM store").fetchone() != (address,):
                for table in ("store", "chunk", "pack", "note"):
                    self._db.execute(f"DELETE FROM {table}")  # noqa: S608
                self._db.execute("INSERT INTO store VALUES (?)", (address,))

    def names(self, bucket: bytes, after: str = "") -> set[str]:
        """The packs and notes behind ``after`` that are known."""
        query = """SELECT name FROM pack WHERE bucket = :bucket AND name > :after
            UNION SELECT name FROM note WHERE bucket = :bucket AND name > :after"""
        with as_oserror():
            return {row[0] for row in self._db.execute(query, {"bucket": bucket, "after": after})}

    def find(self, bucket: bytes, ids: Collection[bytes]) -> dict[bytes, Place]:
        """Where those of ``ids`` lie that are in packs."""
        found: dict[bytes, Place] = {}
        rest = iter(ids)
        with as_oserror():
            while some := list(islice(rest, AT_ONCE)):
                marks = ",".join("?" * len(some))
                query = f"SELECT id, pack, offset, length FROM chunk WHERE bucket = ? AND id IN ({marks})"  # noqa: S608
                for chunk, *place in self._db.execute(query, (bucket, *some)):
                    found[chunk] = Place(*place)
        return found

    def add(self, bucket: bytes, name: str, size: int, stored_ns: int, records: Iterable[Record]) -> None:
        """Enter a pack. Of several records of one chunk the one in the newest pack counts, whoever looks."""
        places = {record.id: record for record in records}
        with self._transaction():
            if self._db.execute("SELECT 1 FROM pack WHERE bucket = ? AND name = ?", (bucket, name)).fetchone():
                return
            known = self.find(bucket, places)
            newest = [one for one in places.values() if one.id not in known or known[one.id].pack < name]
            self._bury(bucket, (known[one.id] for one in newest if one.id in known))
            rows = [(bucket, one.id, name, one.offset, one.length, stored_ns) for one in newest]
            self._db.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?)", rows)
            live = sum(one.length for one in newest)
            self._db.execute("INSERT INTO pack VALUES (?, ?, ?, ?)", (bucket, name, size, live))

    def add_unreadable(self, bucket: bytes, name: str, size: int) -> None:
        """Enter a pack that nothing is known of, so that it is left alone."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO pack VALUES (?, ?, ?, ?)", (bucket, name, size, size))

    def note(self, bucket: bytes, name: str, gone: Collection[tuple[str, bytes]]) -> None:
        """Enter a note: forget chunks that still lie where it says they went."""
        known = self.find(bucket, [chunk for _, chunk in gone])
        left = [chunk for pack, chunk in gone if chunk in known and known[chunk].pack == pack]
        with self._transaction():
            self._bury(bucket, (known[chunk] for chunk in left))
            self._db.executemany("DELETE FROM chunk WHERE bucket = ? AND id = ?", [(bucket, chunk) for chunk in left])
            rows = [(bucket, name, pack) for pack in {pack for pack, _ in gone}]
            self._db.executemany("INSERT OR IGNORE INTO note VALUES (?, ?, ?)", rows)

    def forget(self, bucket: bytes, names: Iterable[str]) -> None:
        """Forget packs, the chunks that are nowhere else, and notes: they are not in the store any more."""
        rows = [(bucket, name) for name in names]
        with self._transaction():
            self._db.executemany("DELETE FROM chunk WHERE bucket = ? AND pack = ?", rows)
            self._db.executemany("DELETE FROM pack WHERE bucket = ? AND name = ?", rows)
            self._db.executemany("DELETE FROM note WHERE bucket = ? AND name = ?", rows)

    def live(self, bucket: bytes, name: str) -> list[tuple[bytes, Place]]:
        """The chunks of a pack that are there."""
        query = "SELECT id, pack, offset, length FROM chunk WHERE bucket = ? AND pack = ? ORDER BY offset"
        with as_oserror():
            return [(chunk, Place(*place)) for chunk, *place in self._db.execute(query, (bucket, name))]

    def packs(self, bucket: bytes) -> list[Pack]:
        """The packs of a bucket, oldest first."""
        with as_oserror():
            query = "SELECT name, size, live FROM pack WHERE bucket = ? ORDER BY name"
            return [Pack(*row) for row in self._db.execute(query, (bucket,))]

    def spent_notes(self, bucket: bytes, before: str) -> list[str]:
        """The notes older than a name all of whose packs are gone."""
        query = """SELECT name FROM note WHERE bucket = :bucket AND name < :before GROUP BY name HAVING NOT max(
            EXISTS (SELECT 1 FROM pack WHERE pack.bucket = :bucket AND pack.name = note.pack))"""
        with as_oserror():
            return [row[0] for row in self._db.execute(query, {"bucket": bucket, "before": before})]

    def count(self, bucket: bytes) -> int:
        """How many chunks of a bucket are in packs."""
        with as_oserror():
            return int(self._db.execute("SELECT count(*) FROM chunk WHERE bucket = ?", (bucket,)).fetchone()[0])

    def older(self, bucket: bytes, first: int, beyond: int, before_ns: int) -> list[bytes]:
        """The packed chunks with ids from one first byte on and below another that came before a moment."""
        query = "SELECT id FROM chunk WHERE bucket = ? AND id >= ? AND id < ? AND stored_ns < ?"
        end = bytes([beyond]) if beyond < 256 else b"\xff" * 33
        with as_oserror():
            return [row[0] for row in self._db.execute(query, (bucket, bytes([first]), end, before_ns))]

    def listing(self, bucket: bytes, first: int, beyond: int) -> list[Held]:
        """The packed chunks with ids from one first byte on and below another."""
        query = "SELECT id, length, stored_ns FROM chunk WHERE bucket = ? AND id >= ? AND id < ?"
        end = bytes([beyond]) if beyond < 256 else b"\xff" * 33
        with as_oserror():
            return [Held(*row) for row in self._db.execute(query, (bucket, bytes([first]), end))]

    def size(self) -> int:
        """The bytes of all packs."""
        with as_oserror():
            return int(self._db.execute("SELECT total(size) FROM pack").fetchone()[0])

    def drop(self, bucket: bytes) -> None:
        """Forget a bucket."""
        with self._transaction():
            for table in ("chunk", "pack", "note"):
                self._db.execute(f"DELETE FROM {table} WHERE bucket = ?", (bucket,))  # noqa: S608

    def _bury(self, bucket: bytes, places: Iterable[Place]) -> None:
        """Count what lies at some places as dead."""
        dead = Counter[str]()
        for place in places:
            dead[place.pack] += place.length
        rows = [(size, bucket, name) for name, size in dead.items()]
        self._db.executemany("UPDATE pack SET live = live - ? WHERE bucket = ? AND name = ?", rows)


def pack_name(pack: bytes) -> str:
    """What a note calls a pack, as its name; empty for ``NO_PACK``."""
    return "" if pack == NO_PACK else pack.hex() + ".pack"


def gone_from(gone: Iterable[Gone]) -> list[tuple[str, bytes]]:
    """A note's content with the names of packs."""
    return [(pack_name(one.pack), one.chunk) for one in gone]
