"""What people run in a folder works on the mount as it does on a local disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeMount
from tests.mount.conftest import Folder, need

GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
SKIPPED = shutil.ignore_patterns("__pycache__", "site-packages", "test", "tests", "config-*", "idlelib", "*.so", "*.a")


def run(*args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The program's standard output. Raises AssertionError with all it said when it fails."""
    result = subprocess.run(
        args, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=150, check=False
    )
    assert result.returncode == 0, f"{args}: {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree of about a thousand files: most of the Python standard library, with an extra of each kind."""
    tree = tmp_path_factory.mktemp("library") / "library"
    shutil.copytree(sysconfig.get_path("stdlib"), tree, ignore=SKIPPED, symlinks=True)
    (tree / "empty-directory").mkdir()
    (tree / "empty").touch()
    (tree / "link").symlink_to("os.py")
    (tree / "dangling").symlink_to("nowhere/at all")
    os.link(tree / "os.py", tree / "hard-link.py")
    (tree / "script.sh").write_text("#!/bin/sh\necho ran $1\n")
    (tree / "script.sh").chmod(0o4755)
    return tree


def same_trees(one: Path, other: Path) -> None:
    """Raises AssertionError unless rsync finds nothing to do: content, times, modes, owners, links, xattrs."""
    need("rsync")
    assert run("rsync", "-aHAXnci", "--delete", f"{one}/", f"{other}/") == ""


def test_a_source_tree_unpacks_and_compares_equal(library: Path, here: Path, there: Path) -> None:
    archive = there / "library.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(library, "library")
    run("tar", "-xf", archive, cwd=here)
    run("diff", "-r", "--no-dereference", library, here / "library")
    assert run(here / "library/script.sh", "twice") == "ran twice\n"


def test_cp_a_and_tar_keep_everything_there_and_back(library: Path, here: Path, there: Path) -> None:
    run("cp", "-a", library, here / "in")
    same_trees(library, here / "in")
    run("cp", "-a", here / "in", there / "out")
    same_trees(library, there / "out")
    run("tar", "--xattrs", "-cf", here / "library.tar", "-C", library.parent, "library")
    run("tar", "--xattrs", "-xpf", here / "library.tar", cwd=there)
    same_trees(library, there / "library")


def test_rsync_keeps_everything_there_and_back(library: Path, here: Path, there: Path) -> None:
    need("rsync")
    run("cp", "-a", library, there / "source")
    source = there / "source"
    for number, name in enumerate(sorted(os.listdir(source))[:40]):
        if not (source / name).is_symlink():
            os.setxattr(source / name, "user.number", str(number).encode())
            os.chown(source / name, 1000 + number, 2000 + number)
        os.utime(source / name, ns=(10**18 + number, 10**18 + number * 7), follow_symlinks=False)
    run("rsync", "-aHAX", f"{source}/", here)
    same_trees(source, here)
    assert (here / "os.py").stat().st_ino == (here / "hard-link.py").stat().st_ino
    (source / "os.py").write_text("changed\n")
    shutil.rmtree(source / "json")
    run("rsync", "-aHAX", "--delete", "--inplace", f"{source}/", here)
    same_trees(source, here)
    run("rsync", "-aHAX", f"{here}/", there / "back")
    same_trees(source, there / "back")


def test_find_du_and_grep_agree_with_a_local_copy(library: Path, here: Path) -> None:
    run("cp", "-a", library, here / "library")
    mounted = here / "library"
    everything = ["find", ".", "-printf", r"%P %y %m %U %G %n %l\n"]
    assert sorted(run(*everything, cwd=mounted).splitlines()) == sorted(run(*everything, cwd=library).splitlines())
    apparent = ["du", "-s", "--apparent-size", "--block-size=1", "--exclude=?*/"]
    files = ["find", ".", "-type", "f", "-printf", r"%s\n"]
    assert sorted(run(*files, cwd=mounted).split()) == sorted(run(*files, cwd=library).split())
    assert int(run(*apparent, ".", cwd=mounted).split()[0]) > 0
    assert int(run("du", "-s", "--block-size=1", ".", cwd=mounted).split()[0]) > 0
    words = ["grep", "-rlI", "--exclude-dir=encodings", "errno", "."]
    assert sorted(run(*words, cwd=mounted).split()) == sorted(run(*words, cwd=library).split())


def test_find_delete_and_rm_r_leave_nothing(library: Path, here: Path) -> None:
    run("cp", "-a", library / "json", here / "one")
    run("cp", "-a", library / "email", here / "two")
    run("find", here / "one", "-delete")
    run("rm", "-rf", here / "two")
    assert os.listdir(here) == []


def test_git_works(library: Path, here: Path, there: Path) -> None:
    need("git")
    run("cp", "-a", library / "email", here / "repository")
    repository = here / "repository"
    run("git", "init", "-q", "-b", "main", cwd=repository, env=GIT)
    run("git", "add", ".", cwd=repository, env=GIT)
    run("git", "commit", "-qm", "first", cwd=repository, env=GIT)
    for number in range(5):
        with open(repository / "message.py", "a") as file:
            file.write(f"# line {number}\n")
        run("git", "commit", "-qam", f"change {number}", cwd=repository, env=GIT)
    run("git", "checkout", "-qb", "side", "HEAD~3", cwd=repository, env=GIT)
    (repository / "side.txt").write_text("side\n")
    run("git", "add", "side.txt", cwd=repository, env=GIT)
    run("git", "commit", "-qm", "side", cwd=repository, env=GIT)
    run("git", "merge", "-q", "-m", "merge", "main", cwd=repository, env=GIT)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=repository, env=GIT)
    assert "error" not in run("git", "fsck", "--full", "--strict", cwd=repository, env=GIT)
    assert run("git", "status", "--porcelain", cwd=repository, env=GIT) == ""
    run("git", "clone", "-q", repository, here / "clone", env=GIT)
    run("git", "clone", "-q", "--no-local", repository, there / "clone", env=GIT)
    run("git", "clone", "-q", "--no-local", there / "clone", here / "again", env=GIT)
    for clone in here / "clone", there / "clone", here / "again":
        run("git", "fsck", "--full", "--strict", cwd=clone, env=GIT)
        run("diff", "-r", "--exclude=.git", repository, clone)


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_works_with_every_journal_mode(journal: str, here: Path, folder: Folder) -> None:
    database = here / "data.db"
    with closing(sqlite3.connect(database)) as writer:
        assert writer.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
        for batch in range(10):
            with writer:
                writer.executemany("INSERT INTO t (body) VALUES (?)", [(os.urandom(700),) for _ in range(100)])
            if batch % 3 == 2:
                with writer:
                    writer.execute("DELETE FROM t WHERE id % 7 = ?", (batch,))
        with closing(sqlite3.connect(database)) as reader:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE t SET body = zeroblob(10000) WHERE id < 50")
            before = reader.execute("SELECT count(*), sum(length(body)) FROM t").fetchone()
            writer.execute("ROLLBACK")
            assert reader.execute("SELECT count(*), sum(length(body)) FROM t").fetchone() == before
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        writer.execute("VACUUM")
    folder.remount()
    with closing(sqlite3.connect(database)) as again:
        assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert again.execute("SELECT count(*), sum(length(body)) FROM t").fetchone() == before


def test_two_processes_share_an_sqlite_database(here: Path) -> None:
    need("sqlite3")
    database = here / "shared.db"
    run("sqlite3", database, "PRAGMA journal_mode=wal; CREATE TABLE t (who INTEGER, n INTEGER)")
    script = (
        ".timeout 30000\n"
        + "BEGIN IMMEDIATE; INSERT INTO t SELECT {who}, coalesce(max(n), 0) + 1 FROM t; COMMIT;\n" * 50
    )
    writers = [subprocess.Popen(["sqlite3", database], stdin=subprocess.PIPE, text=True) for _ in range(2)]
    for who, writer in enumerate(writers):
        assert writer.stdin is not None
        with writer.stdin:
            writer.stdin.write(script.replace("{who}", str(who)))
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert run("sqlite3", database, "SELECT count(*), max(n) FROM t; PRAGMA integrity_check") == "100|100\nok\n"


def test_a_c_project_builds_with_make(here: Path) -> None:
    need("make", "cc", "ar")
    (here / "Makefile").write_text(
        "OBJECTS = main.o one.o two.o\n"
        "all: program\n"
        "program: main.o libparts.a\n\tcc -o $@ main.o -L. -lparts\n"
        "libparts.a: one.o two.o\n\tar rcs $@ $^\n"
        "$(OBJECTS): parts.h\n"
        "clean:\n\trm -f program *.o *.a\n"
    )
    (here / "parts.h").write_text("int one(void);\nint two(void);\n")
    (here / "one.c").write_text('#include "parts.h"\nint one(void) { return 1; }\n')
    (here / "two.c").write_text('#include "parts.h"\nint two(void) { return one() + 1; }\n')
    (here / "main.c").write_text(
        '#include <stdio.h>\n#include "parts.h"\nint main(void) { printf("%d\\n", two()); return 0; }\n'
    )
    run("make", "-j2", cwd=here)
    assert run(here / "program") == "2\n"
    assert "Nothing to be done" in run("make", cwd=here)
    (here / "one.c").write_text('#include "parts.h"\nint one(void) { return 40; }\n')
    run("make", "-j2", cwd=here)
    assert run(here / "program") == "41\n"
    run("make", "clean", cwd=here)
    assert sorted(os.listdir(here)) == ["Makefile", "main.c", "one.c", "parts.h", "two.c"]


def test_sed_truncate_dd_and_fallocate_work(here: Path) -> None:
    (here / "text").write_text("one\ntwo\nthree\n" * 1000)
    run("sed", "-i", "s/two/2/", here / "text")
    assert (here / "text").read_text() == "one\n2\nthree\n" * 1000
    run("truncate", "-s", "10M", here / "sparse")
    assert (here / "sparse").read_bytes() == bytes(10 << 20)
    run("truncate", "-s", "5", here / "text")
    assert (here / "text").read_text() == "one\n2"
    run("dd", "if=/dev/urandom", f"of={here / 'random'}", "bs=64K", "count=100", "conv=fsync", "status=none")
    run("dd", f"if={here / 'random'}", f"of={here / 'copy'}", "bs=7777", "oflag=append", "status=none")
    run("dd", f"if={here / 'random'}", f"of={here / 'copy'}", "bs=1M", "seek=3", "conv=notrunc", "status=none")
    random = (here / "random").read_bytes()
    assert (here / "copy").read_bytes() == random[: 3 << 20] + random
    with open(here / "allocated", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3 << 20)
    assert (here / "allocated").stat().st_size == 3 << 20
    assert (here / "allocated").read_bytes() == bytes(3 << 20)


def saves(path: Path, text: str, pattern: str) -> None:
    """Write ``text`` to ``path`` as an editor does."""
    if pattern == "in place":
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.new")
    if pattern == "vim":
        (backup := path.with_name(path.name + "~")).unlink(missing_ok=True)
        path.rename(backup)
        temporary = path
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if pattern == "emacs":
        os.link(path, path.with_name(path.name + "~~"))
        path.unlink()
        temporary.rename(path)
        path.with_name(path.name + "~~").unlink()
    elif pattern == "rename":
        shutil.copystat(path, temporary)
        temporary.replace(path)
    else:
        backup.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


@pytest.mark.parametrize("pattern", ["in place", "vim", "emacs", "rename"])
def test_editors_save(pattern: str, here: Path, folder: Folder) -> None:
    document = here / "document.txt"
    document.write_text("empty")
    for number in range(10):
        saves(document, text := f"save {number}\n" * 2000, pattern)
        assert document.read_text() == text
        assert os.listdir(here) == ["document.txt"]
    folder.remount()
    assert document.read_text() == text


@pytest.fixture
def another(folder: Folder, make_mount: MakeMount) -> Iterator[Path]:
    """The same bucket in a second mount with an empty state."""
    folder.sync()
    if folder.mount and folder.node:
        yield make_mount(folder.node, "programs").path
    else:
        yield folder.path


def test_everything_the_programs_left_is_on_the_server(folder: Folder, another: Path) -> None:
    same_trees(folder.path, another)
