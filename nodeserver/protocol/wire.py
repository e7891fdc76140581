"""Wire types of the ``/v1`` API, encoded as MessagePack (or JSON, for people and scripts).

Conventions: identifiers are raw bytes; names are bytes as POSIX has them; times are integer
nanoseconds since the Unix epoch; sizes and offsets are bytes. Every type that is persisted or
sent may gain fields with defaults, never lose or re-type one, within ``PROTOCOL`` 1.
"""

from __future__ import annotations

import stat
from typing import Annotated, Any, TypeVar

import msgspec

PROTOCOL = 1

Int = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""What databases can hold: no message with another number is decoded, so that nobody has to look again."""
FileId = bytes
"""UUIDv7, 16 bytes, minted by whoever creates the file."""
VersionId = bytes
"""UUIDv7, 16 bytes, minted by whoever writes the content."""
ChunkId = bytes
"""32 bytes: BLAKE3 of the plaintext, keyed with the bucket's chunk key."""

MSGPACK = "application/msgpack"
JSON = "application/json"

MAX_COMMIT_OPS = 4096
"""A commit with more operations is refused (413)."""
MAX_COMMIT_CHUNKS = 256 * 1024
"""Stored bytes of the chunks that a commit carries; with more it is refused (413)."""
MAX_BODY = 32 * 1024 * 1024
"""No request body may be larger than this many bytes (413)."""
MAX_BATCH_CHUNKS = 1024
"""Chunks in one batch PUT or batch read."""
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Stored bytes in one batch PUT, and in one answer to a batch read."""
MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of items in one answer that is a page of many, about: it ends before the item that would exceed them, unless
that is the first. Who follows pages must not count on their number of items."""
MAX_LISTING = 10_000
"""Entries in one page of a listing."""
MAX_CHANGES = 1_000
"""Commits in one answer of the change feed."""
MAX_VERSIONS = 10_000
"""Versions, names or events in one answer about history."""
INLINE_SLICES = 8
"""Listings carry a file's manifest only up to this many slices; ask for the file to get the rest."""


class Slice(msgspec.Struct, array_like=True, frozen=True):
    """``length`` bytes of a file: a range of a chunk, or zeros when ``chunk`` is empty."""

    chunk: ChunkId
    offset: Int
    length: Int


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """A file's content in order.

    With ``indirect`` the slices do not hold the content but, concatenated, the MessagePack
    encoding of the real list of slices (so a terabyte costs the database nothing).
    """

    slices: list[Slice]
    indirect: bool = False


class File(msgspec.Struct, omit_defaults=True):
    """An inode. ``mode`` is the whole ``st_mode``, type bits included."""

    id: FileId
    mode: Int
    uid: Int = 0
    gid: Int = 0
    rdev: Int = 0
    nlink: Int = 1
    size: Int = 0
    atime_ns: Int = 0
    mtime_ns: Int = 0
    ctime_ns: Int = 0
    target: bytes = b""
    """What a symbolic link points to."""
    xattrs: dict[bytes, bytes] = {}
    version: VersionId = b""
    """The head version; empty while the file has no content."""
    manifest: Manifest | None = None
    """None when there is no content, or when a listing left it out (``size`` > 0 tells)."""
    gone: bool = False
    """In answers about the past: it has no name now."""


class Entry(msgspec.Struct, array_like=True):
    """A name in a directory."""

    name: bytes
    file: File


# Operations of a commit. Each carries what its author believed; what no longer fits is resolved by
# the server as each docstring says, never by failing the batch. ``time_ns`` is the author's clock:
# it becomes the mtime and ctime of the directories concerned and the ctime of the file.


class Create(msgspec.Struct, tag="create", tag_field="op", omit_defaults=True):
    """A new file, directory, symlink or special file under a name that is free.

    Taken name: created under a conflict name beside it. Parent gone: created in the nearest ancestor that lives.
    A directory that meets a directory becomes that: ``conflict`` with its name and ``file``. What names it later as a
    parent, or to move it, means that; changes of its attributes are dropped, and deletions. A regular file continues
    the history of what was deleted under the name, or else under the same name in the directory ``was_in``.
    """

    parent: FileId
    name: bytes
    file: File
    time_ns: Int
    was_in: FileId = b""


class Link(msgspec.Struct, tag="link", tag_field="op"):
    """A further name for a file, or a name for a directory that was deleted: it is back, empty, as the one it was.

    Taken name: linked under a conflict name. Dropped for a directory that has a name."""

    parent: FileId
    name: bytes
    file: FileId
    time_ns: Int


class Unlink(msgspec.Struct, tag="unlink", tag_field="op"):
    """End a name, of a directory too. Dropped when the name is no longer ``file``'s, or when the
    directory is not empty."""

    parent: FileId
    name: bytes
    file: FileId
    time_ns: Int


class Rename(msgspec.Struct, tag="rename", tag_field="op", omit_defaults=True):
    """Move a name; whatever ``replaces`` names at the target ends.

    Target held by another file than ``replaces``: moved to a conflict name beside it. Source gone:
    dropped.
    """

    parent: FileId
    name: bytes
    file: FileId
    new_parent: FileId
    new_name: bytes
    time_ns: Int
    replaces: FileId = b""


class Exchange(msgspec.Struct, tag="exchange", tag_field="op"):
    """Swap two names (RENAME_EXCHANGE). Dropped unless both still are what was believed."""

    parent: FileId
    name: bytes
    file: FileId
    other_parent: FileId
    other_name: bytes
    other_file: FileId
    time_ns: Int


class SetAttr(msgspec.Struct, tag="setattr", tag_field="op", omit_defaults=True):
    """Change attributes; None leaves one alone. ``xattrs`` replaces the whole set. ``mode`` is the
    whole ``st_mode``; its type bits must not change. Dropped when the file is gone."""

    file: FileId
    time_ns: Int
    mode: Int | None = None
    uid: Int | None = None
    gid: Int | None = None
    atime_ns: Int | None = None
    mtime_ns: Int | None = None
    xattrs: dict[bytes, bytes] | None = None


class Write(msgspec.Struct, tag="write", tag_field="op", omit_defaults=True):
    """New content. ``base`` is the version it was made from (empty for none).

    ``base`` is not the head: the content is kept as a conflict copy beside the file (and as a later
    base of its own). File gone: it comes back under its last name, or a conflict name there.
    With ``session`` equal to the head version's session the head is replaced instead of superseded:
    a program that fsyncs a thousand times in one open leaves one version.
    """

    file: FileId
    version: VersionId
    size: Int
    hash: bytes
    """32 bytes: BLAKE3 of the MessagePack of the manifest's slices, keyed with the chunk key."""
    manifest: Manifest
    mtime_ns: Int
    time_ns: Int
    base: VersionId = b""
    session: bytes = b""


Op = Create | Link | Unlink | Rename | Exchange | SetAttr | Write


class Commit(msgspec.Struct):
    """``POST /v1/buckets/{bucket}/commits``: operations applied in order, in one transaction."""

    client: bytes
    """16 bytes: who writes; a mount takes a new one at each start."""
    batch: bytes
    """16 bytes: a repeat of the same batch gets the first answer and changes nothing."""
    ops: list[Op]
    client_name: str = ""
    """Shown in the names of conflict copies, usually the host's name."""
    chunks: list[tuple[ChunkId, bytes]] = []
    """Pairs of id and stored form, together at most ``MAX_COMMIT_CHUNKS`` bytes: stored, durably, before the
    operations are applied. So a small change takes one request. What is stored already is left as it is."""
    known: Int = 0
    """The newest commit its writer heard of, and in ``known_ns`` that commit's time, 0 when it was not told. A server
    whose log does not hold it came back from an older state: it refuses with ``history-gone`` and applies nothing."""
    known_ns: Int = 0


class Result(msgspec.Struct, array_like=True, omit_defaults=True):
    """What became of one operation."""

    status: str = "ok"
    """``ok``; ``conflict``: applied under ``parent``/``name``, on ``file``; ``dropped``: no effect;
    ``quota``: a write refused for want of quota, everything else applied; ``same``: a write of what the head
    holds already, so that ``version`` stays the head and only times changed."""
    parent: FileId = b""
    name: bytes = b""
    file: FileId = b""
    version: VersionId = b""


def became(op: Op, result: Result) -> FileId:
    """The directory that the one an operation was to create became, because it met that; empty for all else."""
    if not isinstance(op, Create) or not stat.S_ISDIR(op.file.mode) or result.file == op.file.id:
        return b""
    return result.file


class Committed(msgspec.Struct):
    """The answer to a commit: its place in the bucket's log and the server's time."""

    seq: Int
    time_ns: Int
    results: list[Result]


class FileAnswer(msgspec.Struct):
    """``GET …/files/{file}`` and ``GET …/files/{directory}/lookup?name=…``. ``file`` is None when the
    name is free. True as of ``seq``."""

    seq: Int
    file: File | None = None


class Listing(msgspec.Struct):
    """A page of ``GET …/files/{directory}/entries?after=…&limit=…``, in byte order of names."""

    seq: Int
    directory: File
    entries: list[Entry]
    more: bool = False


# History. Whatever takes ``at`` answers as of that commit: ``GET …/files/{file}?at=SEQ``, ``…/lookup``, ``…/entries``,
# ``…/tree``. The mode, owner and group that such answers show let nobody read what the file's present ones, or those
# of the file that continues its history, would not.


class Moment(msgspec.Struct):
    """``GET …/moment?time_ns=T``: the newest commit not after T, and its time; 0 and 0 before the first."""

    seq: Int
    time_ns: Int


class Version(msgspec.Struct, omit_defaults=True):
    """A content that a file had."""

    id: VersionId
    file: FileId
    number: Int
    """Counts from 1 along the lineage."""
    size: Int
    hash: bytes
    mtime_ns: Int
    seq: Int
    committed_ns: Int
    mode: Int
    """With ``uid`` and ``gid``: who may read it, see above."""
    uid: Int = 0
    gid: Int = 0
    base: VersionId = b""
    client: bytes = b""
    author: str = ""
    current: bool = False
    """It is the content of the file that has the name now."""
    held: bool = False
    manifest: Manifest | None = None
    """None in listings when it has more than ``INLINE_SLICES`` slices."""


class VersionAnswer(msgspec.Struct):
    """``GET …/versions/{version}``: with its whole manifest."""

    version: Version


class Versions(msgspec.Struct):
    """``GET …/files/{directory}/versions?name=…&after=…&limit=…``: the history of a name, oldest first.

    ``after`` is the id of the last version of the page before. Empty for a name that never had content."""

    seq: Int
    versions: list[Version]
    more: bool = False


class PastName(msgspec.Struct, array_like=True):
    """A name that has or had content in a directory."""

    name: bytes
    versions: Int
    live: bool
    """A file has the name now."""
    committed_ns: Int
    """Of its newest version."""


class PastNames(msgspec.Struct):
    """``GET …/files/{directory}/names?after=…&limit=…``, in byte order."""

    seq: Int
    names: list[PastName]
    more: bool = False


class Occupant(msgspec.Struct, array_like=True):
    """A file of any kind that had a name from one commit until another; until 0 and 0: it has it still."""

    file: FileId
    mode: Int
    since_seq: Int
    since_ns: Int
    until_seq: Int
    until_ns: Int


class Occupants(msgspec.Struct):
    """``GET …/files/{directory}/occupants?name=…&after=SEQ``: who had a name, oldest first; ``after`` is
    ``until_seq`` of the last of the page before."""

    seq: Int
    occupants: list[Occupant]
    more: bool = False


class TreeListing(msgspec.Struct):
    """``GET …/files/{directory}/tree?at=…&after=…&limit=…``: all that is below a directory, parents first.

    The names in ``entries`` are paths below ``directory``, components joined by ``/``, in the order of a walk that
    takes names in byte order; ``after`` is the last path of the page before."""

    seq: Int
    directory: File
    entries: list[Entry]
    more: bool = False


class Event(msgspec.Struct, omit_defaults=True):
    """One operation as the log tells it. Paths are as they were then, below the bucket's root."""

    seq: Int
    time_ns: Int
    kind: str
    """``create``, ``write``, ``link``, ``unlink``, ``rename``, ``exchange``, ``setattr``, ``purge``."""
    path: bytes
    file: FileId
    mode: Int
    """Of the file: tells its type."""
    author: str = ""
    client: bytes = b""
    client_name: str = ""
    new_path: bytes = b""
    """Of a rename, link or exchange."""
    version: VersionId = b""
    size: Int = 0
    detail: str = ""
    """What a setattr or purge changed, for people."""


class Events(msgspec.Struct):
    """``GET …/files/{file}/log?before=SEQ&limit=N``: what happened to a file and those whose history it continues, or
    below a directory; newest first. ``before`` is where the next page begins, 0 when this is the last; a page may
    hold fewer events than ``limit``, even none, and still not be the last."""

    events: list[Event]
    before: Int


class Policy(msgspec.Struct, omit_defaults=True):
    """Which versions stay. The newest of a file that exists, and held ones, always do."""

    keep: list[tuple[Int, Int]] = []
    """Pairs (every, until) of seconds: of versions younger than ``until`` the newest in each ``every`` stays; 0 keeps
    all. Ascending. What is older than the last ``until`` goes; without pairs, age takes nothing out. A version's age
    counts from when it was superseded or deleted; slots go by when it was made."""
    max_versions: Int | None = None
    """Of one file."""
    max_age: Int | None = None
    """Seconds since a version was superseded or deleted."""
    max_share: float | None = None
    """Of the bucket's quota, between 0 and 1, for all that is not the newest of a file that exists. Only in the policy
    of a bucket's root, and of no effect without a quota."""
    exclude: list[str] = []
    """Globs of names that keep no versions but the newest."""


class Retention(msgspec.Struct):
    """``GET …/retention``: the policies set in a bucket, by directory, and the one where none is set.

    ``PUT …/retention/{directory}`` with a ``Policy`` sets one, ``DELETE`` takes it away."""

    policies: list[tuple[FileId, Policy]]
    default: Policy


class RetentionReport(msgspec.Struct):
    """``GET …/retention/preview?under={directory}``: what a run would take out now, and ``POST …/retention/run``: what
    it took. Bytes are those of chunks that no other version needs, as stored."""

    versions: Int
    files: Int
    bytes: Int


class Hold(msgspec.Struct, array_like=True):
    """``PUT …/holds/{file}``, with a ``note`` as body."""

    file: FileId
    time_ns: Int
    author: str
    note: str


class NewHold(msgspec.Struct):
    note: str = ""


class Holds(msgspec.Struct):
    """``GET …/holds``."""

    holds: list[Hold]


class Purge(msgspec.Struct, tag="purge", tag_field="op", omit_defaults=True):
    """``POST …/purge``: destroy history for good. Stands in the log as what was done, without content.

    Of the lineage of a name: the given versions, or all but the content of a file that exists."""

    parent: FileId
    name: bytes
    versions: list[VersionId] = []


class Purged(msgspec.Struct):
    """The answer: what is gone, and the place of the record in the log."""

    seq: Int
    versions: Int
    bytes: Int


class WorkerStatus(msgspec.Struct):
    """A background worker of a server. Times in nanoseconds, 0 for never."""

    name: str
    state: str
    """``idle``, ``running``, ``paused``."""
    last_ns: Int
    next_ns: Int
    done: Int
    """Things handled by the last or present run."""
    total: Int
    """Things known to be there for it, 0 when unknown."""
    summary: str
    """Of the last run, for people."""
    error: str
    """Of the last run, empty when it went well."""
    rate: float = 0.0
    """Bytes a second that it reads or moves at most; 0: no limit."""


class Workers(msgspec.Struct):
    """``GET /v1/workers``. ``POST /v1/workers/{name}/run|pause|resume`` and ``…/throttle?rate=N`` answer one
    ``WorkerStatus``; ``run`` does when the run is over."""

    workers: list[WorkerStatus]


class Change(msgspec.Struct, array_like=True):
    """What one commit touched."""

    seq: Int
    client: bytes
    time_ns: Int
    entries: list[tuple[FileId, bytes]]
    """(directory, name) pairs that began or ended."""
    files: list[FileId]
    """Files and directories whose attributes or content changed."""


class Changes(msgspec.Struct):
    """``GET …/changes?since=SEQ&wait=SECONDS&known=SEQ&known_ns=TIME``: commits after ``since``, oldest first.

    They reach to ``seq``. Waits up to ``wait`` seconds for the first one. ``known`` and ``known_ns`` are as those of a
    ``Commit``. Carries what ``statfs`` needs besides."""

    seq: Int
    commits: list[Change]
    usage: Usage
    redundancy: str = ""
    """The bucket's setting now."""
    epoch: Int = 0
    """Of the cluster map; who knows an older one asks for it."""
    time_ns: Int = 0
    """Of the commit ``seq``; 0 from a server of an earlier release, or when there is none."""
    more: bool = False
    """There are newer commits than these."""


class Usage(msgspec.Struct):
    """Bytes and files a bucket holds now (live names only), and the room there is."""

    used_bytes: Int
    used_files: Int
    quota_bytes: Int | None
    capacity_bytes: Int
    free_bytes: Int


class Bucket(msgspec.Struct):
    """A bucket as its owner sees it."""

    id: bytes
    name: str
    root: FileId
    chunk_key: bytes
    """32 bytes. Whoever may read the bucket may know it."""
    created_ns: Int
    seq: Int
    usage: Usage
    redundancy: str = ""
    """How its chunks are kept: ``replicate:N:W`` or ``erasure:k+m``; empty: as many copies as there are nodes, three at
    most."""


class NewBucket(msgspec.Struct):
    """``PUT /v1/buckets/{name}``. A repeat with the same ``id`` gets the first answer."""

    id: bytes
    quota_bytes: Int | None = None
    uid: Int = 0
    gid: Int = 0
    mode: Int = 0o755
    """Owner and permission bits of the root directory."""
    redundancy: str = ""


class BucketSettings(msgspec.Struct, omit_defaults=True):
    """``PATCH /v1/buckets/{name}``: what is unset stays as it is."""

    quota_bytes: Int | msgspec.UnsetType | None = msgspec.UNSET
    redundancy: str | msgspec.UnsetType = msgspec.UNSET
    force: bool = False
    """Take a code for more nodes than there are: chunks are kept in whole copies until there are as many."""


class Buckets(msgspec.Struct):
    buckets: list[Bucket]


class Server(msgspec.Struct):
    """``GET /v1/server``: who answers, and its clock."""

    id: bytes
    """16 bytes, minted with the data directory: tells two servers behind one URL apart."""
    version: str
    protocol: Int
    time_ns: Int
    capacity_bytes: Int
    free_bytes: Int
    cluster: bytes = b""
    """16 bytes, the same for all servers of a cluster; of a server alone its id."""
    epoch: Int = 0
    """Of the cluster map it knows."""
    roles: list[str] = []


class ChunkIds(msgspec.Struct):
    """Body of ``POST …/chunks/missing`` (answer: those the bucket lacks) and ``POST …/chunks/read``."""

    ids: list[ChunkId]


class ChunkBatch(msgspec.Struct):
    """Body of ``POST …/chunks`` (all stored, durably, or none) and answer of ``POST …/chunks/read``
    (a prefix of what was asked for, as far as ``MAX_BATCH_BYTES`` goes). Pairs of id and stored form."""

    chunks: list[tuple[ChunkId, bytes]]


class Problem(msgspec.Struct, omit_defaults=True):
    """RFC 9457 problem details, sent as ``application/problem+json``."""

    type: str
    """``urn:mountfs:error:`` and a code of :mod:`nodeserver.protocol.errors`."""
    title: str
    status: Int
    detail: str = ""
    instance: str = ""
    """``urn:uuid:`` of the request; the server's log has it too."""
    ids: list[str] = []
    """Hexadecimal ids the problem is about (missing or corrupt chunks)."""


T = TypeVar("T")


def pack(value: Any) -> bytes:
    """The MessagePack encoding of a wire type."""
    return msgspec.msgpack.encode(value)


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """The wire type that ``data`` encodes. Raises ``msgspec.DecodeError`` on anything else."""
    return msgspec.msgpack.decode(data, type=kind)
