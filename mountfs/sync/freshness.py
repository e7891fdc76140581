"""How old what is known of a bucket may be: when its server was last heard of, and the bound ``max_stale``."""

from __future__ import annotations

import errno
import math
import struct
import time

from mountfs.local.buckets import BucketState
from mountfs.local.database import Database

_KEY = "heard %d"
_TIME = struct.Struct("<d")


class Freshness:
    """When the server last said of each bucket that nothing else changed. Survives a restart."""

    def __init__(self, db: Database, max_stale: float | None) -> None:
        self._db = db
        self._max_stale = max_stale
        self._heard: dict[int, tuple[float, float]] = {}
        """By bucket: seconds since the epoch, and of the clock that goes on while the machine sleeps."""

    def heard(self, bucket: BucketState) -> None:
        """What is known of a bucket is true now; inside the caller's transaction."""
        now = time.time()
        self._heard[bucket.id] = now, _clock()
        self._db.set_meta(_KEY % bucket.id, _TIME.pack(now))

    def last(self, bucket: int) -> float:
        """When that was, in seconds since the epoch; 0: never."""
        return self._known(bucket)[0]

    def _known(self, bucket: int) -> tuple[float, float]:
        known = self._heard.get(bucket)
        if known is None:
            packed = self._db.get_meta(_KEY % bucket)
            wall: float = _TIME.unpack(packed)[0] if packed else 0.0
            known = self._heard[bucket] = wall, _clock() - max(0.0, time.time() - wall)
        return known

    def left(self, bucket: int) -> float:
        """Seconds for which what is known of a bucket (0: of none) may still be shown."""
        if self._max_stale is None or not bucket:
            return math.inf
        return max(0.0, self._known(bucket)[1] + self._max_stale - _clock())

    def require(self, bucket: int) -> None:
        """Raises OSError(EIO) when what is known of a bucket is too old to be shown."""
        if not self.left(bucket):
            raise OSError(errno.EIO, f"nothing was heard of what others change for {self._max_stale:g} s")

    def feed_wait(self, most: float) -> float:
        """Seconds to wait for changes in one request, ``most`` at most: each answer says that nothing else happened."""
        return most if self._max_stale is None else min(most, self._max_stale / 2)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
