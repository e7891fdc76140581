"""Answers that parse and cannot be: whoever pages through them, or stores what they say, must not have to look.

A server that is broken, or lies, costs its callers a ``BadAnswer`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from nodeserver.client.errors import BadAnswer
from nodeserver.content.manifest import BadManifest, check_slices
from nodeserver.protocol.wire import Changes, File, FileAnswer, FileId, Listing

ID = 16

_Key = TypeVar("_Key", bytes, list[bytes])


def check_file(file: File | None, id_: FileId | None = None) -> None:
    """What is said of a file, of ``id_`` if that is known. Raises BadAnswer."""
    if file is None:
        return
    if len(file.id) != ID or (id_ is not None and file.id != id_):
        raise BadAnswer("the server answered with another file than was asked for")
    # What the kernel would not take of the attributes is bent where it is shown: one file must not hide the others.
    if len(file.version) not in (0, ID):
        raise BadAnswer(f"the server answered with a file {file.id.hex()} that cannot be")
    if file.manifest is not None:
        try:
            check_slices(file.manifest.slices)
        except BadManifest as error:
            raise BadAnswer(f"the server answered with a content that cannot be: {error}") from error


def check_answer(answer: FileAnswer, id_: FileId | None = None) -> FileAnswer:
    """An answer about a file. Raises BadAnswer."""
    check_file(answer.file, id_)
    return answer


def check_listing(answer: Listing, directory: FileId, after: bytes) -> Listing:
    """A page of a directory: names ascend from ``after``, so that who asks for the next one comes to an end."""
    check_file(answer.directory, directory)
    check_page([entry.name for entry in answer.entries], after, more=answer.more)
    for entry in answer.entries:
        if not entry.name or b"/" in entry.name or b"\0" in entry.name or entry.name in (b".", b".."):
            raise BadAnswer("the server answered with a name that cannot be")
        check_file(entry.file)
    return answer


def check_changes(answer: Changes, since: int) -> Changes:
    """An answer of the change feed: what comes next is behind ``since``. Raises BadAnswer."""
    if answer.commits and answer.seq <= since:
        raise BadAnswer(f"the server answered with changes up to {answer.seq}, which came before {since}")
    return answer


def check_page(keys: Sequence[_Key], after: _Key, *, more: bool) -> None:
    """Raises BadAnswer unless the keys of a page ascend from ``after``, and there are some if there are ``more``."""
    check_more(keys, more=more)
    last = after
    for number, key in enumerate(keys):
        if key < last or (key == last and (number or last)):
            raise BadAnswer("the server answered with a page that is out of order")
        last = key


def check_more(items: Sequence[object], *, more: bool) -> None:
    """Raises BadAnswer for a page without anything that says that there are more."""
    if more and not items:
        raise BadAnswer("the server answered with an empty page, and that there are more")
