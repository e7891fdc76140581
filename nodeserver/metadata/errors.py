"""Why the metadata refuses. The message is for the person who asked."""

from __future__ import annotations


class Refusal(Exception):
    """A request that cannot be granted now, but is not wrong in itself."""


class NoBucket(Refusal):
    """There is no bucket of this name."""


class NoFile(Refusal):
    """The bucket has no such file or directory."""


class BucketExists(Refusal):
    """The name, or the id, is another bucket's."""


class BucketNotEmpty(Refusal):
    """A bucket's root directory has entries."""


class HasHistory(Refusal):
    """A bucket without files keeps versions of deleted ones."""


class HistoryGone(Refusal):
    """The log does not have the commits that were asked for."""


class Held(Refusal):
    """History that somebody holds."""


class Current(Refusal):
    """A version is the content of a file that exists."""


class Doomed(Refusal):
    """The chunks ``ids`` are being deleted: they must be stored anew.

    ``gone`` has times where all of them are deleted already: who looks for them now, and finds them, may
    commit them with these.
    """

    def __init__(self, ids: list[bytes], gone: dict[bytes, int]) -> None:
        super().__init__(f"{len(ids)} chunks are not stored")
        self.ids = ids
        self.gone = gone


class NoNode(Refusal):
    """There is no such node in the cluster."""


class RemovedNode(Refusal):
    """The node was removed from the cluster, for ever."""


class TakenNode(Refusal):
    """Somebody who joins says to be a node that is there already."""


class Unavailable(Exception):
    """The database cannot answer now; the request can be made again."""
