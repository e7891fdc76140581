"""``D/.versions``: which names and versions it lists, and that programs read them like any file."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node
from tests.mount.conftest import Folder, need
from tests.mount.past import LINKS, versions
from tests.mount.posix import fails_with

NAME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z)_([0-9a-f]{8})(\..*)?", re.DOTALL)


@pytest.fixture(autouse=True)
def only_mounted(folder: Folder) -> None:
    """A plain directory has no past."""
    if folder.mount is None:
        pytest.skip("there is no past in a plain directory")


def save(path: Path, content: bytes | str, folder: Folder) -> None:
    """Write a file, and have it committed."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    folder.sync()


def run(*command: str | Path) -> str:
    """What a program says on its standard output; it must end well."""
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_directory_lists_what_has_and_had_content(here: Path, folder: Folder) -> None:
    for name in "kept", "gone", "@odd", "@@odder":
        save(here / name, "content", folder)
    (here / "empty").touch()
    (here / "directory").mkdir()
    os.symlink("kept", here / "link")
    os.mkfifo(here / "pipe")
    (here / "gone").unlink()
    folder.sync()
    assert sorted(os.listdir(here / ".versions")) == ["@@@odder", "@@odd", "gone", "kept"]
    assert all(stat.S_ISDIR(entry.stat().st_mode) for entry in os.scandir(here / ".versions"))
    assert (here / ".versions/@@odd").stat().st_nlink == 2
    assert len(versions(here / "gone")) == 1
    assert versions(here / "@@odd")[0].read_text() == "content"
    assert versions(here / "@@@odder")[0].read_text() == "content"
    assert os.listdir(here / ".versions/empty") == [], "it has none yet"
    for name in "directory", "link", "never", "@odd", "@@kept", "kept/never", "kept/2026":
        with fails_with(errno.ENOENT):
            os.lstat(here / ".versions" / name)
    with fails_with(errno.ENOTDIR):
        os.listdir(versions(here / "kept")[0])


def test_versions_have_names_sizes_and_times_that_stay(here: Path, folder: Folder) -> None:
    path, times = here / "report.odt", []
    before = time.time_ns()
    for number in range(4):
        path.write_bytes(b"x" * number * 1000)
        os.utime(path, ns=(1, 1_700_000_000_123_456_789 + number))
        folder.sync()
        times.append(time.time_ns())
    shown = versions(path)
    assert len(shown) == 3, "what was empty from the first has no content"
    for version, number in zip(shown, range(1, 4), strict=True):
        match = NAME.fullmatch(os.fsencode(version.name))
        assert match
        assert match[3] == b".odt"
        stamp = datetime.strptime(match[1].decode(), "%Y-%m-%dT%H-%M-%S.%fZ").replace(tzinfo=UTC)
        assert before - 1e6 <= stamp.timestamp() * 1e9 <= times[number]
        status = version.stat()
        assert (status.st_size, status.st_nlink) == (number * 1000, 1)
        assert status.st_blocks == (number * 1000 + 511) // 512
        assert status.st_mtime_ns == 1_700_000_000_123_456_789 + number
        assert version.read_bytes() == b"x" * number * 1000
    sizes = [line.split()[4] for line in run("ls", "-l", here / ".versions/report.odt").splitlines()[1:4]]
    assert sizes == ["1000", "2000", "3000"]
    numbers = [version.stat().st_ino for version in shown]
    assert len(set(numbers)) == 3
    assert all(number >> 63 for number in numbers), "no live file has such a number"
    save(path, "later", folder)
    folder.remount()
    assert versions(path)[:3] == shown
    assert [version.stat().st_ino for version in shown] == numbers


def test_current_and_previous(here: Path, folder: Folder) -> None:
    path, past = here / "file.txt", here / ".versions/file.txt"
    save(path, "one", folder)
    [one] = versions(path)
    assert os.readlink(past / "current") == one.name
    with fails_with(errno.ENOENT):
        os.readlink(past / "previous")
    assert set(os.listdir(past)) == {one.name, "current"}
    save(path, "second", folder)
    two = versions(path)[1]
    assert (os.readlink(past / "current"), os.readlink(past / "previous")) == (two.name, one.name)
    assert (past / "current").lstat().st_size == len(two.name)
    assert ((past / "current").read_text(), (past / "previous").read_text()) == ("second", "one")
    path.unlink()
    folder.sync()
    assert os.readlink(past / "previous") == two.name
    assert set(os.listdir(past)) == {one.name, two.name, "previous"}
    with fails_with(errno.ENOENT):
        os.stat(past / "current")
    save(path, "third", folder)
    assert os.readlink(past / "previous") == two.name
    assert (past / "current").read_text() == "third"
    path.write_text("not committed yet, or just now")
    assert (past / "previous").read_text() in ("second", "third")


def test_names_of_any_bytes_keep_their_extension_as_far_as_it_fits(here: Path, folder: Folder) -> None:
    directory = os.fsencode(here) + b"/"
    extensions = {
        b"photo.JPG": b".JPG",
        b"archive.tar.gz": b".gz",
        b".bashrc": b"",
        b"two words.a b": b".a b",
        b"\xff\xfe.\xff\n\xfe": b".\xff\n\xfe",
        b"a." + b"e" * 221: b"." + b"e" * 221,
        b"a." + b"e" * 222: b"",
        b"n" * 255: b"",
        b"@" + b"n" * 254: b"",
    }
    for name in extensions:
        with open(directory + name, "wb") as file:
            file.write(name)
    folder.sync()
    assert set(os.listdir(directory + b".versions")) == {b"@" * name.startswith(b"@") + name for name in extensions}
    for name, extension in extensions.items():
        below = directory + b".versions/" + b"@" * name.startswith(b"@") + name
        [version] = set(os.listdir(below)) - {b"current"}
        match = NAME.fullmatch(version)
        assert match, version
        assert (match[3] or b"") == extension
        assert len(version) <= 255
        with open(below + b"/" + version, "rb") as file:
            assert file.read() == name
    with fails_with(errno.ENAMETOOLONG):
        os.stat(directory + b".versions/" + b"n" * 256)


def test_programs_read_versions_like_any_file(here: Path, there: Path, folder: Folder) -> None:
    path = here / "notes.txt"
    save(path, "first\nline\n", folder)
    save(path, "first\nline\nmore\n", folder)
    one, two = versions(path)
    diff = subprocess.run(["diff", one, two], capture_output=True, text=True, timeout=60, check=False)
    assert (diff.returncode, diff.stdout) == (1, "2a3\n> more\n")
    run("cp", "-p", one, there / "copy")
    assert (there / "copy").read_text() == "first\nline\n"
    assert (there / "copy").stat().st_mtime_ns == one.stat().st_mtime_ns
    run("tar", "-C", here / ".versions", "-cf", there / "all.tar", "notes.txt")
    run("tar", "-C", there, "-xf", there / "all.tar")
    assert sorted(os.listdir(there / "notes.txt")) == sorted([one.name, two.name, *LINKS])
    assert (there / "notes.txt/current").read_text() == "first\nline\nmore\n"
    run("cp", "-a", one, path)
    assert path.read_text() == "first\nline\n"
    assert os.listxattr(path) == [], "a copy is not the version"


def test_versions_are_copied_with_their_attributes(here: Path, folder: Folder) -> None:
    need("rsync", "tar", "getfattr", "setfattr")
    save(here / "file", "one", folder)
    [version] = versions(here / "file")
    keep = "--xattrs --xattrs-include='*'"
    by_rsync = 'rsync -aX "$1" copy'
    by_tar = f'tar -C "$(dirname "$1")" {keep} -cf - "$(basename "$1")" | tar {keep} --transform="s/.*/copy/" -xf -'
    dump = 'getfattr --dump --absolute-names -m- "$1" | sed "s/^# file: .*/# file: copy/"'
    by_dump = f'cp "$1" copy; {dump} | setfattr --restore=-'
    for way in by_rsync, by_tar, by_dump:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", way, "bash", version],
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert (here / "copy").read_text() == "one"
        assert os.listxattr(here / "copy") == []
        (here / "copy").unlink()


def test_large_versions_share_what_is_the_same(here: Path, folder: Folder) -> None:
    assert folder.node is not None
    path, body = here / "large", os.urandom(9 << 20)
    save(path, body, folder)
    save(path, b"inserted" + body, folder)
    folder.remount()
    one, two = versions(path)
    with open(one, "rb") as file:
        file.seek(5 << 20)
        assert file.read(1000) == body[5 << 20 :][:1000]
    assert one.read_bytes() == body
    assert two.read_bytes() == b"inserted" + body
    assert (one.stat().st_size, two.stat().st_size) == (9 << 20, (9 << 20) + 8)


def test_holes_take_no_blocks(here: Path, folder: Folder) -> None:
    with open(here / "sparse", "wb") as file:
        file.truncate(100 << 20)
        file.seek(50 << 20)
        file.write(b"data")
    folder.sync()
    [version] = versions(here / "sparse")
    assert version.stat().st_size == 100 << 20
    assert version.stat().st_blocks == (here / "sparse").stat().st_blocks < 20_000


def test_extended_attributes_tell_of_a_version(here: Path, folder: Folder) -> None:
    path = here / "file"
    save(path, "one", folder)
    save(path, "two", folder)
    one, two = versions(path)

    def told(version: Path) -> dict[str, str]:
        assert os.listxattr(version) == [], "what cannot be set would fail copies with attributes"
        names = "version_id", "number", "checksum", "committed_at", "author", "client", "base", "is_current"
        return {name: os.getxattr(version, f"user.mountfs.{name}").decode() for name in names}

    first, second = told(one), told(two)
    assert one.name.endswith(first["version_id"][-8:])
    assert (first["number"], second["number"]) == ("1", "2")
    assert (first["is_current"], second["is_current"]) == ("0", "1")
    assert (first["base"], second["base"]) == ("", first["version_id"])
    assert len(first["checksum"]) == 64
    assert first["checksum"] != second["checksum"]
    assert first["committed_at"].replace(":", "-")[:23] == one.name[:23]
    assert first["author"]
    assert first["client"] == second["client"]
    with fails_with(errno.ENODATA):
        os.getxattr(one, "user.mountfs.none")
    with fails_with(errno.ENODATA):
        os.getxattr(here / ".versions", "user.mountfs.version_id")
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(path, "user.mountfs.version_id", b"mine")
    path.unlink()
    folder.sync()
    assert told(two)["is_current"] == "0"


def test_what_changed_elsewhere_shows(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("elsewhere")
    one, two = make_mount(node, bucket), make_mount(node, bucket)
    (one.path / "file").write_text("one")
    one.sync()
    assert [version.read_text() for version in versions(two.path / "file")] == ["one"]
    (one.path / "file").write_text("second")
    one.sync()
    wait_for(two, node, bucket)
    assert [version.read_text() for version in versions(two.path / "file")] == ["one", "second"]
    assert (two.path / ".versions/file/current").read_text() == "second"
    (one.path / "other").write_text("x")
    one.sync()
    wait_for(two, node, bucket)
    assert os.listdir(two.path / ".versions") == ["file", "other"]


def wait_for(mount: Mount, node: Node, bucket: str) -> None:
    """Return when a mount knows all that was committed."""
    seq = node.api("GET", f"/buckets/{bucket}")["seq"]
    (mount.path / f"heard {seq}").touch()
    mount.sync()


def test_in_every_bucket_but_not_above_them(node: Node, make_mount: MakeMount) -> None:
    for name in "bucket-a", "bucket-b":
        node.create_bucket(name)
    mount = make_mount(node)
    (mount.path / "bucket-a/file").write_text("a")
    mount.sync()
    assert os.listdir(mount.path / "bucket-a/.versions") == ["file"]
    assert os.listdir(mount.path / "bucket-b/.versions") == []
    with fails_with(errno.ENOENT):
        os.stat(mount.path / ".versions")
    need("find")
    assert not [line for line in run("find", mount.path).splitlines() if ".versions" in line]


def test_options_say_where_it_is_and_what_it_is_called(node: Node, make_mount: MakeMount) -> None:
    bucket = node.create_bucket("options")
    mount = make_mount(node, bucket, options={"versions": "root", "versions_name": "~past"})
    (mount.path / "directory").mkdir()
    (mount.path / "directory/file").write_text("x")
    (mount.path / "directory/~past").mkdir()
    (mount.path / "directory/.versions").touch()
    mount.sync()
    assert (mount.path / "~past/@now/directory/file").read_text() == "x"
    assert sorted(os.listdir(mount.path / "directory")) == [".versions", "file", "~past"]
    assert os.listdir(mount.path / "directory/~past") == []
    with fails_with(errno.EEXIST):
        (mount.path / "~past").mkdir()
    off = make_mount(node, bucket, options={"versions": "off"})
    with fails_with(errno.ENOENT):
        os.stat(off.path / ".versions")
    (off.path / ".versions").mkdir()
    (off.path / ".versions/inside").write_text("one's own")
    off.sync()
    hidden = make_mount(node, bucket)
    assert os.listdir(hidden.path) == ["directory"]
    assert os.listdir(hidden.path / "directory") == ["file", "~past"]
    assert os.listdir(hidden.path / "directory/.versions") == ["file"]
    wrong = {"versions": "always"}, {"versions_name": ".."}, {"versions_name": "a/b"}, {"versions_name": "n" * 256}
    for options in wrong:
        make_mount(node, bucket, start=False, options=options).refused(*options)
