"""The data directory of a node server: who owns it, its identity and its secrets."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nodeserver.access.secrets import read_or_create, replace
from nodeserver.access.tokens import Keys
from nodeserver.chunks.disk import make_dir
from nodeserver.layout import ADDRESS, ADMIN_TOKEN
from nodeserver.metadata.migrations import NewerFormat
from nodeserver.protocol.ids import new_id

JOINED = "cluster.json"
"""The file that a node without metadata keeps what it knows of its cluster in."""
FORMAT = 1
"""The layout of the directory; a change of it needs a step that makes the old one into the new one."""


log = logging.getLogger(__name__)


class InUse(Exception):
    """Another server runs on the directory."""


class Open(Exception):
    """The directory is open to other users, and cannot be closed to them."""


class Damaged(Exception):
    """A file of the directory is not what a server wrote."""


class Identity(msgspec.Struct, omit_defaults=True):
    """What ``node.json`` holds."""

    format: int
    id: str
    """16 bytes in hexadecimal."""
    audience: str = ""
    """Of tokens, where it is not the id: that of the server whose signing key all on its database use."""


class Joined(msgspec.Struct):
    """What ``cluster.json`` holds: a node without metadata belongs to this cluster."""

    audience: str
    public_key: str
    """PEM."""
    token: str
    map: bytes
    """Packed."""


class DataDir:
    """Paths and identity of a directory that this process holds the lock of."""

    def __init__(self, path: Path) -> None:
        """Raises ``NewerFormat``, ``Damaged``, ``OSError``."""
        self.path = path
        minted = Identity(FORMAT, new_id().hex())
        content = read_or_create(path / "node.json", _json(minted))
        try:
            self._identity = found = msgspec.json.decode(content, type=Identity)
            self.node = bytes.fromhex(found.id)
        except ValueError as error:
            raise Damaged(f"{path / 'node.json'}: {error}") from error
        if found.format > FORMAT:
            raise NewerFormat(f"{path} has format {found.format}, this release knows up to {FORMAT}")
        self.chunks = path / "chunks"
        self.metadata_url = f"sqlite:///{path / 'metadata.sqlite'}"

    def note_address(self, url: str) -> None:
        """Write down where the server is, for commands on this machine. Raises ``OSError``."""
        replace(self.path / ADDRESS, url.encode() + b"\n")

    def keys(self) -> Keys:
        """The signing key, made at the first start, as ``admin.token`` is. Raises ``Damaged``, ``OSError``."""
        path = self.path / "signing.key"
        try:
            keys = Keys(read_or_create(path, Keys.generate()), self._audience)
        except ValueError as error:
            raise Damaged(f"{path}: {error}") from error
        read_or_create(self.path / ADMIN_TOKEN, _admin(keys))
        return keys

    def secrets(self) -> dict[str, bytes]:
        """What servers on one database must have in common. Raises as ``keys``."""
        self.keys()
        return {"signing.key": (self.path / "signing.key").read_bytes(), "audience": self._audience.encode()}

    def adopt(self, secrets: dict[str, bytes]) -> None:
        """Take over the secrets of other servers, tokens of before are void. Raises ``Damaged``, ``OSError``."""
        if secrets == self.secrets():
            return
        try:
            audience = secrets["audience"].decode()
            keys = Keys(secrets["signing.key"], audience)
        except (KeyError, ValueError) as error:
            raise Damaged(f"the secrets in the metadata database: {error}") from error
        self._identity.audience = audience
        # In this order: what a crash leaves is not equal yet, and the next start does it again.
        replace(self.path / ADMIN_TOKEN, _admin(keys))
        replace(self.path / "node.json", _json(self._identity))
        replace(self.path / "signing.key", secrets["signing.key"])
        log.info("took over the signing key of the other servers on the database; admin.token is new")

    @property
    def joined(self) -> Joined | None:
        """The cluster that this is a node of, without metadata of its own. Raises ``Damaged``, ``OSError``."""
        try:
            return msgspec.json.decode((self.path / JOINED).read_bytes(), type=Joined)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise Damaged(f"{self.path / JOINED}: {error}") from error

    def join(self, joined: Joined) -> None:
        """Belong to a cluster from now on. Raises ``OSError``."""
        replace(self.path / ADMIN_TOKEN, joined.token.encode() + b"\n")
        replace(self.path / JOINED, msgspec.json.encode(joined))

    @property
    def has_metadata(self) -> bool:
        """Whether a server ran here with metadata of its own."""
        return (self.path / "metadata.sqlite").exists() or (self.path / "signing.key").exists()

    @property
    def _audience(self) -> str:
        return self._identity.audience or self.node.hex()


def _admin(keys: Keys) -> bytes:
    return keys.mint("admin", "admin").encode() + b"\n"


def _json(identity: Identity) -> bytes:
    return msgspec.json.encode(identity) + b"\n"


@contextlib.contextmanager
def hold(path: Path) -> Iterator[DataDir]:
    """Make the directory if need be and keep other servers and other users off it.

    What is made in it meanwhile is for its owner alone. Raises ``InUse`` with the other server's process id, ``Open``.
    """
    if not path.is_dir():
        make_dir(path)
        path.chmod(0o700)
    _close(path)
    mask = os.umask(0o077)
    try:
        with _locked(path):
            yield DataDir(path)
    finally:
        os.umask(mask)


def _close(path: Path) -> None:
    """Take from others what they may do with a directory of ours, and with the files right in it. Raises ``Open``."""
    mode = path.stat().st_mode
    if not mode & 0o077:
        return
    names = set(os.listdir(path)) - {"lost+found"}
    if names and "node.json" not in names:
        raise Open(f"{path} is open to other users, and what is in it is not a server's: chmod 700, or take another")
    try:
        os.chmod(path, stat.S_IMODE(mode) & 0o700)
        for entry in os.scandir(path):
            if entry.is_file(follow_symlinks=False):
                os.chmod(entry.path, 0o600)
    except PermissionError as error:
        raise Open(f"{path} is open to other users, and belongs to one of them") from error
    log.warning("%s was open to other users (mode %o): it is not any more", path, stat.S_IMODE(mode))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise InUse(f"{path} is in use by the server with process id {holder}") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
