"""Error codes of the API: the last part of a problem's ``type``, with HTTP status and title."""

from __future__ import annotations

import enum
from http import HTTPStatus

PREFIX = "urn:mountfs:error:"


class Code(enum.Enum):
    """One error a server can answer with."""

    status: HTTPStatus
    title: str

    def __new__(cls, value: str, status: HTTPStatus, title: str) -> Code:
        code = object.__new__(cls)
        code._value_ = value
        code.status = status
        code.title = title
        return code

    MALFORMED = "malformed", HTTPStatus.BAD_REQUEST, "The request does not parse"
    INVALID_NAME = "invalid-name", HTTPStatus.BAD_REQUEST, "The name is not allowed"
    UNAUTHORIZED = "unauthorized", HTTPStatus.UNAUTHORIZED, "The token is missing or not valid"
    FORBIDDEN = "forbidden", HTTPStatus.FORBIDDEN, "The token does not allow this"
    NO_ROUTE = "no-route", HTTPStatus.NOT_FOUND, "There is nothing at this address"
    METHOD = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "The method is not allowed here"
    NO_BUCKET = "bucket-not-found", HTTPStatus.NOT_FOUND, "There is no such bucket"
    NO_FILE = "file-not-found", HTTPStatus.NOT_FOUND, "There is no such file"
    NO_CHUNK = "chunk-not-found", HTTPStatus.NOT_FOUND, "There is no such chunk"
    BUCKET_EXISTS = "bucket-exists", HTTPStatus.CONFLICT, "The bucket exists"
    BUCKET_NOT_EMPTY = "bucket-not-empty", HTTPStatus.CONFLICT, "The bucket is not empty"
    HAS_HISTORY = "bucket-has-history", HTTPStatus.CONFLICT, "The bucket keeps the history of deleted files"
    MISSING_CHUNKS = "missing-chunks", HTTPStatus.CONFLICT, "The content refers to chunks that are not stored"
    HELD = "held", HTTPStatus.CONFLICT, "The history is held"
    CURRENT = "version-current", HTTPStatus.CONFLICT, "The version is the content of a file that exists"
    HISTORY_GONE = "history-gone", HTTPStatus.GONE, "The log no longer reaches back that far"
    NO_METADATA = "no-metadata", HTTPStatus.MISDIRECTED_REQUEST, "This server answers for chunks alone"
    TOO_LARGE = "too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too large"
    CHECKSUM = "checksum-mismatch", HTTPStatus.UNPROCESSABLE_ENTITY, "The checksum does not match"
    CORRUPT = "corrupt-chunk", HTTPStatus.INTERNAL_SERVER_ERROR, "The stored chunk is damaged"
    INTERNAL = "internal", HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed"
    BUSY = "unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The server cannot answer now"
    FULL = "insufficient-storage", HTTPStatus.INSUFFICIENT_STORAGE, "The server's disk is full"

    @property
    def uri(self) -> str:
        """The problem type of this code."""
        return PREFIX + str(self.value)


_BY_URI = {code.uri: code for code in Code}


def code_of(uri: str) -> Code | None:
    """The code behind a problem ``type``, None when it is not one of ours."""
    return _BY_URI.get(uri)
