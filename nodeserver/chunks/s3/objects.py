"""Requests to the store, with deadlines, retries, and errors that the rest of the server knows."""

from __future__ import annotations

import asyncio
import errno
import logging
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Bucket

from nodeserver.chunks.engine import StoreUnavailable
from nodeserver.chunks.s3 import credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from obstore.store import ClientConfig, RetryConfig, S3Config

    from nodeserver.chunks.s3.address import Address

PARALLEL = 32
"""Requests at a time."""
DEADLINE = 45.0
"""Seconds that a request may take, with its retries."""
PAGE = 1000
"""Keys in one answer of a listing, and in one deletion."""
DEFAULT_REGION = "us-east-1"

_CLIENT: ClientConfig = {"connect_timeout": "3s", "timeout": "30s", "allow_http": True}
_RETRY: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_FULL = ("QuotaExceeded", "StorageFull", "InsufficientStorage", "InsufficientCapacity", "507 ", "no writable volumes")
"""How stores say that they are full: there is no code for it in the protocol."""
_INSTANCE = ("/latest/api/token", "/latest/meta-data/")
"""Where credentials are asked for last, after the environment and files had none: at the machine's own service."""

log = logging.getLogger(__name__)


class NoObject(LookupError):
    """There is no object of this key."""


class BadRange(Exception):
    """An object is shorter than what was to be read of it."""


class Entry(NamedTuple):
    """One object of a listing."""

    key: str
    size: int
    time_ns: int
    """When it was stored, by the clock of the store."""


class Objects:
    """The objects below an address. Methods raise ``StoreUnavailable``, and ``OSError`` ``ENOSPC``."""

    def __init__(self, address: Address) -> None:
        """Makes no request. Raises ``NoCredentials``."""
        config: S3Config = {"region": address.region or credentials.region() or DEFAULT_REGION}
        if address.endpoint is not None:
            config["endpoint"] = address.endpoint
        self._address = address
        try:
            self._bucket = Bucket(
                address.bucket,
                prefix=address.prefix or None,
                config=config,
                client_options=_CLIENT,
                retry_config=_RETRY,
                credential_provider=credentials.from_files(),
            )
        except BaseError as error:
            raise credentials.NoCredentials(str(error).partition("\n")[0]) from error
        self._slots = asyncio.Semaphore(PARALLEL)

    async def put(self, key: str, data: bytes) -> None:
        """Store an object in place of any that is there, durable on return as far as the store's word goes."""
        async with self._request(key):
            await obstore.put_async(self._bucket, key, data, use_multipart=False)

    async def get(self, key: str) -> bytes:
        """An object. Raises ``NoObject``."""
        async with self._request(key):
            answer = await obstore.get_async(self._bucket, key)
            return (await answer.bytes_async()).to_bytes()

    async def start(self, key: str, length: int) -> bytes:
        """The first bytes of an object, fewer when it is shorter. Raises ``NoObject``, ``BadRange`` if it is empty."""
        async with self._request(key):
            return (await obstore.get_range_async(self._bucket, key, start=0, length=length)).to_bytes()

    async def ranges(self, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Parts of an object; neighbours come with one request. Raises ``NoObject``, ``BadRange``."""
        async with self._request(key):
            found = await obstore.get_ranges_async(self._bucket, key, starts=starts, lengths=lengths)
            return [part.to_bytes() for part in found]

    async def size(self, key: str) -> int:
        """The bytes of an object. Raises ``NoObject``."""
        async with self._request(key):
            return (await obstore.head_async(self._bucket, key))["size"]

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are none the worse."""
        for start in range(0, len(keys), PAGE):
            async with self._request(keys[start]):
                await obstore.delete_async(self._bucket, keys[start : start + PAGE])

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[list[Entry]]:
        """The objects below a prefix, of keys behind ``after``, in the order of keys, some at a time."""
        pages = obstore.list(self._bucket, prefix, offset=after or None, chunk_size=PAGE)
        while True:
            async with self._request(prefix):
                page = await anext(pages, None)
            if page is None:
                return
            yield [Entry(one["path"], one["size"], int(one["last_modified"].timestamp() * 1e9)) for one in page]

    async def directories(self) -> Sequence[str]:
        """The first parts of all keys, up to a slash."""
        async with self._request(""):
            found = await obstore.list_with_delimiter_async(self._bucket)
        return found["common_prefixes"]

    @asynccontextmanager
    async def _request(self, key: str) -> AsyncIterator[None]:
        """Around one request: its turn, its deadline, its errors."""
        async with self._slots:
            try:
                async with asyncio.timeout(DEADLINE):
                    yield
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._away("has no such bucket", error) from error
                raise NoObject(key) from error
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._away("refuses access", error) from error
            except BaseError as error:
                text = str(error)
                if "416 Range" in text:
                    raise BadRange(key) from error
                if any(path in text for path in _INSTANCE):
                    raise self._away("cannot be asked: there are no credentials for it", error) from error
                if any(word in text for word in _FULL):
                    raise OSError(errno.ENOSPC, f"{self._address} is full") from error
                if "NoSuchBucket" in text:
                    raise self._away("has no such bucket", error) from error
                raise self._away("cannot be reached", error) from error
            except TimeoutError as error:
                raise self._away("does not answer", error) from error

    def _away(self, what: str, error: Exception) -> StoreUnavailable:
        log.error("%s %s: %s", self._address, what, str(error).partition("\n")[0] or type(error).__name__)
        return StoreUnavailable(f"the chunk store {what}")
