"""Where a store is: ``s3://BUCKET[/PREFIX]?endpoint=URL&region=NAME``."""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

_SECRETS = ("key", "secret", "token", "password", "credential")


class UnusableAddress(ValueError):
    """Not the address of a store. The message never repeats the address: it may have a password in it."""


class Address(NamedTuple):
    """A bucket, the prefix of everything in it that is ours, and how to get there."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    """None: the one of the environment, or else AWS."""
    region: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ``UnusableAddress``."""
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        except ValueError as error:
            raise UnusableAddress("it is not a URL") from error
        if any(word in name.lower() for name in options for word in _SECRETS) or "@" in parts.netloc:
            raise UnusableAddress("credentials are taken from the environment or ~/.aws, never from the URL")
        if parts.scheme != "s3" or not parts.netloc or ":" in parts.netloc or parts.fragment:
            raise UnusableAddress("it must be s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]")
        if unknown := sorted(set(options) - {"endpoint", "region"}):
            raise UnusableAddress(f"unknown option {unknown[0]!r}: there are endpoint and region")
        endpoint = options.get("endpoint")
        if endpoint is not None:
            _check_endpoint(endpoint)
        return cls(parts.netloc, parts.path.strip("/"), endpoint, options.get("region"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def plain(self) -> bool:
        """Whether what is sent there can be read on the way: plain HTTP, and not to this machine."""
        endpoint = self.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        parts = urlsplit(endpoint)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise UnusableAddress("credentials are taken from the environment or ~/.aws, never from the URL")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UnusableAddress("the endpoint must be http://HOST[:PORT] or https://HOST[:PORT]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
