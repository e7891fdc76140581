"""Nobody reads a past that either the mode of then or the present one keeps from him."""

from __future__ import annotations

import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserver.protocol.privacy import Access, restrict
from nodeserver.protocol.wire import (
    Create,
    File,
    FileAnswer,
    FileId,
    Link,
    Listing,
    Rename,
    SetAttr,
    Unlink,
    VersionAnswer,
    Versions,
)
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, base64url

BOTH_ENGINES = True
ACCESS = st.builds(Access, st.integers(0, 0o777), st.integers(1, 3), st.integers(1, 3))


def allowed(access: Access, uid: int, groups: frozenset[int]) -> int:
    """The bits that a user has."""
    if uid == access.uid:
        return access.mode >> 6 & 0o7
    return (access.mode >> 3 if access.gid in groups else access.mode) & 0o7


@given(ACCESS, ACCESS, st.integers(1, 4), st.frozensets(st.integers(1, 3)))
def test_what_is_shown_allows_nobody_what_either_does_not(
    then: Access, now: Access, uid: int, groups: frozenset[int]
) -> None:
    shown = allowed(restrict(then, now), uid, groups)
    assert shown & ~(allowed(then, uid, groups) & allowed(now, uid, groups)) == 0


@given(ACCESS, st.integers(0, 0o7777))
def test_what_has_not_changed_is_shown_as_it_was(access: Access, mode: int) -> None:
    same = access._replace(mode=stat.S_IFREG | mode)
    assert restrict(same, same) == same


@pytest.mark.parametrize(
    ("then", "now", "shown"),
    [
        ((0o644, 1, 1), (0o600, 1, 1), (0o600, 1, 1)),  # made private
        ((0o600, 1, 1), (0o644, 1, 1), (0o600, 1, 1)),  # opened up: what was private stays so
        ((0o640, 1, 1), (0o640, 2, 1), (0o040, 2, 1)),  # another owner, who was one of the group or the others then
        ((0o644, 1, 1), (0o644, 2, 2), (0o444, 2, 2)),
        ((0o660, 1, 1), (0o660, 1, 2), (0o600, 1, 2)),  # another group
        ((0o4755, 1, 1), (0o755, 1, 1), (0o755, 1, 1)),
        ((0o4755, 1, 1), (0o4755, 2, 1), (0o555, 2, 1)),  # never a program with the rights of a later owner
    ],
)
def test_examples(then: tuple[int, int, int], now: tuple[int, int, int], shown: tuple[int, int, int]) -> None:
    assert restrict(Access(*then), Access(*now)) == Access(*shown)


# Through the API: of all ways to the past of one file the same mode is shown.


def modes(api: Api, name: bytes, at: int) -> set[int]:
    """What the ways to a name's past, of which there is one version, show as its mode."""
    root, encoded = api.root.hex(), base64url(name)
    [version] = api.get(f"/files/{root}/versions?name={encoded}", Versions).versions
    shown = {version.mode, api.get(f"/versions/{version.id.hex()}", VersionAnswer).version.mode}
    looked_up = api.get(f"/files/{root}/lookup?name={encoded}&at={at}", FileAnswer).file
    listed = [it.file for it in api.get(f"/files/{root}/entries?at={at}", Listing).entries if it.name == name]
    by_id = api.get(f"/files/{version.file.hex()}?at={at}", FileAnswer).file
    assert looked_up
    assert by_id
    return shown | {looked_up.mode, by_id.mode, *(it.mode for it in listed)}


def test_a_file_made_private_is_private_in_its_past(api: Api) -> None:
    file = api.new_file(b"f", b"secret")
    api.commit(SetAttr(file, 1, mode=REGULAR & ~0o077))
    assert modes(api, b"f", 1) == {stat.S_IFREG | 0o600}
    api.commit(SetAttr(file, 1, mode=REGULAR))
    assert modes(api, b"f", 1) == {REGULAR}


def test_so_it_is_after_saves_by_rename(api: Api) -> None:
    """Also when the file of then is gone, and what continues it has been moved away since."""
    first = api.new_file(b"f", b"secret")
    second = api.new_file(b"tmp", b"secret!", mode=stat.S_IFREG | 0o600)
    api.commit(Rename(api.root, b"tmp", second, api.root, b"f", 1, first))
    assert private(api, first)
    api.commit(Rename(api.root, b"f", second, api.root, b"moved", 1))
    assert private(api, first)
    api.new_file(b"f", b"another", mode=REGULAR)
    assert private(api, first)


def private(api: Api, file: FileId) -> bool:
    """Whether a file that commit 1 made is shown as its owner's alone."""
    then = api.get(f"/files/{file.hex()}?at=1", FileAnswer).file
    listed = {entry.file.id: entry.file for entry in api.get(f"/files/{api.root.hex()}/entries?at=1", Listing).entries}
    assert then
    return {then.mode, listed[file].mode} == {stat.S_IFREG | 0o600}


def test_a_deleted_file_is_as_private_as_it_was_last(api: Api) -> None:
    file = api.new_file(b"f", b"secret")
    api.commit(SetAttr(file, 1, mode=stat.S_IFREG | 0o640))
    api.commit(Unlink(api.root, b"f", file, 1))
    assert modes(api, b"f", 1) == {stat.S_IFREG | 0o640}
    api.new_file(b"f", mode=stat.S_IFREG | 0o604)
    assert modes(api, b"f", 1) == {stat.S_IFREG | 0o600}


def test_the_owner_shown_is_the_present_one(api: Api) -> None:
    made = Create(api.root, b"f", File(b"f" * 16, stat.S_IFREG | 0o640, uid=5, gid=6), time.time_ns())
    api.commit(made, api.write(made.file.id, b"1"))
    api.commit(SetAttr(made.file.id, 1, uid=7))
    then = api.get(f"/files/{made.file.id.hex()}?at=1", FileAnswer).file
    assert then
    assert (stat.S_IMODE(then.mode), then.uid, then.gid) == (0o040, 7, 6)


def test_a_hard_link_elsewhere_keeps_its_mode(api: Api) -> None:
    """What was replaced under one name and lives under another is as its own mode says."""
    file = api.new_file(b"f", b"1")
    other = api.new_file(b"tmp", b"2", mode=stat.S_IFREG | 0o600)
    api.commit(Link(api.root, b"kept", file, 1))
    api.commit(Rename(api.root, b"tmp", other, api.root, b"f", 1, file))
    then = api.get(f"/files/{file.hex()}?at=1", FileAnswer).file
    assert then
    assert then.mode == REGULAR


def test_directories_too(api: Api) -> None:
    directory = api.new_file(b"d", mode=DIRECTORY)
    api.new_file(b"f", b"1", parent=directory)
    api.commit(SetAttr(directory, 1, mode=stat.S_IFDIR | 0o700))
    [entry] = api.get(f"/files/{api.root.hex()}/entries?at=2", Listing).entries
    assert entry.file.mode == stat.S_IFDIR | 0o700
    assert api.get(f"/files/{directory.hex()}/entries?at=2", Listing).directory.mode == stat.S_IFDIR | 0o700
