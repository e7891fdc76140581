"""Restoring a large tree: a bounded number of requests, and no content moves."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from nodeserver.content.manifest import content_hash
from nodeserver.protocol.ids import new_id
from nodeserver.protocol.wire import (
    INLINE_SLICES,
    MAX_COMMIT_OPS,
    Create,
    File,
    FileId,
    Manifest,
    Op,
    Slice,
    TreeListing,
    Unlink,
    Write,
)
from tests.cli.past import Past
from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy
from tests.harness import Node
from tests.nodeserver.api import Api, base64url

DIRECTORIES, FILES = 100, 10_000
MTIME = 1_500_000_000_123_456_789


class Tree:
    """A tree of 10,000 files, made and seen through the API."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.top = new_id()
        slices = [[Slice(api.put_chunk(b"content %d" % number), 0, 9)] for number in range(10)]
        self.contents = [(content_hash(api.bucket.chunk_key, one), Manifest(one)) for one in slices]
        self.files: list[tuple[FileId, bytes, FileId]] = []
        ops: list[Op] = [self._create(api.root, b"tree", File(self.top, stat.S_IFDIR | 0o755))]
        for number in range(DIRECTORIES):
            directory = new_id()
            ops.append(self._create(self.top, b"%02d" % number, File(directory, stat.S_IFDIR | 0o750, mtime_ns=MTIME)))
            for other in range(FILES // DIRECTORIES):
                self.files.append((directory, b"%02d" % other, new_id()))
        for at, (directory, name, file) in enumerate(self.files):
            ops += (
                self._create(directory, name, File(file, stat.S_IFREG | 0o640, mtime_ns=MTIME + at)),
                self._write(file, at),
            )
        self.send(ops)

    def _create(self, directory: FileId, name: bytes, file: File) -> Create:
        return Create(directory, name, file, time.time_ns())

    def _write(self, file: FileId, at: int, version: int = 0, base: bytes = b"") -> Write:
        hash_, manifest = self.contents[(at + version) % 10]
        return Write(file, new_id(), 9, hash_, manifest, MTIME + at, time.time_ns(), base)

    def send(self, ops: list[Op]) -> None:
        for start in range(0, len(ops), MAX_COMMIT_OPS):
            assert {result.status for result in self.api.commit(*ops[start : start + MAX_COMMIT_OPS])} == {"ok"}

    def delete(self) -> None:
        now = time.time_ns()
        listing = self.api.entries(self.top)
        ops: list[Op] = [Unlink(directory, name, file, now) for directory, name, file in self.files]
        ops += (Unlink(self.top, entry.name, entry.file.id, now) for entry in listing)
        self.send([*ops, Unlink(self.api.root, b"tree", self.top, now)])

    def change(self, every: int) -> None:
        """Other content in some files."""
        heads = {path: file.version for path, file in self.seen(b"tree").items()}
        names = {entry.file.id: entry.name for entry in self.api.entries(self.top)}
        self.send(
            [
                self._write(file, at, 1, heads[names[directory] + b"/" + name])
                for at, (directory, name, file) in enumerate(self.files)
                if at % every == 0
            ]
        )

    def seen(self, name: bytes) -> dict[bytes, File]:
        """What is below a directory of the root, by path."""
        directory = self.api.lookup(name)
        assert directory
        found: dict[bytes, File] = {}
        after = b""
        while True:
            path = f"/files/{directory.id.hex()}/tree?after={base64url(after)}&limit=10000"
            page = self.api.get(path, TreeListing)
            found |= {entry.name: entry.file for entry in page.entries}
            if not page.more:
                return found
            after = page.entries[-1].name


def essence(tree: dict[bytes, File]) -> dict[bytes, tuple[object, ...]]:
    """What must be as it was."""
    return {path: (file.mode, file.size, file.mtime_ns, file.manifest) for path, file in tree.items()}


@pytest.fixture(scope="module")
def tree(module_node: Node) -> Iterator[Tree]:
    api = Api(module_node, "large")
    with closing(api.http):
        yield Tree(api)


def test_restoring_10_000_files_takes_few_requests_and_moves_no_content(
    module_node: Node, make_mount: MakeMount, tree: Tree
) -> None:
    with FaultProxy(module_node.url) as proxy:
        past = Past(make_mount(module_node, "large", url=proxy.url))
        was = essence(tree.seen(b"tree"))
        assert len(was) == DIRECTORIES + FILES
        then = past.moment()
        tree.change(every=4)
        changed = past.moment()
        proxy.forget()
        assert "2500 changed" in past.run("restore", past.path / "tree", "--at", then, "--dry-run").splitlines()[-1]
        assert proxy.count("POST") == 0
        assert essence(tree.seen(b"tree")) != was
        began = time.monotonic()
        past.run("restore", past.path / "tree", "--at", then)
        took = time.monotonic() - began
        assert essence(tree.seen(b"tree")) == was
        _few(proxy, commits=1)
        began = time.monotonic()
        past.run("restore", past.path / "tree", "--at", changed, "--to", past.path / "copy")
        print(f"restored 2,500 of 10,000 files in {took:.1f} s, all elsewhere in {time.monotonic() - began:.1f} s")
        assert len(tree.seen(b"copy")) == len(was)
        assert (past.path / "copy/07/42").read_bytes() == b"content 2"
        proxy.forget()
        tree.delete()
        assert past.run("undo", past.path / "tree").startswith(f"{past.path}/tree: 10101 back")
        assert essence(tree.seen(b"tree")) == was
        _few(proxy, commits=5)
        found = past.json("diff", past.path, changed, code=1)["differences"]
        assert {it["change"] for it in found if it["path"].startswith("copy")} == {"added"}


def _few(proxy: FaultProxy, commits: int) -> None:
    """What went to the server since ``forget``, but for what the mount asks as its kernel looks around."""
    assert proxy.count("POST", r"/commits$") == commits
    assert proxy.count("", r"/chunks|^/v1/pieces") == 0
    asked = [seen for seen in proxy.requests if "/changes?" not in seen.path]
    assert len(asked) < 40, asked
    proxy.forget()


def test_a_file_of_many_pieces_comes_back_without_its_content(module_node: Node, make_mount: MakeMount) -> None:
    api = Api(module_node, "pieces")
    with closing(api.http), FaultProxy(module_node.url) as proxy:
        past = Past(make_mount(module_node, "pieces", url=proxy.url))
        slices = [Slice(api.put_chunk(b"piece %d" % number), 0, 7) for number in range(2 * INLINE_SLICES)]
        create, hash_ = api.create(b"file"), content_hash(api.bucket.chunk_key, slices[:10])
        write = Write(create.file.id, new_id(), 70, hash_, Manifest(slices[:10]), MTIME, MTIME)
        assert [result.status for result in api.commit(create, write)] == ["ok", "ok"]
        then = past.moment()
        assert "the same already" in past.run("restore", past.path / "file", "--at", then)
        past.write("file", "other")
        past.run("restore", past.path / "file", "--at", then)
        (past.path / "file").unlink()
        past.moment()
        proxy.forget()
        past.run("undo", past.path / "file")
        _few(proxy, commits=1)
        assert (past.path / "file").read_bytes() == b"".join(b"piece %d" % number for number in range(10))


def test_an_edit_at_the_same_moment_is_kept_beside(module_node: Node, make_mount: MakeMount) -> None:
    api = Api(module_node, "edited")
    with closing(api.http), FaultProxy(module_node.url) as proxy, ThreadPoolExecutor() as threads:
        file = api.new_file(b"file", b"one")
        past = Past(make_mount(module_node, "edited", url=proxy.url))
        then = past.moment()
        past.write("file", "two")
        proxy.forget()
        proxy.set("delay", match=r"POST .*/commits", times=1, seconds=1)
        restoring = threads.submit(past.json, "restore", past.path / "file", "--at", then, code=1)
        proxy.wait_for("POST", r"/commits$", at_least=1, timeout=30)
        api.commit(api.write(file, b"three", api.file(file).version))
        [problem] = restoring.result()["problems"]
        assert problem["problem"].startswith("changed meanwhile: what was restored is in file (conflict")
        past.moment()
        assert sorted(path.read_text() for path in past.path.iterdir()) == ["one", "three"]


def test_large_trees_are_read_in_pages(module_node: Node, make_mount: MakeMount, tree: Tree) -> None:
    past = Past(make_mount(module_node, "large"))
    events = past.json("log", past.path, "-n", "5000")
    assert len(events) == 5000
    found = past.json("diff", past.path, "now")
    assert (found["same"], found["differences"]) == (True, [])
