"""What the verbs of history are made of, without a server."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator

import click
import pytest

from mountfs.cli.diff import Times
from mountfs.cli.history import policy as policies
from mountfs.cli.history import restore_plan, textdiff, treediff, versions
from mountfs.cli.history.content import _aligned
from mountfs.cli.history.restore_plan import Content, Plan
from mountfs.cli.history.show import printable
from mountfs.errors import MountError
from mountfs.vfs.whereabouts import without_versions
from nodeserver.protocol.wire import (
    MAX_COMMIT_OPS,
    Create,
    Entry,
    File,
    Link,
    Manifest,
    Policy,
    SetAttr,
    Slice,
    Unlink,
    Version,
    Write,
)

REGULAR, DIRECTORY, SYMLINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
PARENT = b"parent"


def regular(file: bytes, data: bytes = b"", **attributes: int) -> File:
    manifest = Manifest([Slice(data, 0, len(data))]) if data else None
    version = b"version of " + file + data if data else b""
    return File(file, REGULAR, size=len(data), version=version, manifest=manifest, **attributes)  # type: ignore[arg-type]


def directory(file: bytes, mtime_ns: int = 0) -> File:
    return File(file, DIRECTORY, mtime_ns=mtime_ns)


def symlink(file: bytes, target: bytes) -> File:
    return File(file, SYMLINK, target=target)


def content_of(file: File) -> Content:
    assert file.manifest
    return Content(b"".join(piece.chunk for piece in file.manifest.slices), file.manifest)


def ids() -> Callable[[], bytes]:
    numbers: Iterator[int] = itertools.count(1)
    return lambda: b"new %d" % next(numbers)


def plan(then: dict[bytes, File], now: dict[bytes, File], *, delete: bool = False) -> Plan:
    entries = [Entry(path, file) for path, file in then.items()]
    return restore_plan.plan(entries, now, (PARENT, b"name"), content_of, delete=delete, time_ns=7, mint=ids())


def test_what_is_the_same_needs_nothing() -> None:
    tree = {b"": directory(b"d"), b"a": regular(b"f", b"data"), b"l": symlink(b"s", b"a"), b"e": regular(b"empty")}
    assert plan(tree, tree) == Plan()
    again = {**tree, b"a": regular(b"other file", b"data"), b"l": symlink(b"t", b"a")}
    assert plan(tree, again) == Plan(), "saved anew with the same content"


def test_a_file_that_is_there_gets_a_version_based_on_its_head() -> None:
    present = regular(b"g", b"new", mtime_ns=5)
    made = plan({b"": regular(b"f", b"old", mtime_ns=3)}, {b"": present})
    [(path, op)] = made.steps
    assert isinstance(op, Write)
    assert (path, op.file, op.base, op.hash, op.mtime_ns) == (b"", b"g", present.version, b"old", 3)
    assert made.changes == {b"": "content"}


def test_what_is_gone_is_created_anew_with_its_attributes_and_parents_first() -> None:
    then = {b"": directory(b"d", 9), b"s": directory(b"e", 8), b"s/a": regular(b"f", b"data", uid=3, mtime_ns=4)}
    made = plan(then, {})
    top, below, file, write, *times = [step.op for step in made.steps]
    assert isinstance(top, Create)
    assert (top.parent, top.name) == (PARENT, b"name")
    assert isinstance(below, Create)
    assert (below.parent, below.name) == (top.file.id, b"s")
    assert isinstance(file, Create)
    assert (file.parent, file.file.uid, file.file.mtime_ns) == (below.file.id, 3, 4)
    assert isinstance(write, Write)
    assert (write.file, write.base) == (file.file.id, b"")
    # Names that come change the time of their directory, so it is set last.
    assert [(op.file, op.mtime_ns) for op in times if isinstance(op, SetAttr)] == [
        (top.file.id, 9),
        (below.file.id, 8),
    ]
    assert made.changes == {b"": "create", b"s": "create", b"s/a": "create"}


def test_only_attributes_that_differ_are_set() -> None:
    made = plan({b"": regular(b"f", b"x", uid=1, mtime_ns=2)}, {b"": regular(b"f", b"x", uid=5, mtime_ns=2)})
    assert [step.op for step in made.steps] == [SetAttr(b"f", 7, uid=1)]
    assert made.changes == {b"": "attributes"}


def test_what_was_made_since_stays_unless_told() -> None:
    then = {b"": directory(b"d", 1)}
    now = {b"": directory(b"d", 2), b"new": directory(b"n"), b"new/x": regular(b"x", b"x")}
    assert [step.op for step in plan(then, now).steps] == [SetAttr(b"d", 7, mtime_ns=1)]
    made = plan(then, now, delete=True)
    assert [step.op for step in made.steps[:-1]] == [Unlink(b"n", b"x", b"x", 7), Unlink(b"d", b"new", b"n", 7)]
    assert made.changes == {b"new": "delete", b"new/x": "delete", b"": "attributes"}


def test_hard_links_come_back_as_links() -> None:
    then = {b"": directory(b"d"), b"a": regular(b"f", b"data"), b"b": regular(b"f", b"data")}
    kinds = [type(step.op) for step in plan(then, {}).steps]
    assert kinds == [Create, Create, Write, Link, SetAttr]
    # One of them is there still, changed.
    made = plan(then, {b"": directory(b"d"), b"b": regular(b"f", b"new")})
    link, write, _ = [step.op for step in made.steps]
    assert link == Link(b"d", b"a", b"f", 7)
    assert isinstance(write, Write)
    assert write.file == b"f"


def test_a_hard_link_that_is_a_file_of_its_own_now() -> None:
    then = {b"": directory(b"d"), b"a": regular(b"f", b"data"), b"b": regular(b"f", b"data")}
    now = {b"": directory(b"d"), b"a": regular(b"f", b"data"), b"b": regular(b"g", b"new")}
    made = plan(then, now)
    assert made.unlinked == [b"b"]
    assert [type(step.op) for step in made.steps] == [Write]
    made = plan(then, now, delete=True)
    assert [step.op for step in made.steps[:2]] == [Unlink(b"d", b"b", b"g", 7), Link(b"d", b"b", b"f", 7)]
    assert made.changes == {b"b": "replace"}


def test_files_that_are_hard_links_of_one_another_now() -> None:
    then = {b"": directory(b"d"), b"a": regular(b"f", b"one"), b"b": regular(b"g", b"two")}
    now = {b"": directory(b"d"), b"a": regular(b"f", b"one"), b"b": regular(b"f", b"one")}
    assert plan(then, now).in_the_way == [b"b"]
    made = plan(then, now, delete=True)
    assert [type(step.op) for step in made.steps] == [Unlink, Create, Write, SetAttr]


def test_names_that_were_exchanged_keep_their_files() -> None:
    then = {b"": directory(b"d"), b"a": regular(b"f", b"one"), b"b": regular(b"g", b"two")}
    now = {b"": directory(b"d"), b"a": regular(b"g", b"two"), b"b": regular(b"f", b"one")}
    written = {step.op.file: step.op.hash for step in plan(then, now).steps if isinstance(step.op, Write)}
    assert written == {b"g": b"one", b"f": b"two"}


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (regular(b"f", b"x"), directory(b"n")),
        (directory(b"d"), regular(b"n", b"x")),
        (symlink(b"s", b"x"), regular(b"n", b"x")),
    ],
    ids=["file", "directory", "symlink"],
)
def test_another_kind_of_thing_is_replaced_only_when_told(was: File, now: File) -> None:
    assert plan({b"": was}, {b"": now}).in_the_way == [b""]
    assert not plan({b"": was}, {b"": now}).steps
    made = plan({b"": was}, {b"": now}, delete=True)
    assert [type(step.op) for step in made.steps[:2]] == [Unlink, Create]
    assert made.changes == {b"": "replace"}


def test_a_symbolic_link_is_replaced_as_it_holds_nothing() -> None:
    made = plan({b"": symlink(b"s", b"old")}, {b"": symlink(b"s2", b"new")})
    assert [type(step.op) for step in made.steps] == [Unlink, Create]


def test_what_listings_left_out_is_asked_for() -> None:
    large = File(b"f", REGULAR, size=9, version=b"v")
    then = [Entry(b"", large), Entry(b"i", File(b"i", REGULAR, size=4, version=b"w", manifest=Manifest([], True)))]
    assert restore_plan.unread(then, {}) == {b"v", b"w"}
    assert restore_plan.unread(then[:1], {b"": large}) == set()
    assert restore_plan.unread(then[:1], {b"": File(b"g", REGULAR, size=9, version=b"x")}) == {b"v", b"x"}
    assert restore_plan.unread(then[:1], {b"": File(b"g", REGULAR, size=8, version=b"x")}) == {b"v"}


def test_commits_are_bounded_by_number_and_size() -> None:
    small = [restore_plan.Step(b"", SetAttr(b"f", 1))] * (MAX_COMMIT_OPS + 1)
    assert [len(group) for group in restore_plan.commits(small)] == [MAX_COMMIT_OPS, 1]
    large = [restore_plan.Step(b"", SetAttr(b"f", 1, xattrs={b"user.x": bytes(3 << 20)}))] * 5
    assert [len(group) for group in restore_plan.commits(large)] == [2, 2, 1]
    assert list(restore_plan.commits([])) == []


# Differences


def differences(before: dict[bytes, File], after: dict[bytes, File]) -> list[tuple[str, bytes, bytes]]:
    found = treediff.differences(*([Entry(*item) for item in tree.items()] for tree in (before, after)))
    return [(it.kind, it.path, it.new_path) for it in found]


def test_a_tree_that_moved_is_named_once() -> None:
    before = {b"": directory(b"d"), b"a": directory(b"e"), b"a/x": regular(b"x", b"1"), b"a/y": regular(b"y", b"1")}
    after = {b"": directory(b"d"), b"b": directory(b"e"), b"b/x": regular(b"x", b"2"), b"b/z": regular(b"y", b"1")}
    assert differences(before, after) == [
        ("moved", b"a", b"b"),
        ("moved", b"a/y", b"b/z"),
        ("changed", b"b/x", b""),
    ]


def test_saving_by_rename_is_a_change_and_rotating_a_move() -> None:
    assert differences({b"r": regular(b"1", b"a")}, {b"r": regular(b"2", b"b")}) == [("changed", b"r", b"")]
    assert differences({b"r": regular(b"1", b"a")}, {b"r": regular(b"2", b"a")}) == [], "the same content"
    rotated = {b"log": regular(b"2", b"b"), b"log.1": regular(b"1", b"a")}
    assert differences({b"log": regular(b"1", b"a")}, rotated) == [("added", b"log", b""), ("moved", b"log", b"log.1")]


def test_links_come_and_go() -> None:
    one, two = {b"a": regular(b"1", b"x")}, {b"a": regular(b"1", b"x"), b"b": regular(b"1", b"x")}
    assert differences(one, two) == [("added", b"b", b"")]
    assert differences(two, one) == [("removed", b"b", b"")]


def test_attributes_and_targets() -> None:
    assert differences({b"a": regular(b"1", b"x")}, {b"a": regular(b"1", b"x", uid=3)}) == [("attributes", b"a", b"")]
    assert differences({b"a": symlink(b"1", b"x")}, {b"a": symlink(b"2", b"y")}) == [("changed", b"a", b"")]
    assert differences({b"a": regular(b"1", b"x", mtime_ns=1)}, {b"a": regular(b"1", b"x", mtime_ns=2)}) == []


def test_texts() -> None:
    assert textdiff.is_text("größer\n".encode())
    assert not textdiff.is_text(b"a\0b")
    assert not textdiff.is_text(b"\xff\xfe")
    lines = b"".join(textdiff.unified(b"a\x0cb\nc", b"a\x0cb\nd\n", "one", "two"))
    assert lines == b"--- one\n+++ two\n@@ -1,2 +1,2 @@\n a\x0cb\n-c\n\\ No newline at end of file\n+d\n"
    assert list(textdiff.unified(b"same", b"same", "one", "two")) == []


def test_slices_are_cut_to_fit_each_other() -> None:
    one = [Slice(b"a", 0, 10), Slice(b"", 0, 5)]
    other = [Slice(b"a", 0, 4), Slice(b"b", 7, 11)]
    assert list(_aligned(one, other)) == [
        (Slice(b"a", 0, 4), Slice(b"a", 0, 4)),
        (Slice(b"a", 4, 6), Slice(b"b", 7, 6)),
        (Slice(b"", 0, 5), Slice(b"b", 13, 5)),
    ]


# What people write


def version(number: int, digits: str, *, current: bool = False) -> Version:
    return Version(bytes.fromhex(digits), b"f", number, 0, b"", 0, number, 0, 0, current=current)


def test_versions_by_number_digits_and_name() -> None:
    first, second = (
        version(1, "0192aaaa00000000000000003f9a2c71"),
        version(2, "0192aaab00000000000000003f9a2c72", current=True),
    )
    known = [first, second]
    for text in ("#1", "2c71", "3f9a2c71", "0192aaaa", "2026-11-22T14-15-30.123Z_3f9a2c71.odt", "previous"):
        assert versions.means_version(known, text), text
        assert versions.pick(known, text, "path") is first, text
    assert versions.pick(known, "current", "path") is second
    for text in ("0192", "#3", "dead", "previous"):
        with pytest.raises(MountError, match=text.lstrip("#")):
            versions.pick(known[1:] if text == "previous" else known, text, "path")
    gone = [first, version(2, "0192aaab00000000000000003f9a2c72")]
    assert versions.pick(gone, "previous", "path") is gone[1], "of a deleted file its last"
    for text in ("2026", "2026-11-22", "yesterday", "-1h", "71", "@-1h"):
        assert not versions.means_version(known, text), text


def test_paths_through_directories_of_versions() -> None:
    cases = {
        "a/b": ("a/b", "", ""),
        "a/.versions/@-1h/b/c": ("a/b/c", "@-1h", ""),
        ".versions/@yesterday": ("", "@yesterday", ""),
        "a/.versions/b/2026.odt": ("a/b", "", "2026.odt"),
        "a/.versions/b": ("a/b", "", ""),
        "a/.versions/@@b/current": ("a/@b", "", "current"),
        "a/.versions": ("a/.versions", "", ""),
    }
    for path, expected in cases.items():
        names, moment, one = without_versions(path.encode().split(b"/"), b".versions")
        assert (b"/".join(names).decode(), moment.decode(), one.decode()) == expected
    with pytest.raises(MountError, match="not a version"):
        without_versions([b".versions", b"a", b"b", b"c"], b".versions")


def test_times_ago_are_no_options() -> None:
    seen: list[tuple[str, str]] = []
    arguments: list[click.Parameter] = [click.Argument(["a"]), click.Argument(["b"])]
    Times("diff", params=arguments, callback=lambda a, b: seen.append((a, b))).main(
        ["-1h", "-1d12h"], standalone_mode=False
    )
    assert seen == [("@-1h", "@-1d12h")]


def test_policies_can_be_set_as_they_are_shown() -> None:
    settings = ["keep=all:10m,1m:1h,1w:1y", "max-versions=5", "max-age=1d12h", "max-share=25%", "exclude=*.swp,x y"]
    policy = policies.changed(Policy(), settings)
    assert policy == Policy([(0, 600), (60, 3600), (604800, 31536000)], 5, 129600, 0.25, ["*.swp", "x y"])
    shown = policies.shown(policy)
    assert shown["keep"] == "all:10m,1m:1h,1w:1y"
    assert policies.changed(Policy(), [f"{key}={value}" for key, value in shown.items()]) == policy
    assert policies.shown(policies.changed(policy, [f"{key}=" for key in shown])) == {}


@pytest.mark.parametrize(
    "setting",
    [
        "nonsense=1",
        "keep",
        "keep=10m",
        "keep=all:1h,1m:10m",
        "keep=1h:1d,1m:2d",
        "max-versions=0",
        "max-versions=many",
        "max-age=3",
        "max-share=101%",
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(MountError) as caught:
        policies.changed(Policy(), [setting])
    assert setting.partition("=")[0] in str(caught.value)


def test_names_are_safe_to_show() -> None:
    assert printable("größe\n\x1b[31m".encode() + b"\xff") == "größe\\n\\x1b[31m\\xff"
