"""What a commit must be before anybody looks at what it means."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from urllib.parse import urlsplit

from nodeserver.content.manifest import MAX_INLINE, MAX_PACKED, MAX_SIZE, BadManifest, check_indirect, check_slices
from nodeserver.placement.scheme import BadScheme, parse_scheme
from nodeserver.protocol.cluster import CHUNKS, METADATA, Member
from nodeserver.protocol.names import (
    NAME_MAX,
    XATTR_LIST_MAX,
    XATTR_MAX,
    XATTR_VALUE_MAX,
    valid_name,
    xattrs_size,
)
from nodeserver.protocol.wire import (
    MAX_COMMIT_CHUNKS,
    MAX_COMMIT_OPS,
    MAX_VERSIONS,
    ChunkId,
    Commit,
    Create,
    Exchange,
    Link,
    Manifest,
    NewBucket,
    Op,
    Policy,
    Purge,
    Rename,
    SetAttr,
    Unlink,
    Write,
)

ID = 16
HASH = 32
PATH_MAX = 4096
RULES_MAX = 1000
NOTE_MAX = 4096
LISTS_MAX = 4 * MAX_PACKED
"""Bytes of lists of slices in chunks that a commit may name: they are all gone through before it is applied."""
WEIGHT_MAX = 1e6
TEXT_MAX = 255
"""Characters in what a node says of itself."""
KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}

_U32 = (0, (1 << 32) - 1)
_I64 = (-(1 << 63), (1 << 63) - 1)


class Invalid(ValueError):
    """A request that parses but cannot mean anything."""


class InvalidName(Invalid):
    """A name that cannot be a directory entry."""


class TooLarge(Invalid):
    """More of something than one request may carry."""


def check_bucket(new: NewBucket) -> None:
    """Check a bucket that is to be made. Raises ``Invalid``."""
    _ids(id=new.id)
    _within(_U32, uid=new.uid, gid=new.gid)
    _within((0, 0o7777), mode=new.mode)
    check_quota(new.quota_bytes)
    check_redundancy(new.redundancy)


def check_redundancy(setting: str) -> str:
    """The spelt-out form of a bucket's redundancy. Raises ``Invalid``."""
    try:
        return str(parse_scheme(setting)) if setting else ""
    except BadScheme as error:
        raise Invalid(str(error)) from error


def check_quota(quota: int | None) -> None:
    """Check a limit in bytes. Raises ``Invalid``."""
    _within((0, MAX_SIZE), quota_bytes=quota)


def check_policy(policy: Policy, *, root: bool) -> None:
    """Check what is to be kept, of a bucket's root or of another directory. Raises ``Invalid``."""
    _within(_U32, max_versions=policy.max_versions, max_age=policy.max_age)
    last = 0
    for every, until in policy.keep:
        _within(_U32, every=every, until=until)
        if until <= last:
            raise Invalid("the times until which versions are kept must grow")
        last = until
    if policy.max_share is not None and not (root and 0 <= policy.max_share <= 1):
        raise Invalid("a share of the quota is a number from 0 to 1, in the policy of the bucket's root")
    if len(policy.keep) > RULES_MAX or len(policy.exclude) > RULES_MAX:
        raise TooLarge(f"a policy has at most {RULES_MAX} rules of a kind")
    if any(not 0 < len(os.fsencode(glob)) <= NAME_MAX for glob in policy.exclude):
        raise Invalid(f"a glob has 1 to {NAME_MAX} bytes")


def check_member(member: Member) -> None:
    """Check what a node says of itself. Raises ``Invalid``."""
    _ids(id=member.id)
    check_member_url(member.url)
    for text in (member.url, member.version, member.zone, member.region):
        if len(text) > TEXT_MAX or not text.isprintable():
            raise Invalid(f"{text[:80]!r} is not up to {TEXT_MAX} printable characters")
    if not 0 < member.weight <= WEIGHT_MAX:
        raise Invalid(f"a weight of {member.weight:g}, not above 0 and up to {WEIGHT_MAX:g}")
    if not member.roles or not {CHUNKS, METADATA}.issuperset(member.roles) or len(member.roles) > 2:
        raise Invalid("a node has the roles metadata, chunks, or both")
    _within(
        (0, MAX_SIZE),
        capacity_bytes=member.capacity_bytes,
        free_bytes=member.free_bytes,
        used_bytes=member.used_bytes,
        pieces=member.pieces,
    )


def check_member_url(url: str) -> None:
    """Check where a node wants to be reached: requests with tokens go there. Raises ``Invalid``."""
    wrong = Invalid(f"{url[:80]!r} cannot be the address of a node: http(s)://HOST[:PORT] is")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isascii():
        raise wrong
    if any(mark in url for mark in "@?#\\ ") or not url.isprintable():
        raise wrong


def check_damaged(damaged: Sequence[tuple[bytes, ChunkId]]) -> None:
    """Check which chunks a node says are damaged. Raises ``Invalid``."""
    for bucket, chunk in damaged:
        if (len(bucket), len(chunk)) != (ID, HASH):
            raise Invalid(f"a bucket's id has {ID} bytes, that of a chunk {HASH}")


def check_note(note: str) -> None:
    """Check what is written to a hold. Raises ``TooLarge``."""
    if len(note) > NOTE_MAX:
        raise TooLarge(f"a note has at most {NOTE_MAX} characters")


def check_purge(purge: Purge) -> None:
    """Check what is to be destroyed. Raises ``Invalid``."""
    _ids(parent=purge.parent, **{f"version {n}": id_ for n, id_ in enumerate(purge.versions)})
    check_names(purge.name)
    if len(purge.versions) > MAX_VERSIONS:
        raise TooLarge(f"at most {MAX_VERSIONS} versions are purged at once")


def check_commit(commit: Commit) -> set[ChunkId]:
    """The chunks that a commit refers to and does not carry. Raises ``Invalid``."""
    if len(commit.ops) > MAX_COMMIT_OPS:
        raise TooLarge(f"{len(commit.ops)} operations are more than {MAX_COMMIT_OPS}")
    _ids(client=commit.client, batch=commit.batch)
    if len(commit.client_name) > NAME_MAX:
        raise TooLarge("the client's name is too long")
    if any(len(chunk) != HASH for chunk, _ in commit.chunks):
        raise Invalid(f"a chunk id has {HASH} bytes")
    if sum(len(stored) for _, stored in commit.chunks) > MAX_COMMIT_CHUNKS:
        raise TooLarge(f"a commit carries at most {MAX_COMMIT_CHUNKS} bytes of chunks; store more of them before")
    chunks: set[ChunkId] = set()
    lists = 0
    for number, op in enumerate(commit.ops):
        try:
            check_op(op)
        except Invalid as error:
            raise type(error)(f"operation {number}: {error}") from error
        if isinstance(op, Write):
            chunks.update(piece.chunk for piece in op.manifest.slices if piece.chunk)
            lists += sum(piece.length for piece in op.manifest.slices) if op.manifest.indirect else 0
    if lists > LISTS_MAX:
        raise TooLarge(f"lists of slices of {lists} bytes are more than {LISTS_MAX}")
    return chunks.difference(chunk for chunk, _ in commit.chunks)


def check_op(op: Op) -> None:
    """Check one operation. Raises ``Invalid``."""
    _within(_I64, time_ns=op.time_ns)
    match op:
        case Create():
            _ids(parent=op.parent, file=op.file.id)
            _optional_ids(was_in=op.was_in)
            check_names(op.name)
            _check_new_file(op)
        case Link() | Unlink():
            _ids(parent=op.parent, file=op.file)
            check_names(op.name)
        case Rename():
            _ids(parent=op.parent, file=op.file, new_parent=op.new_parent)
            _optional_ids(replaces=op.replaces)
            check_names(op.name, op.new_name)
        case Exchange():
            _ids(parent=op.parent, file=op.file, other_parent=op.other_parent, other_file=op.other_file)
            check_names(op.name, op.other_name)
        case SetAttr():
            _ids(file=op.file)
            _within(_U32, mode=op.mode, uid=op.uid, gid=op.gid)
            _within(_I64, atime_ns=op.atime_ns, mtime_ns=op.mtime_ns)
            _check_xattrs(op.xattrs)
        case Write():
            _ids(file=op.file, version=op.version)
            _optional_ids(base=op.base, session=op.session)
            if op.base == op.version:
                raise Invalid("a version cannot be made from itself")
            _within(_I64, mtime_ns=op.mtime_ns)
            if len(op.hash) != HASH:
                raise Invalid(f"the hash has {len(op.hash)} bytes, not {HASH}")
            check_manifest(op.manifest, op.size)


def check_manifest(manifest: Manifest, size: int) -> None:
    """Check that a manifest can be that of a file of ``size`` bytes. Raises ``Invalid``."""
    if not 0 <= size <= MAX_SIZE:
        raise Invalid(f"a size of {size}")
    if len(manifest.slices) > MAX_INLINE:
        raise TooLarge(f"{len(manifest.slices)} slices are more than {MAX_INLINE}; store them in chunks")
    try:
        length = check_slices(manifest.slices)
    except BadManifest as error:
        raise Invalid(str(error)) from error
    if manifest.indirect:
        try:
            check_indirect(manifest.slices)
        except BadManifest as error:
            raise TooLarge(str(error)) from error
    elif length != size:
        raise Invalid(f"slices of {length} bytes for a size of {size}")


def _check_new_file(op: Create) -> None:
    new = op.file
    _within(_U32, mode=new.mode, uid=new.uid, gid=new.gid)
    _within(_U32, rdev=new.rdev)  # as the kernel passes it on
    _within(_I64, atime_ns=new.atime_ns, mtime_ns=new.mtime_ns)
    kind = stat.S_IFMT(new.mode)
    if kind not in KINDS or new.mode != kind | stat.S_IMODE(new.mode):
        raise Invalid(f"mode {new.mode:#o} is of no kind of file")
    if (kind == stat.S_IFLNK) != bool(new.target) or len(new.target) >= PATH_MAX or b"\0" in new.target:
        raise Invalid("a symbolic link, and nothing else, has a target, of at most 4095 bytes")
    _check_xattrs(new.xattrs)


def _check_xattrs(xattrs: dict[bytes, bytes] | None) -> None:
    if xattrs is None:
        return
    for name in xattrs:
        if not 0 < len(name) <= NAME_MAX or b"\0" in name:
            raise InvalidName(f"{name!r} cannot be an extended attribute")
    if any(len(value) > XATTR_VALUE_MAX for value in xattrs.values()):
        raise TooLarge(f"an extended attribute of more than {XATTR_VALUE_MAX} bytes")
    if sum(len(name) + 1 for name in xattrs) > XATTR_LIST_MAX:
        raise TooLarge(f"names of extended attributes of more than {XATTR_LIST_MAX} bytes")
    if xattrs_size(xattrs) > XATTR_MAX:
        raise TooLarge(f"extended attributes of more than {XATTR_MAX} bytes")


def _ids(**ids: bytes) -> None:
    for field, value in ids.items():
        if len(value) != ID:
            raise Invalid(f"{field} has {len(value)} bytes, not {ID}")


def _optional_ids(**ids: bytes) -> None:
    _ids(**{field: value for field, value in ids.items() if value})


def check_names(*names: bytes) -> None:
    """Check names of directory entries. Raises ``InvalidName``."""
    for name in names:
        if not valid_name(name):
            raise InvalidName(f"{name[:300]!r} cannot be a name")


def _within(limits: tuple[int, int], **values: int | None) -> None:
    low, high = limits
    for field, value in values.items():
        if value is not None and not low <= value <= high:
            raise Invalid(f"{field} {value} is out of range")
