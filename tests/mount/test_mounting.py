"""Mount options, and the root that shows buckets as directories."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mountfs import control
from nodeserver.protocol.wire import MAX_COMMIT_OPS
from tests.conftest import MakeMount
from tests.harness import Mount, Node, command, eventually
from tests.mount.posix import fails_with
from tests.nodeserver.api import DIRECTORY, Api


@pytest.fixture(scope="module")
def seed(module_node: Node, make_module_mount: MakeMount) -> None:
    """What is in the bucket ``options``."""
    mount = make_module_mount(module_node, module_node.create_bucket("options"))
    (mount.path / "file").write_text("content")
    os.chmod(mount.path / "file", 0o666)
    os.chown(mount.path / "file", 10, 20) if os.geteuid() == 0 else None
    (mount.path / "directory").mkdir()
    os.chmod(mount.path / "directory", 0o777)
    mount.stop()


def mounted(node: Node, make_mount: MakeMount, **options: object) -> Path:
    """A mount of the seeded bucket."""
    return make_mount(node, "options", options=options).path


def test_ro_lets_nothing_be_changed(module_node: Node, make_mount: MakeMount, seed: None) -> None:
    path = mounted(module_node, make_mount, ro=True)
    assert (path / "file").read_text() == "content"
    for call in (
        lambda: (path / "new").touch(),
        lambda: (path / "file").write_text("x"),
        lambda: (path / "file").unlink(),
        lambda: (path / "new").mkdir(),
        lambda: os.chmod(path / "file", 0o600),
        lambda: os.utime(path / "file"),
        lambda: os.setxattr(path / "file", "user.x", b"x"),
        lambda: os.rename(path / "file", path / "other"),
    ):
        with fails_with(errno.EROFS):
            call()


def test_uid_gid_and_umask_change_what_files_show(module_node: Node, make_mount: MakeMount, seed: None) -> None:
    path = mounted(module_node, make_mount, uid=1234, gid=2345, umask="027")
    for name, mode in ("file", 0o640), ("directory", 0o750):
        now = (path / name).stat()
        assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (1234, 2345, mode)
    now = mounted(module_node, make_mount).joinpath("file").stat()
    assert (now.st_uid, stat.S_IMODE(now.st_mode)) == (10 if os.geteuid() == 0 else os.geteuid(), 0o666)


def test_noxattr_turns_extended_attributes_off(module_node: Node, make_mount: MakeMount, seed: None) -> None:
    path = mounted(module_node, make_mount, noxattr=True)
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(path / "file", "user.x", b"x")
    with fails_with(errno.EOPNOTSUPP):
        os.listxattr(path / "file")


@pytest.mark.parametrize("options", [{"nowriteback": True}, {"close": "cluster"}, {"noexec": True}])
def test_other_options_mount_and_work(
    options: dict[str, object], module_node: Node, make_mount: MakeMount, seed: None
) -> None:
    path = mounted(module_node, make_mount, **options)
    (path / "other").write_bytes(body := os.urandom(100_000))
    assert (path / "other").read_bytes() == body


@pytest.fixture
def root(node: Node, make_mount: MakeMount) -> Mount:
    """All buckets of a node."""
    return make_mount(node)


def buckets(node: Node) -> list[str]:
    """Of the server."""
    return sorted(bucket["name"] for bucket in node.api("GET", "/buckets")["buckets"])


def test_directories_of_the_root_are_buckets(node: Node, root: Mount) -> None:
    assert os.listdir(root.path) == []
    (root.path / "first-bucket").mkdir()
    assert buckets(node) == ["first-bucket"]
    (root.path / "first-bucket/deep").mkdir()
    (root.path / "first-bucket/deep/file").write_text("content")
    root.remount()
    assert (root.path / "first-bucket/deep/file").read_text() == "content"
    with fails_with(errno.ENOTEMPTY):
        (root.path / "first-bucket").rmdir()
    with fails_with(errno.EEXIST):
        (root.path / "first-bucket").mkdir()
    (root.path / "first-bucket/deep/file").unlink()
    (root.path / "first-bucket/deep").rmdir()
    with fails_with(errno.ENOTEMPTY):  # it has a past
        (root.path / "first-bucket").rmdir()
    server = "--url", node.url, "--token-file", node.token_file, "--yes"
    assert command("mountfs", "bucket", "delete", "first-bucket", *server).returncode == 0
    assert buckets(node) == []
    assert os.listdir(root.path) == []
    (root.path / "first-bucket").mkdir()
    assert os.listdir(root.path / "first-bucket") == []


def test_rm_does_not_end_the_history_of_a_bucket(node: Node, root: Mount) -> None:
    bucket = root.path / "photos"
    bucket.mkdir()
    (bucket / "sub").mkdir()
    (bucket / "sub/file").write_text("content")
    root.sync()
    result = subprocess.run(["rm", "-rf", bucket], capture_output=True, text=True, check=False)
    assert "not empty" in result.stderr
    [problem] = root.status()["errors"]
    assert "mountfs bucket delete photos" in problem["text"]
    server = "--url", node.url, "--token-file", node.token_file
    refused = command("mountfs", "bucket", "delete", "photos", *server)
    assert (refused.returncode, "--yes" in refused.stderr) == (1, True)
    assert command("mountfs", "undo", bucket / "sub").returncode == 0
    assert (bucket / "sub/file").read_text() == "content"
    assert command("mountfs", "hold", bucket / "sub").returncode == 0
    subprocess.run(["rm", "-r", bucket / "sub"], check=True)
    root.sync()
    refused = command("mountfs", "bucket", "delete", "photos", "--yes", *server)
    assert (refused.returncode, "held" in refused.stderr) == (1, True)
    (root.path / "empty").mkdir()
    (root.path / "empty/sub").mkdir()
    (root.path / "empty/sub").rmdir()
    (root.path / "empty").rmdir()
    assert buckets(node) == ["photos"]


def test_who_meets_the_root_with_files_is_told_what_it_is(root: Mount) -> None:
    for _ in range(3):
        with fails_with(errno.EINVAL):
            (root.path / "Photos").mkdir()
    with fails_with(errno.EPERM):
        (root.path / "notes.txt").touch()
    name, file = (error["text"] for error in root.status()["errors"])
    assert "lower-case" in name
    assert f"{root.path}/files/Photos" in name
    assert "go into" in file


def test_buckets_have_names_that_s3_allows(node: Node, root: Mount) -> None:
    for name in "Upper", "ab", "under_score", "a..b", "-dash", "dash-", "192.168.0.1", "xn--x", "n" * 64, "sp ace":
        with fails_with(errno.EINVAL):
            (root.path / name).mkdir()
    assert buckets(node) == []
    (root.path / ("n" * 63)).mkdir()
    (root.path / "a.b-c1").mkdir()
    assert buckets(node) == ["a.b-c1", "n" * 63]


def test_the_root_holds_nothing_but_buckets(root: Mount) -> None:
    (root.path / "one").mkdir()
    (root.path / "two").mkdir()
    (root.path / "one/file").write_text("x")
    calls: list[Callable[[], object]] = [
        lambda: (root.path / "file").touch(),
        lambda: os.symlink("one", root.path / "link"),
        lambda: os.mkfifo(root.path / "fifo"),
        lambda: os.rename(root.path / "one", root.path / "three"),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call()
        assert caught.value.errno in (errno.EPERM, errno.EINVAL, errno.EACCES, errno.EXDEV, errno.EOPNOTSUPP)
    assert sorted(os.listdir(root.path)) == ["one", "two"]


def test_renames_and_links_stay_within_a_bucket(root: Mount) -> None:
    (root.path / "one").mkdir()
    (root.path / "two").mkdir()
    (root.path / "one/file").write_text("x")
    with fails_with(errno.EXDEV):
        os.rename(root.path / "one/file", root.path / "two/file")
    with fails_with(errno.EXDEV):
        os.link(root.path / "one/file", root.path / "two/file")
    with fails_with(errno.EXDEV):
        os.rename(root.path / "one/file", root.path / "file")
    assert (root.path / "one/file").read_text() == "x"
    assert command("mountfs", "status", root.path / "one").returncode == 0


def test_changes_in_all_buckets_go_up_whenever_they_come(root: Mount) -> None:
    """A change may come at the very moment in which the sender of its bucket goes to sleep."""
    files = [root.path / name / "file" for name in ("one", "two", "three")]
    for file in files:
        file.parent.mkdir()
    for turn in range(60):
        for file in files:
            file.write_text(str(turn))
        answer = control.call(root.state / control.NAME, "sync", {"deadline": 20}, timeout=30)
        assert not answer["pending"], f"not in time, in turn {turn}"


def test_a_bucket_made_elsewhere_appears(node: Node, root: Mount) -> None:
    assert os.listdir(root.path) == []
    node.create_bucket("elsewhere")
    assert eventually(lambda: os.listdir(root.path), 20) == ["elsewhere"]
    (root.path / "elsewhere/file").write_text("x")
    root.sync()


def test_a_large_directory_never_seen_before_is_listed_whole_and_twice_alike(node: Node, make_mount: MakeMount) -> None:
    api = Api(node)
    directory = api.create(b"large", DIRECTORY)
    names = [f"{number * 7919 % 30_000:05}{'x' * (number % 40)}" for number in range(30_000)]
    with closing(api.http):
        api.commit(directory)
        for start in range(0, len(names), MAX_COMMIT_OPS):
            some = names[start : start + MAX_COMMIT_OPS]
            api.commit(*(api.create(name.encode(), parent=directory.file.id) for name in some))
    mount = make_mount(node, api.name)
    first = os.listdir(mount.path / "large")
    assert sorted(first) == sorted(names)
    assert os.listdir(mount.path / "large") == first
    mount.remount()
    assert os.listdir(mount.path / "large") == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise the read-ahead")
def test_the_kernel_reads_megabytes_ahead(module_node: Node, make_mount: MakeMount, seed: None) -> None:
    device = mounted(module_node, make_mount).stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    eventually(lambda: setting.read_text() == "4096\n", what="the read-ahead is raised")
