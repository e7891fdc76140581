"""Wire types of the ``/v1`` API, encoded as MessagePack (or JSON, for people and scripts).

Conventions: identifiers are raw bytes; names are bytes as POSIX has them; times are integer
nanoseconds since the Unix epoch; sizes and offsets are bytes. Every type that is persisted or
sent may gain fields with defaults, never lose or re-type one, within ``PROTOCOL`` 1.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

PROTOCOL = 1

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
MAX_LISTING = 10_000
"""Entries in one page of a listing."""
MAX_CHANGES = 1_000
"""Commits in one answer of the change feed."""
INLINE_SLICES = 8
"""Listings carry a file's manifest only up to this many slices; ask for the file to get the rest."""


class Slice(msgspec.Struct, array_like=True, frozen=True):
    """``length`` bytes of a file: a range of a chunk, or zeros when ``chunk`` is empty."""

    chunk: ChunkId
    offset: int
    length: int


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
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    target: bytes = b""
    """What a symbolic link points to."""
    xattrs: dict[bytes, bytes] = {}
    version: VersionId = b""
    """The head version; empty while the file has no content."""
    manifest: Manifest | None = None
    """None when there is no content, or when a listing left it out (``size`` > 0 tells)."""


class Entry(msgspec.Struct, array_like=True):
    """A name in a directory."""

    name: bytes
    file: File


# Operations of a commit. Each carries what its author believed; what no longer fits is resolved by
# the server as each docstring says, never by failing the batch. ``time_ns`` is the author's clock:
# it becomes the mtime and ctime of the directories concerned and the ctime of the file.


class Create(msgspec.Struct, tag="create", tag_field="op", omit_defaults=True):
    """A new file, directory, symlink or special file under a name that is free.

    Taken name: created under a conflict name beside it. Parent gone: created in the nearest
    ancestor that lives.
    """

    parent: FileId
    name: bytes
    file: File
    time_ns: int


class Link(msgspec.Struct, tag="link", tag_field="op"):
    """A further name for a file. Taken name: linked under a conflict name."""

    parent: FileId
    name: bytes
    file: FileId
    time_ns: int


class Unlink(msgspec.Struct, tag="unlink", tag_field="op"):
    """End a name, of a directory too. Dropped when the name is no longer ``file``'s, or when the
    directory is not empty."""

    parent: FileId
    name: bytes
    file: FileId
    time_ns: int


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
    time_ns: int
    replaces: FileId = b""


class Exchange(msgspec.Struct, tag="exchange", tag_field="op"):
    """Swap two names (RENAME_EXCHANGE). Dropped unless both still are what was believed."""

    parent: FileId
    name: bytes
    file: FileId
    other_parent: FileId
    other_name: bytes
    other_file: FileId
    time_ns: int


class SetAttr(msgspec.Struct, tag="setattr", tag_field="op", omit_defaults=True):
    """Change attributes; None leaves one alone. ``xattrs`` replaces the whole set. ``mode`` is the
    whole ``st_mode``; its type bits must not change. Dropped when the file is gone."""

    file: FileId
    time_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
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
    size: int
    hash: bytes
    """32 bytes: BLAKE3 of the MessagePack of the manifest's slices, keyed with the chunk key."""
    manifest: Manifest
    mtime_ns: int
    time_ns: int
    base: VersionId = b""
    session: bytes = b""


Op = Create | Link | Unlink | Rename | Exchange | SetAttr | Write


class Commit(msgspec.Struct):
    """``POST /v1/buckets/{bucket}/commits``: operations applied in order, in one transaction."""

    client: bytes
    """16 bytes: who writes; the same over restarts."""
    batch: bytes
    """16 bytes: a repeat of the same batch gets the first answer and changes nothing."""
    ops: list[Op]
    client_name: str = ""
    """Shown in the names of conflict copies, usually the host's name."""
    chunks: list[tuple[ChunkId, bytes]] = []
    """Pairs of id and stored form, together at most ``MAX_COMMIT_CHUNKS`` bytes: stored, durably, before the
    operations are applied. So a small change takes one request. What is stored already is left as it is."""


class Result(msgspec.Struct, array_like=True, omit_defaults=True):
    """What became of one operation."""

    status: str = "ok"
    """``ok``; ``conflict``: applied under ``parent``/``name``, on ``file``; ``dropped``: no effect;
    ``quota``: a write refused for want of quota, everything else applied."""
    parent: FileId = b""
    name: bytes = b""
    file: FileId = b""


class Committed(msgspec.Struct):
    """The answer to a commit: its place in the bucket's log and the server's time."""

    seq: int
    time_ns: int
    results: list[Result]


class FileAnswer(msgspec.Struct):
    """``GET …/files/{file}`` and ``GET …/files/{directory}/lookup?name=…``. ``file`` is None when the
    name is free. True as of ``seq``."""

    seq: int
    file: File | None = None


class Listing(msgspec.Struct):
    """A page of ``GET …/files/{directory}/entries?after=…&limit=…``, in byte order of names."""

    seq: int
    directory: File
    entries: list[Entry]
    more: bool = False


class Change(msgspec.Struct, array_like=True):
    """What one commit touched."""

    seq: int
    client: bytes
    time_ns: int
    entries: list[tuple[FileId, bytes]]
    """(directory, name) pairs that began or ended."""
    files: list[FileId]
    """Files and directories whose attributes or content changed."""


class Changes(msgspec.Struct):
    """``GET …/changes?since=SEQ&wait=SECONDS``: commits after ``since``, oldest first, up to ``seq``.

    Waits up to ``wait`` seconds for the first one. Carries what ``statfs`` needs besides."""

    seq: int
    commits: list[Change]
    usage: Usage


class Usage(msgspec.Struct):
    """Bytes and files a bucket holds now (live names only), and the room there is."""

    used_bytes: int
    used_files: int
    quota_bytes: int | None
    capacity_bytes: int
    free_bytes: int


class Bucket(msgspec.Struct):
    """A bucket as its owner sees it."""

    id: bytes
    name: str
    root: FileId
    chunk_key: bytes
    """32 bytes. Whoever may read the bucket may know it."""
    created_ns: int
    seq: int
    usage: Usage


class NewBucket(msgspec.Struct):
    """``PUT /v1/buckets/{name}``. A repeat with the same ``id`` gets the first answer."""

    id: bytes
    quota_bytes: int | None = None
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    """Owner and permission bits of the root directory."""


class BucketSettings(msgspec.Struct):
    """``PATCH /v1/buckets/{name}``."""

    quota_bytes: int | None = None


class Buckets(msgspec.Struct):
    buckets: list[Bucket]


class Server(msgspec.Struct):
    """``GET /v1/server``: who answers, and its clock."""

    id: bytes
    """16 bytes, minted with the data directory: tells two servers behind one URL apart."""
    version: str
    protocol: int
    time_ns: int
    capacity_bytes: int
    free_bytes: int


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
    status: int
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
