"""What looking back costs, and what it does while the server does not answer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy
from tests.harness import Mount, Node, eventually
from tests.mount.attempts import attempt, succeeds
from tests.mount.past import called, versions
from tests.mount.posix import fails_with, opened

DEADLINES = {"metadata-deadline": 1.0, "data-deadline": 2.0, "settle": 0.1}
CHUNKS = r"/pieces/\w+/\w+$"


@pytest.fixture
def proxy(node: Node) -> Iterator[FaultProxy]:
    """Between the mount and the server."""
    with FaultProxy(node.url) as proxy:
        yield proxy


@pytest.fixture
def mount(node: Node, make_mount: MakeMount, proxy: FaultProxy) -> Mount:
    """A mount behind the proxy."""
    return make_mount(node, node.create_bucket("costs"), url=proxy.url, options=DEADLINES)


def asked(proxy: FaultProxy) -> list[str]:
    """Requests since the last time, but for the change feed."""
    lines = [f"{seen.method} {seen.path}" for seen in proxy.requests if "/changes?" not in seen.path]
    proxy.forget()
    return lines


def saved(mount: Mount, path: Path, contents: list[bytes]) -> list[Path]:
    """Write versions of a file; returns them."""
    for content in contents:
        path.write_bytes(content)
        mount.sync()
    return versions(path)


def restarted(mount: Mount, proxy: FaultProxy, *, state: Path | None = None) -> None:
    """Nothing is remembered, in ``state`` not even content."""
    mount.stop()
    mount.state = state or mount.state
    mount.start()
    os.listdir(mount.path)
    proxy.forget()


def test_finding_and_listing_ask_nothing_because_of_history(mount: Mount, proxy: FaultProxy) -> None:
    for number in range(50):
        (mount.path / f"{number}").mkdir()
        (mount.path / f"{number}/file").write_text(str(number))
    mount.sync()
    proxy.forget()
    found = [name for _, directories, files in os.walk(mount.path) for name in directories + files]
    assert len(found) == 100
    assert asked(proxy) == []
    restarted(mount, proxy)
    assert len([name for _, directories, files in os.walk(mount.path) for name in directories + files]) == 100
    assert not [line for line in asked(proxy) if "/entries?" not in line]
    for number in range(50):
        assert (mount.path / f"{number}/.versions").is_dir()
    assert asked(proxy) == [], "it is there without asking"


def test_listing_versions_is_one_request_and_then_none(mount: Mount, proxy: FaultProxy) -> None:
    path = mount.path / "file"
    versions = saved(mount, path, [b"x" * number for number in range(1, 11)])
    restarted(mount, proxy)
    for _ in range(3):
        assert [
            entry.stat().st_size
            for entry in os.scandir(path.parent / ".versions/file")
            if entry.is_file(follow_symlinks=False)
        ] == list(range(1, 11))
        assert os.readlink(path.parent / ".versions/file/current") == versions[-1].name
    assert len(asked(proxy)) == 1
    assert os.listdir(path.parent / ".versions") == ["file"]
    assert len(asked(proxy)) == 1
    (mount.path / "other").write_text("changes nothing of the first")
    mount.sync()
    proxy.forget()
    assert len(os.listdir(path.parent / ".versions/file")) == 12
    assert asked(proxy) == []


def test_opening_a_version_fetches_what_is_not_here(mount: Mount, proxy: FaultProxy) -> None:
    body = os.urandom(12 << 20)
    one, two = saved(mount, mount.path / "large", [body, body[: 10 << 20] + os.urandom(1 << 20)])
    restarted(mount, proxy, state=mount.state.with_name("empty"))
    assert (mount.path / "large").read_bytes()[: 10 << 20] == body[: 10 << 20]
    asked(proxy)
    assert one.read_bytes() == body
    fetched = [line for line in asked(proxy) if "/pieces/" in line]
    assert 1 <= len(fetched) <= 4, "only its end is another"
    assert one.read_bytes() == two.read_bytes()[: 10 << 20] + body[10 << 20 :]
    assert not [line for line in asked(proxy) if "/pieces/" in line]


def test_small_files_of_then_are_fetched_together(mount: Mount, proxy: FaultProxy) -> None:
    for number in range(100):
        (mount.path / f"{number:03}").write_text(f"content of {number}")
    mount.sync()
    restarted(mount, proxy, state=mount.state.with_name("empty"))
    past = mount.path / ".versions/@now"
    for name in sorted(os.listdir(past)):
        assert (past / name).read_text() == f"content of {int(name)}"
    lines = asked(proxy)
    assert len([line for line in lines if "/pieces" in line]) == 1
    assert len(lines) <= 4, lines


def test_a_tree_is_asked_for_once(mount: Mount, proxy: FaultProxy) -> None:
    for number in range(20):
        (mount.path / f"{number}").mkdir()
        (mount.path / f"{number}/file").write_text(str(number))
    mount.sync()
    restarted(mount, proxy)
    moment = mount.path / ".versions" / called(time.time_ns())
    with opened(moment, os.O_RDONLY) as fd:
        (mount.path / "later").touch()
        mount.sync()
        proxy.forget()
        for _ in range(3):
            assert sum(len(files) for _, _, files, _ in os.fwalk(dir_fd=fd)) == 20
    assert len(asked(proxy)) == 21
    assert sum(len(files) for _, _, files in os.walk(moment)) == 20


def test_without_a_server_what_was_seen_is_shown_and_the_rest_fails_in_time(mount: Mount, proxy: FaultProxy) -> None:
    path, past = mount.path / "file", mount.path / ".versions"
    one, two = saved(mount, path, [b"one", b"two"])
    (mount.path / "unseen").write_text("x")
    (mount.path / "directory").mkdir()
    mount.sync()
    assert one.read_bytes() == b"one"
    moment = past / called(time.time_ns())
    (mount.path / "later").touch()
    mount.sync()
    assert (moment / "file").read_bytes() == b"two"
    for mode in "refuse", "stall", "error":
        proxy.set(mode)
        assert one.read_bytes() == b"one"
        assert two.stat().st_size == 3
        assert (past / "file/previous").read_bytes() == b"one"
        assert (moment / "file").read_bytes() == b"two"
        for unknown in ".versions/unseen", "directory/.versions/never", ".versions/@2020-01-01/file":
            assert attempt("os.listdir(path)", past.parent / unknown) == "EIO"
        with fails_with(errno.EROFS):
            os.chmod(one, 0o777)
        with fails_with(errno.ENOENT):
            os.stat(past / "@nonsense")
    proxy.set("pass")
    assert eventually(succeeds("os.listdir(path)", past / "unseen"))


def test_content_that_cannot_be_had_is_told(mount: Mount, proxy: FaultProxy) -> None:
    one, _ = saved(mount, mount.path / "large", [os.urandom(3 << 20), b"small"])
    restarted(mount, proxy, state=mount.state.with_name("empty"))
    assert one.stat().st_size == 3 << 20
    proxy.set("stall", match=CHUNKS)
    assert attempt("read(path)", one, 4.0) == "EIO"
    proxy.set("flip")
    assert attempt("read(path)", one, 4.0) == "EIO"
    problems = [problem["text"] for problem in mount.status()["errors"]]
    assert any(f".versions/large/{one.name}: bytes 0 to" in message for message in problems), problems
    proxy.set("pass")
    assert eventually(succeeds("len(read(path))", one))


@pytest.mark.skipif(not os.access("/proc/sys/vm/drop_caches", os.W_OK), reason="the kernel forgets nothing for us")
def test_what_the_kernel_forgot_takes_no_memory(mount: Mount) -> None:
    """Each look at a moment makes inodes of its own."""
    (mount.path / "directory").mkdir()
    for number in range(1500):
        (mount.path / f"directory/{number}").write_text("x")
    mount.sync()
    begun = time.time_ns()
    (mount.path / "later").touch()
    mount.sync()
    versions = mount.path / ".versions"

    def look(round_: int) -> int:
        assert len(list(os.scandir(versions / called(begun + round_) / "directory"))) == 1500
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return resident(mount.pid)

    with opened(versions / called(begun) / "directory", os.O_RDONLY) as fd:
        after = [look(number) for number in range(1, 26)]
        assert max(after) - max(after[:5]) < 6 << 20, after
        assert len(os.listdir(fd)) == 1500, "what is held is not forgotten"
        assert os.stat("17", dir_fd=fd).st_size == 1


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
