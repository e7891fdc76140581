"""The tree as of a commit is what the tree was, to the last attribute."""

from __future__ import annotations

import dataclasses
import random
import stat
import time
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from nodeserver.protocol.errors import Code
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    INLINE_SLICES,
    Create,
    Entry,
    Exchange,
    File,
    FileAnswer,
    FileId,
    Link,
    Listing,
    Manifest,
    Moment,
    Op,
    Rename,
    SetAttr,
    Slice,
    TreeListing,
    Unlink,
    Write,
)
from tests.harness import Node
from tests.nodeserver.api import DIRECTORY, REGULAR, Api, base64url, problem

BOTH_ENGINES = True

SYMLINK = stat.S_IFLNK | 0o777
Place = tuple[FileId, bytes]

NAMES = [b"a", b"a b", b"a.txt", b"b", b"\xff", *(b"%d" % number for number in range(80))]
"""More than an example makes."""


def live(api: Api, directory: FileId = b"", path: bytes = b"") -> dict[bytes, File]:
    """All that is below a directory, by path, as live listings have it; the directory itself as the empty path."""
    listing = api.get(f"/files/{(directory or api.root).hex()}/entries", Listing)
    found = {path: listing.directory}
    for entry in listing.entries:
        below = path + b"/" + entry.name if path else entry.name
        found |= live(api, entry.file.id, below) if stat.S_ISDIR(entry.file.mode) else {below: entry.file}
    return found


def tree(api: Api, at: int | None, directory: FileId = b"", limit: int = 10_000, after: bytes = b"") -> TreeListing:
    when = "" if at is None else f"&at={at}"
    path = f"/files/{(directory or api.root).hex()}/tree?limit={limit}&after={base64url(after)}{when}"
    return api.get(path, TreeListing)


def walked(listing: TreeListing) -> dict[bytes, File]:
    """As ``live``, of one page with all there is; in the order of the page."""
    assert not listing.more
    return {b"": listing.directory} | {entry.name: entry.file for entry in listing.entries}


def hole(file: FileId, size: int, base: bytes) -> Write:
    """Content that needs no chunk."""
    manifest = Manifest([Slice(b"", 0, size)] if size else [])
    version = new_id()
    return Write(file, version, size, version * 2, manifest, time.time_ns(), time.time_ns(), base)


@dataclasses.dataclass
class Change:
    """Makes operations that fit a tree."""

    rng: random.Random
    root: FileId
    tree: dict[bytes, File]

    def ops(self) -> list[Op]:
        """One change of the tree, or nothing."""
        taken = self.taken()
        if not taken or not self.rng.randrange(3):
            return self.create()
        path = self.rng.choice(taken)
        ways = (self.unlink, self.unlink, self.rename, self.rename, self.replace, self.exchange, self.alter, self.alter)
        return self.rng.choice(ways)(path, self.tree[path], self.place(path))

    def create(self) -> list[Op]:
        mode = self.rng.choice([REGULAR, REGULAR, DIRECTORY, SYMLINK])
        made = File(new_id(), mode, target=b"target" if mode == SYMLINK else b"", xattrs={b"user.x": b"1"})
        content = [hole(made.id, self.rng.randrange(9), b"")] if mode == REGULAR else []
        return [Create(*self.free(), made, time.time_ns()), *content]

    def unlink(self, path: bytes, file: File, place: Place) -> list[Op]:
        return [] if self.below(path) else [Unlink(*place, file.id, time.time_ns())]

    def rename(self, path: bytes, file: File, place: Place) -> list[Op]:
        free = self.free()
        return [] if self.within(free[0], path) else [Rename(*place, file.id, *free, time.time_ns())]

    def replace(self, _path: bytes, file: File, place: Place) -> list[Op]:
        other = self.rng.choice(self.taken())
        replaced = self.tree[other]
        if replaced.id == file.id or DIRECTORY in (file.mode, replaced.mode):
            return []
        return [Rename(*place, file.id, *self.place(other), time.time_ns(), replaced.id)]

    def exchange(self, path: bytes, file: File, place: Place) -> list[Op]:
        other = self.rng.choice(self.taken())
        if (path + b"/").startswith(other + b"/") or other in self.below(path):
            return []
        return [Exchange(*place, file.id, *self.place(other), self.tree[other].id, time.time_ns())]

    def alter(self, _path: bytes, file: File, _place: Place) -> list[Op]:
        if file.mode != REGULAR or not self.rng.randrange(3):
            xattrs = {b"user.y": b"\xff" * self.rng.randrange(3)}
            return [SetAttr(file.id, time.time_ns(), mtime_ns=self.rng.randrange(-9, 9), xattrs=xattrs)]
        if self.rng.randrange(2):
            return [Link(*self.free(), file.id, time.time_ns())]
        return [hole(file.id, self.rng.randrange(9), file.version)]

    def taken(self) -> list[bytes]:
        return [path for path in self.tree if path]

    def free(self) -> tuple[FileId, bytes]:
        directories = [path for path, file in self.tree.items() if file.mode == DIRECTORY]
        places = [(path, name) for path in directories for name in NAMES]
        path, name = self.rng.choice(
            [it for it in places if b"/".join(filter(None, it)) not in self.tree] or [(b"", b"z")]
        )
        return self.tree[path].id, name

    def place(self, path: bytes) -> tuple[FileId, bytes]:
        above, _, name = path.rpartition(b"/")
        return self.tree[above].id, name

    def below(self, path: bytes) -> list[bytes]:
        return [other for other in self.tree if other.startswith(path + b"/")]

    def within(self, directory: FileId, path: bytes) -> bool:
        return directory in {self.tree[path].id, *(self.tree[other].id for other in self.below(path))}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 25), st.integers(1, 3))
def test_every_commit_is_found_again_as_it_was(
    module_node: Node, make_api: Callable[[Node], Api], rng: random.Random, count: int, size: int
) -> None:
    here = make_api(module_node)
    was = [live(here)]
    for _ in range(count):
        batch: list[Op] = []
        for _ in range(size):  # that fit the tree before the batch; the server resolves what does not fit together
            batch += Change(rng, here.root, was[-1]).ops()
        here.commit(*batch)
        was.append(live(here))
    living = {file.id for file in was[-1].values()}
    for at, then in enumerate(was):
        expected = {path: structs.replace(file, gone=file.id not in living) for path, file in then.items()}
        page = tree(here, at)
        assert walked(page) == expected
        assert [entry.name for entry in page.entries] == sorted(
            (path for path in expected if path), key=lambda path: path.split(b"/")
        )
        assert pages(here, at, rng.randrange(1, 4)) == page.entries
        look_closer(here, at, expected, rng)
    assert walked(tree(here, None)) == was[-1]


def pages(api: Api, at: int, limit: int) -> list[Entry]:
    """A tree, page by page."""
    found: list[Entry] = []
    more = True
    while more:
        page = tree(api, at, limit=limit, after=found[-1].name if found else b"")
        assert len(page.entries) == limit or not page.more
        found += page.entries
        more = page.more
    return found


def look_closer(api: Api, at: int, expected: dict[bytes, File], rng: random.Random) -> None:
    """One path of a tree by the other ways to it."""
    path = rng.choice(sorted(expected))
    file = expected[path]
    assert api.get(f"/files/{file.id.hex()}?at={at}", FileAnswer) == FileAnswer(at, file)
    if path:
        above, _, name = path.rpartition(b"/")
        parent = expected[above].id.hex()
        assert api.get(f"/files/{parent}/lookup?name={base64url(name)}&at={at}", FileAnswer) == FileAnswer(at, file)
    if file.mode == DIRECTORY:
        assert walked(tree(api, at, file.id)) == {
            other[len(path) :].lstrip(b"/"): found
            for other, found in expected.items()
            if other == path or not path or other.startswith(path + b"/")
        }
        names = [name for name in expected if name and name.rpartition(b"/")[0] == path]
        listed: list[Entry] = []
        more = True
        while more:
            after = base64url(listed[-1].name) if listed else ""
            page = api.get(f"/files/{file.id.hex()}/entries?at={at}&limit=2&after={after}", Listing)
            assert (page.seq, page.directory) == (at, file)
            listed += page.entries
            more = page.more
        assert [entry.name for entry in listed] == sorted(name.rpartition(b"/")[2] for name in names)


def test_moments(api: Api) -> None:
    def moment(time_ns: int) -> Moment:
        return api.get(f"/moment?time_ns={time_ns}", Moment)

    assert moment(time.time_ns()) == Moment(0, 0)
    first = api.send(api.batch(api.create(b"a")))
    second = api.send(api.batch(api.create(b"b")))
    assert moment(first.time_ns - 1) == Moment(0, 0)
    assert moment(first.time_ns) == moment(second.time_ns - 1) == Moment(1, first.time_ns)
    assert moment(second.time_ns) == moment((1 << 63) - 1) == Moment(2, second.time_ns)
    assert [entry.name for entry in tree(api, 1).entries] == [b"a"]
    assert tree(api, 0).entries == []


def test_a_directory_that_is_gone(api: Api) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    file = api.new_file(b"f", b"1", parent=top)
    api.commit(Unlink(top, b"f", file, 1), Unlink(api.root, b"top", top, 1))
    assert [entry.name for entry in tree(api, 2).entries] == [b"top", b"top/f"]
    assert [entry.name for entry in tree(api, 2, top).entries] == [b"f"]
    for at, code in ((0, Code.NO_FILE), (3, Code.NO_FILE), (4, Code.HISTORY_GONE)):
        for query in ("entries?", "tree?", f"lookup?name={base64url(b'f')}&"):
            problem(api.request("GET", f"/files/{top.hex()}/{query}at={at}"), code)
    problem(api.request("GET", f"/files/{file.hex()}?at=1"), Code.NO_FILE)
    gone = api.get(f"/files/{file.hex()}?at=3", FileAnswer).file
    assert gone
    assert gone.nlink == 0


def test_what_a_session_replaced_is_as_the_version_before(api: Api) -> None:
    """Of an open session one version is kept, its last; between its commits there is what was before it."""
    file, session = api.new_file(b"f", b"before"), new_id()
    head = api.file(file).version
    new = api.create(b"g")
    first, created = api.write(file, b"first", head, session), api.write(new.file.id, b"1", b"", session)
    api.commit(first, new, created)
    api.commit(
        api.write(file, b"second", first.version, session), api.write(new.file.id, b"22", created.version, session)
    )
    then = {entry.name: entry.file for entry in tree(api, 2).entries}
    assert list(then) == [b"f"], "nothing is left of what the new file held"
    assert (then[b"f"].version, then[b"f"].size) == (head, 6)
    assert api.get(f"/files/{api.root.hex()}/lookup?name={base64url(b'g')}&at=2", FileAnswer).file is None
    problem(api.request("GET", f"/files/{new.file.id.hex()}?at=2"), Code.NO_FILE)
    assert {name: file.size for name, file in walked(tree(api, 3)).items() if name} == {b"f": 6, b"g": 2}


def test_a_long_manifest_of_then_is_told_of_a_file_and_left_out_of_listings(api: Api) -> None:
    """Also where another version stands in for the one that was there."""
    file, session = api.create(b"f"), new_id()
    pieces = Manifest([Slice(b"", 0, 1) for _ in range(INLINE_SLICES + 1)])
    long = Write(file.file.id, new_id(), INLINE_SLICES + 1, bytes(32), pieces, 1, 1)
    short = hole(file.file.id, 1, long.version)
    short.session = session
    last = hole(file.file.id, 2, short.version)
    last.session = session
    for ops in ((file, long), (short,), (last,)):
        api.commit(*ops)
    for at in (1, 2):
        then = api.get(f"/files/{file.file.id.hex()}?at={at}", FileAnswer).file
        listed = tree(api, at).entries[0].file
        assert then
        assert (then.version, then.manifest) == (long.version, pieces)
        assert (listed.version, listed.size, listed.manifest) == (long.version, INLINE_SLICES + 1, None)


def test_a_page_of_what_was_not_kept_is_not_empty(api: Api) -> None:
    """Pages are filled up: a client takes the last name of one for the next."""
    session = new_id()
    made = [api.create(b"%02d" % number) for number in range(10)]
    firsts = [hole(create.file.id, 1, b"") for create in made[:9]]
    for write in firsts:
        write.session = session
    api.commit(*made, *firsts, hole(made[9].file.id, 3, b""))
    seconds = [hole(write.file, 2, write.version) for write in firsts]
    for write in seconds:
        write.session = session
    api.commit(*seconds)
    page = api.get(f"/files/{api.root.hex()}/entries?at=1&limit=2", Listing)
    assert ([entry.name for entry in page.entries], page.more) == ([b"09"], False)


def test_bad_questions(api: Api) -> None:
    root = api.root.hex()
    api.new_file(b"f", b"1")
    for query in ("at=-1", "at=x", "at=", "at=1.5", f"at={10**19}"):
        for what in ("", "/entries", "/tree", f"/lookup?name={base64url(b'f')}"):
            mark = "&" if "?" in what else "?"
            problem(api.request("GET", f"/files/{root}{what}{mark}{query}"), Code.MALFORMED)
    for query in ("", "?time_ns=", "?time_ns=now", "?time_ns=-1"):
        problem(api.request("GET", f"/moment{query}"), Code.MALFORMED)
    for after in (b"/a", b"a/", b"a//b", b"..", b"a/./b", b"x" * 256, b"a\0"):
        problem(api.request("GET", f"/files/{root}/tree?after={base64url(after)}"), Code.INVALID_NAME)
    problem(api.request("GET", f"/files/{root}/tree?after=!"), Code.MALFORMED)
    problem(api.request("GET", f"/files/{root}/tree?limit=0"), Code.MALFORMED)
    problem(api.request("GET", f"/files/{root}/tree?at=2"), Code.HISTORY_GONE)
    problem(api.request("GET", f"/files/{api.lookup(b'f').id.hex()}/tree"), Code.NO_FILE)  # type: ignore[union-attr]
    problem(api.request("GET", f"/files/{new_id().hex()}/tree"), Code.NO_FILE)


def test_a_bucket_tells_nothing_of_another(api: Api, make_api: Callable[[Node], Api]) -> None:
    top = api.new_file(b"top", mode=DIRECTORY)
    file = api.new_file(b"f", b"secret", parent=top)
    version = api.file(file).version
    other = make_api(api.node)
    for _ in range(3):
        other.new_file(b"%d" % other.refresh().seq)
    name = base64url(b"f")
    for path in (
        f"/files/{file.hex()}?at=2",
        f"/files/{file.hex()}/log",
        f"/versions/{version.hex()}",
        *(f"/files/{top.hex()}/{what}" for what in ("entries?at=2", "tree?at=2", f"lookup?name={name}&at=2")),
        *(f"/files/{top.hex()}/{what}" for what in ("names", f"versions?name={name}", f"occupants?name={name}", "log")),
    ):
        assert api.request("GET", path).status_code == 200
        problem(other.request("GET", path), Code.NO_FILE)


def test_a_deep_tree(api: Api) -> None:
    """Deeper than a program may recurse."""
    parent, ops = api.root, []
    for _ in range(1500):
        ops.append(api.create(b"d", DIRECTORY, parent))
        parent = ops[-1].file.id
    api.commit(*ops)
    api.commit(Unlink(ops[-2].file.id, b"d", parent, 1))
    assert len(tree(api, 1).entries) == 1500
    last = tree(api, 1, limit=2, after=b"/".join([b"d"] * 1498))
    assert ([entry.name.count(b"/") for entry in last.entries], last.more) == ([1498, 1499], False)
