"""Real programs keep one history of a file; so do two mounts that write it in turn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.harness import Mount, Node, eventually
from tests.mount.conftest import Folder, need
from tests.mount.lineage import SETTLE, commit, history, is_within, versions
from tests.mount.posix import opened


@pytest.fixture(scope="module")
def folder(module_node: Node, make_module_mount: MakeMount) -> Folder:
    """A mount that sends nothing unless someone waits for it."""
    mount = make_module_mount(module_node, module_node.create_bucket("desk"), options={"settle": SETTLE})
    return Folder(mount.path, mount, module_node)


@pytest.fixture
def mount(folder: Folder) -> Mount:
    assert folder.mount
    return folder.mount


@pytest.fixture
def other(folder: Folder, make_mount: MakeMount) -> Mount:
    """A second mount of the bucket."""
    assert folder.node
    return make_mount(folder.node, "desk", options={"settle": SETTLE})


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program, as somebody without settings of his own. Raises AssertionError when it fails."""
    home = {"HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    identity = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False, env=os.environ | home | identity
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


def moved(mount: Mount, place: Path) -> list[str]:
    """The history that a file takes along when it gets another name."""
    target = place.rename(place.with_name("moved away"))
    commit(mount)
    return history(target)


@pytest.mark.parametrize(
    "settings",
    ["backupcopy=auto", "backupcopy=yes", "backupcopy=no backup", "nowritebackup"],
)
def test_vim(settings: str, mount: Mount, here: Path) -> None:
    vim = shutil.which("vim") or shutil.which("vim.tiny")
    if not vim:
        pytest.skip("vim is not installed")
    doc = here / "doc.txt"
    doc.write_text("1\n")
    for text in "2", "3":
        commit(mount)
        run(vim, "-N", "-u", "NONE", "-es", "-c", f"set {settings}", "-c", f"%s/.*/{text}/", "-c", "wq", doc)
    commit(mount)
    assert history(doc) == ["1\n", "2\n", "3\n"]
    assert moved(mount, doc) == ["1\n", "2\n", "3\n"]


def test_sed(mount: Mount, here: Path) -> None:
    doc = here / "doc"
    doc.write_text("1\n")
    for options, old, new in [(["-i"], "1", "2"), (["-i.bak"], "2", "3"), (["-i"], "3", "4"), (["-i.bak"], "4", "5")]:
        commit(mount)
        run("sed", *options, f"s/{old}/{new}/", doc)
    commit(mount)
    assert history(doc) == ["1\n", "2\n", "3\n", "4\n", "5\n"]
    assert history(here / "doc.bak") == ["1\n", "2\n", "3\n", "4\n"]
    assert moved(mount, doc) == ["1\n", "2\n", "3\n", "4\n", "5\n"]


@pytest.mark.parametrize(
    "options", [(), ("--inplace",), ("--backup",), ("--backup", "--suffix=.old"), ("--delay-updates",), ("--append",)]
)
def test_rsync(options: tuple[str, ...], mount: Mount, here: Path, there: Path) -> None:
    need("rsync")
    for text in "1", "12", "123":
        (there / "doc").write_text(text)
        run("rsync", "-a", "--ignore-times", *options, f"{there}/", f"{here}/target/")
        commit(mount)
    doc = here / "target/doc"
    assert history(doc) == ["1", "12", "123"]
    for backup in here.glob("target/doc?*"):
        assert history(backup) == ["1", "12"]
    assert moved(mount, doc) == ["1", "12", "123"]


def test_cp_mv_and_install_with_backups(mount: Mount, here: Path, there: Path) -> None:
    new, doc = there / "new", here / "doc"
    doc.write_text("0")
    commit(mount)
    for number, command in enumerate(
        [["cp", "-b"], ["install", "-b"], ["mv", "-b"], ["cp", "--remove-destination"]], 1
    ):
        new.write_text(str(number))
        run(*command, new, doc)
        commit(mount)
    assert history(doc) == ["0", "1", "2", "3", "4"]
    assert history(here / "doc~") == ["0", "1", "2"]
    assert moved(mount, doc) == ["0", "1", "2", "3", "4"]


def test_git(mount: Mount, here: Path) -> None:
    """The index, a branch, and a file that checkouts delete and make again."""
    need("git")
    run("git", "init", "-q", "-b", "main", here)
    index, branch, doc = here / ".git/index", here / ".git/refs/heads/main", here / "doc"
    indices: list[bytes] = []
    branches: list[str] = []
    for text in "1\n", "2\n":
        doc.write_text(text)
        run("git", "add", "doc", cwd=here)
        run("git", "commit", "-qm", text, cwd=here)
        commit(mount)
        indices.append(index.read_bytes())
        branches.append(branch.read_text())
    run("git", "checkout", "-q", "HEAD^", cwd=here)
    commit(mount)
    run("git", "rm", "-q", "doc", cwd=here)
    commit(mount)
    run("git", "checkout", "-q", "-f", "main", cwd=here)
    commit(mount)
    assert is_within(map(str, indices), [str(one.read_bytes()) for one in versions(index)])
    assert history(branch) == branches
    assert history(doc) == ["1\n", "2\n", "1\n", "2\n"]


def test_two_mounts_save_in_turn(mount: Mount, other: Mount, here: Path) -> None:
    doc, elsewhere = here / "doc", other.path / here.name / "doc"
    expected: list[str] = []

    def saved(by: Mount, text: str) -> None:
        commit(by)
        expected.append(text)
        for path in doc, elsewhere:
            eventually(lambda: path.exists() and path.read_text() == text)  # noqa: B023
            assert history(path) == expected

    doc.write_text("1")
    saved(mount, "1")
    elsewhere.write_text("2")
    saved(other, "2")
    for by, path, text in (mount, doc, "3"), (other, elsewhere, "4"), (other, elsewhere, "5"), (mount, doc, "6"):
        (temporary := path.with_name(".new")).write_text(text)
        temporary.replace(path)
        saved(by, text)
    doc.write_text("7")
    saved(mount, "7")
    backup = elsewhere.rename(elsewhere.with_name("doc~"))
    elsewhere.write_text("8")
    saved(other, "8")
    eventually(lambda: (here / "doc~").exists() and (here / "doc~").read_text() == "7")
    assert history(backup) == history(here / "doc~") == expected[:-1]
    eventually(lambda: doc.exists() and doc.read_text() == "8")
    assert moved(mount, doc) == expected


def test_a_conflict_copy_continues_the_file_it_is_beside(mount: Mount, other: Mount, here: Path) -> None:
    doc, elsewhere = here / "doc.txt", other.path / here.name / "doc.txt"
    doc.write_text("1")
    commit(mount)
    eventually(elsewhere.exists)
    assert elsewhere.read_text() == "1"
    with opened(doc, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"written here")
        elsewhere.write_text("written there")
        commit(other)
    commit(mount)
    [copy] = here.glob("doc (conflict*")
    assert re.fullmatch(r"doc \(conflict \S+ .+\)\.txt", copy.name)
    eventually(lambda: doc.read_text() == "written there")
    assert history(doc) == ["1", "written there"]
    assert history(copy) == ["1", "written there", "written here"]
    copy.replace(doc)
    commit(mount)
    assert history(doc) == ["1", "written there", "written here"]


def test_saves_that_nobody_waits_for(folder: Folder, mount: Mount, make_mount: MakeMount, here: Path) -> None:
    """With the usual settle time; and ``mountfs sync`` itself."""
    assert folder.node
    commit(mount)
    usual = make_mount(folder.node, "desk")
    doc = usual.path / here.name / "doc"
    eventually(doc.parent.exists)
    for text in "1", "2":
        doc.write_text(text)
        eventually(lambda: text in [one.read_text() for one in versions(doc)])  # noqa: B023
    (temporary := doc.with_name("doc.new")).write_text("3")
    temporary.replace(doc)
    usual.sync()
    assert history(doc) == ["1", "2", "3"]
