"""A file keeps one history under its name however it is saved, and old places show what was there.

Each test is a row of the table in docs/semantics.md. It runs three times: the server gets each call in a commit of its
own, each save in one commit, or everything at once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

import pytest

from tests.conftest import MakeMount
from tests.harness import Node
from tests.mount.conftest import Folder
from tests.mount.lineage import SETTLE, Batching, Desk, commit, versions
from tests.mount.posix import opened


@pytest.fixture(scope="module")
def folder(module_node: Node, make_module_mount: MakeMount) -> Folder:
    """A mount that sends nothing unless someone waits for it."""
    mount = make_module_mount(module_node, module_node.create_bucket("desk"), options={"settle": SETTLE})
    return Folder(mount.path, mount, module_node)


@pytest.fixture(params=get_args(Batching))
def desk(request: pytest.FixtureRequest, folder: Folder, here: Path) -> Desk:
    """A new folder in the mount, and how its changes go to the server."""
    assert folder.mount
    return Desk(here, folder.mount, request.param)


# Saving in place


def test_saved_in_place(desk: Desk) -> None:
    desk.save("doc", "1", "2", "3")
    desk.lists("doc", "1", "2", "3")


def test_appended_to(desk: Desk) -> None:
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write("doc", text, os.O_APPEND)
        desk.saved()
    desk.lists("doc", "1", "12", "123")


def test_truncated(desk: Desk) -> None:
    desk.save("doc", "123")
    for size in 1, 0:
        os.truncate(desk.here / "doc", size)
        desk.saved()
    desk.save("doc", "4")
    desk.lists("doc", "123", "1", "", "4")


def test_an_empty_file_is_no_version(desk: Desk) -> None:
    (desk.here / "doc").touch()
    desk.saved()
    desk.lists("doc")
    desk.save("doc", "1")
    desk.lists("doc", "1")


def test_the_same_content_saved_again(desk: Desk) -> None:
    desk.save("doc", "1", "1", "2", "2", "1")
    desk.lists("doc", "1", "2", "1")


def test_attributes_and_names_make_no_version(desk: Desk) -> None:
    desk.save("doc", "1", "2")
    doc = desk.here / "doc"
    doc.chmod(0o600)
    desk.saved()
    os.utime(doc, ns=(1, 2))
    desk.saved()
    os.setxattr(doc, "user.colour", b"blue")
    desk.saved()
    os.chown(doc, -1, -1)
    desk.saved()
    desk.move("doc", "other")
    desk.link("other", "third")
    desk.saved()
    desk.lists("other", "1", "2")
    desk.lists("third", "1", "2")


def test_a_thousand_fsyncs_are_one_version_and_two_sessions_two(desk: Desk) -> None:
    for session in range(2):
        with opened(desk.here / "data", os.O_RDWR | os.O_CREAT) as fd:
            for number in range(1000 if desk.batching == "each save" else 5):
                os.pwrite(fd, f"{session}.{number:04} ".encode(), 0)
                os.fsync(fd)
        desk.saved()
    last = "0999" if desk.batching == "each save" else "0004"
    desk.lists("data", f"0.{last} ", f"1.{last} ")


def test_saved_while_someone_has_it_open(desk: Desk) -> None:
    """A viewer, or tail -f: saves of others do not become one because of it."""
    desk.save("doc", "1")
    with opened(desk.here / "doc", os.O_RDONLY):
        desk.save("doc", "2", "3")
        desk.save("doc", "4")
    desk.lists("doc", "1", "2", "3", "4")


# Saving by rename


def test_saved_by_rename(desk: Desk) -> None:
    desk.save("doc", "1")
    desk.replace("doc", "2", "3", temporary=".doc.new")
    desk.lists("doc", "1", "2", "3")
    desk.passed(".doc.new", "2", "3")


def test_saved_by_rename_under_a_random_name(desk: Desk) -> None:
    """LibreOffice: a lock beside it, a temporary name of its own each time."""
    desk.save("doc.odt", "1")
    desk.write(".~lock.doc.odt#", "lock")
    desk.saved()
    desk.replace("doc.odt", "2", temporary="lu1482a3xk.tmp")
    desk.replace("doc.odt", "3", temporary="lu1482a3xq.tmp")
    desk.remove(".~lock.doc.odt#")
    desk.lists("doc.odt", "1", "2", "3")
    desk.passed("lu1482a3xk.tmp", "2")
    desk.lists(".~lock.doc.odt#", "lock")


def test_saved_by_rename_for_the_first_time(desk: Desk) -> None:
    desk.replace("doc", "1", temporary="doc.part")
    desk.replace("doc", "2", temporary="doc.part")
    desk.lists("doc", "1", "2")
    desk.passed("doc.part", "1", "2")


def test_saved_by_rename_and_in_place_in_turn(desk: Desk) -> None:
    desk.save("doc", "1")
    desk.replace("doc", "2")
    desk.save("doc", "3")
    desk.replace("doc", "4", "5")
    desk.save("doc", "6")
    desk.lists("doc", "1", "2", "3", "4", "5", "6")


def test_the_same_content_saved_by_rename(desk: Desk) -> None:
    desk.save("doc", "1")
    desk.replace("doc", "2", "2", "2", "1")
    desk.lists("doc", "1", "2", "1")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "1")


def test_a_lock_file_that_becomes_the_file(desk: Desk) -> None:
    """git's index: written under the name of its lock, which must not be there."""
    for text in "1", "2", "3":
        desk.write("index.lock", text, os.O_CREAT | os.O_EXCL)
        desk.rename("index.lock", "index")
        desk.saved()
        desk.write("index.lock", "given up", os.O_CREAT | os.O_EXCL)
        desk.unlink("index.lock")
        desk.saved()
    desk.lists("index", "1", "2", "3")


def test_a_temporary_name_used_for_several_files(desk: Desk) -> None:
    for name, text in ("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1"), ("b", "b2"):
        desk.replace(name, text, temporary="save.tmp")
    desk.lists("a", "a1", "a2")
    desk.lists("b", "b1", "b2")
    desk.lists("c", "c1")
    desk.move("a", "moved")
    desk.lists("moved", "a1", "a2")
    desk.passed("save.tmp", "a1", "b1", "a2", "c1", "b2")


def test_a_temporary_file_given_up_does_not_leak(desk: Desk) -> None:
    desk.save("a", "a1")
    desk.save("save.tmp", "of a, given up")
    desk.remove("save.tmp")
    desk.save("b", "b1")
    desk.replace("b", "b2", temporary="save.tmp")
    desk.lists("b", "b1", "b2")
    desk.move("b", "moved")
    desk.lists("moved", "b1", "b2")


# With a backup


def test_backup_by_rename_then_written_anew(desk: Desk) -> None:
    desk.save("doc.odt", "1")
    for text in "2", "3":
        desk.rename("doc.odt", "doc.odt~")
        desk.save("doc.odt", text)
    desk.lists("doc.odt", "1", "2", "3")
    desk.lists("doc.odt~", "1", "2")
    desk.move("doc.odt", "moved")
    desk.lists("moved", "1", "2", "3")


def test_backup_by_rename_that_is_removed_after_the_save(desk: Desk) -> None:
    """vim, as it is set up by default."""
    desk.save("doc", "1")
    for text in "2", "3":
        desk.rename("doc", "doc~")
        desk.write("doc", text)
        desk.unlink("doc~")
        desk.saved()
    desk.lists("doc", "1", "2", "3")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "3")


def test_backup_by_rename_then_saved_by_rename(desk: Desk) -> None:
    """sed -i.bak, mv -b, rsync --backup."""
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write("sedXm3a9", text)
        desk.rename("doc", "doc.bak")
        desk.rename("sedXm3a9", "doc")
        desk.saved()
    desk.lists("doc", "1", "2", "3")
    desk.lists("doc.bak", "1", "2")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "3")


def test_backup_by_hard_link(desk: Desk) -> None:
    """gedit and what else saves with GLib."""
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write(".goutputstream-3HKX", text)
        if (desk.here / "doc~").exists():
            desk.unlink("doc~")
        desk.link("doc", "doc~")
        desk.rename(".goutputstream-3HKX", "doc")
        desk.saved()
    desk.lists("doc", "1", "2", "3")
    desk.lists("doc~", "1", "2")


def test_backup_by_copy(desk: Desk) -> None:
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write("doc.bak", (desk.here / "doc").read_text())
        desk.save("doc", text)
    desk.lists("doc", "1", "2", "3")
    desk.lists("doc.bak", "1", "2")


def test_numbered_backups(desk: Desk) -> None:
    """cp --backup=numbered"""
    desk.save("doc", "1")
    for number, text in enumerate(["2", "3"], 1):
        desk.rename("doc", f"doc.~{number}~")
        desk.save("doc", text)
    desk.lists("doc", "1", "2", "3")
    desk.lists("doc.~1~", "1")
    desk.lists("doc.~2~", "1", "2")


def test_set_aside_under_another_name_and_replaced(desk: Desk) -> None:
    """Word on a share: the old file gets a name that says nothing, and goes when the new one is there."""
    desk.save("doc.docx", "1")
    for text in "2", "3":
        desk.write("~WRD0000.tmp", text)
        desk.rename("doc.docx", "~WRL0001.tmp")
        desk.rename("~WRD0000.tmp", "doc.docx")
        desk.unlink("~WRL0001.tmp")
        desk.saved()
    desk.lists("doc.docx", "1", "2", "3")
    desk.move("doc.docx", "moved.docx")
    desk.lists("moved.docx", "1", "2", "3")


def test_swapped_by_exchange(desk: Desk) -> None:
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write("doc.new", text)
        desk.exchange("doc.new", "doc")
        desk.unlink("doc.new")
        desk.saved()
    desk.save("doc", "4")
    desk.lists("doc", "1", "2", "3", "4")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "3", "4")


def test_two_files_exchanged_for_good(desk: Desk) -> None:
    desk.save("a", "a1", "a2")
    desk.save("b", "b1", "b2")
    desk.exchange("a", "b")
    commit(desk.mount)
    desk.save("a", "b3")
    desk.save("b", "a3")
    desk.lists("a", "a1", "a2", "b1", "b2", "b3")
    desk.lists("b", "a1", "a2", "b1", "b2", "a3")


# Deleting


def test_deleted(desk: Desk) -> None:
    desk.save("doc", "1", "2")
    desk.remove("doc")
    desk.lists("doc", "1", "2")


def test_deleted_and_made_again(desk: Desk) -> None:
    desk.save("doc", "1")
    desk.remove("doc")
    desk.save("doc", "2")
    desk.lists("doc", "1", "2")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2")
    desk.lists("doc", "1", "2")


def test_deleted_and_saved_by_rename(desk: Desk) -> None:
    """What programs do that know no other way of replacing a file."""
    desk.save("doc", "1")
    for text in "2", "3":
        desk.write("doc.tmp", text)
        desk.unlink("doc")
        desk.rename("doc.tmp", "doc")
        desk.saved()
    desk.lists("doc", "1", "2", "3")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "3")


def test_deleted_and_put_back_from_its_history(desk: Desk) -> None:
    desk.save("doc", "1", "2")
    commit(desk.mount)
    desk.remove("doc")
    commit(desk.mount)
    shutil.copy(versions(desk.here / "doc")[0], desk.here / "doc")
    desk.saved()
    expected = ["1", "2", "1"] if desk.batching != "nothing" else ["2", "2"]
    desk.lists("doc", *expected)


def test_a_directory_or_link_in_between(desk: Desk) -> None:
    desk.save("doc", "1")
    desk.unlink("doc")
    desk.mkdir("doc")
    desk.saved()
    desk.lists("doc", "1")
    desk.rmdir("doc")
    desk.save("doc", "2")
    desk.lists("doc", "1", "2")
    desk.save("elsewhere", "no part of it")
    desk.symlink("elsewhere", ".doc.link")
    desk.rename(".doc.link", "doc")
    desk.saved()
    desk.lists("doc", "1", "2")
    desk.unlink("doc")
    desk.save("doc", "3")
    desk.lists("doc", "1", "2", "3")
    desk.lists("elsewhere", "no part of it")


# Moving


def test_moved_to_a_free_name(desk: Desk) -> None:
    desk.save("a", "1", "2")
    desk.move("a", "b")
    desk.save("b", "3")
    desk.replace("b", "4")
    desk.lists("b", "1", "2", "3", "4")
    desk.lists("a", "1", "2")


def test_moved_after_saves_by_rename(desk: Desk) -> None:
    desk.save("a", "1")
    desk.replace("a", "2", "3")
    desk.move("a", "b")
    desk.replace("b", "4")
    desk.lists("b", "1", "2", "3", "4")
    desk.lists("a", "1", "2", "3")


def test_moved_over_another_file(desk: Desk) -> None:
    desk.save("b", "b1", "b2")
    desk.save("a", "a1", "a2")
    desk.move("a", "b")
    desk.save("b", "3")
    desk.lists("b", "b1", "b2", "a1", "a2", "3")
    desk.lists("a", "a1", "a2")
    desk.move("b", "moved")
    desk.lists("moved", "b1", "b2", "a1", "a2", "3")


def test_moved_over_another_file_after_saves_by_rename(desk: Desk) -> None:
    """It takes its own history along, as after saves in place; that of the other stays with the place."""
    desk.save("b", "b1")
    desk.save("a", "a1")
    desk.replace("a", "a2", "a3")
    desk.move("a", "b")
    desk.replace("b", "4")
    desk.lists("b", "b1", "a1", "a2", "a3", "4")
    desk.lists("a", "a1", "a2", "a3")
    desk.move("b", "moved")
    desk.lists("moved", "a1", "a2", "a3", "4")


def test_a_backup_made_now_and_then(desk: Desk) -> None:
    desk.save("doc", "1")
    for text in "2", "4", "6":
        desk.rename("doc", "doc~")
        desk.save("doc", text)
        desk.replace("doc", str(int(text) + 1))
    desk.lists("doc", "1", "2", "3", "4", "5", "6", "7")
    desk.lists("doc~", "1", "2", "3", "4", "5")
    desk.move("doc", "moved")
    desk.lists("moved", "1", "2", "3", "4", "5", "6", "7")


def test_moved_to_another_directory_and_back(desk: Desk) -> None:
    desk.mkdir("other")
    desk.save("doc", "1")
    desk.move("doc", "other/doc")
    desk.save("other/doc", "2")
    desk.replace("other/doc", "3", temporary="other/new")
    desk.move("other/doc", "doc")
    desk.save("doc", "4")
    desk.lists("doc", "1", "2", "3", "4")
    desk.lists("other/doc", "1", "2", "3")


def test_moved_away_and_another_file_made(desk: Desk) -> None:
    desk.mkdir("archive")
    desk.save("doc", "old")
    desk.move("doc", "archive/doc")
    desk.save("doc", "new")
    desk.save("archive/doc", "old, corrected")
    desk.lists("archive/doc", "old", "old, corrected")
    desk.lists("doc", "old", "new")
    desk.move("doc", "moved")
    desk.lists("moved", "new")


def test_moved_to_where_something_was_deleted(desk: Desk) -> None:
    desk.save("b", "b1")
    desk.remove("b")
    desk.save("a", "a1")
    desk.replace("a", "a2")
    desk.move("a", "b")
    desk.lists("b", "b1", "a1", "a2")
    desk.lists("a", "a1", "a2")


def test_three_renames_swap_two_files(desk: Desk) -> None:
    desk.save("a", "a1")
    desk.save("b", "b1")
    desk.rename("a", "x")
    desk.rename("b", "a")
    desk.rename("x", "b")
    desk.saved()
    desk.save("a", "b2")
    desk.lists("a", "a1", "b1", "b2")
    desk.lists("b", "a1", "b1")


def test_rotated_logs(desk: Desk) -> None:
    desk.save("log", "1")
    for text in "2", "3":
        for number in 2, 1:
            if (desk.here / f"log.{number - 1}").exists():
                desk.rename(f"log.{number - 1}", f"log.{number}")
        desk.rename("log", "log.1")
        desk.save("log", text)
    desk.write("log", "+", os.O_APPEND)
    desk.saved()
    desk.lists("log", "1", "2", "3", "3+")
    desk.lists("log.1", "1", "2")
    desk.lists("log.2", "1")


def test_logs_rotated_by_copy_and_truncation(desk: Desk) -> None:
    desk.save("log", "1")
    for text in "2", "3":
        shutil.copy(desk.here / "log", desk.here / "log.1")
        os.truncate(desk.here / "log", 0)
        desk.saved()
        desk.save("log", text)
    desk.lists("log", "1", "", "2", "", "3")
    desk.lists("log.1", "1", "2")


def test_a_directory_above_is_renamed(desk: Desk) -> None:
    desk.mkdir("project")
    desk.mkdir("project/part")
    desk.save("project/part/doc", "1")
    desk.move("project", "renamed")
    desk.save("renamed/part/doc", "2")
    desk.replace("renamed/part/doc", "3", temporary="renamed/part/new")
    desk.lists("renamed/part/doc", "1", "2", "3")
    desk.mkdir("project")
    desk.mkdir("project/part")
    desk.save("project/part/doc", "another")
    desk.lists("project/part/doc", "another")


# Hard links


def test_a_hard_linked_file_saved_in_place(desk: Desk) -> None:
    desk.save("a", "1")
    desk.link("a", "b")
    desk.save("a", "2")
    desk.save("b", "3")
    for name in "a", "b":
        desk.lists(name, "1", "2", "3")
    desk.remove("a")
    commit(desk.mount)
    desk.save("b", "4")
    desk.lists("a", "1", "2", "3")
    desk.lists("b", "1", "2", "3", "4")


def test_a_hard_linked_file_saved_by_rename_under_one_name(desk: Desk) -> None:
    desk.save("a", "1")
    desk.link("a", "b")
    desk.saved()
    desk.replace("a", "a2")
    commit(desk.mount)
    desk.save("b", "b2")
    desk.save("a", "a3")
    desk.lists("a", "1", "a2", "a3")
    desk.lists("b", "1", "b2")


def test_a_link_to_where_something_was_deleted(desk: Desk) -> None:
    desk.save("b", "b1")
    desk.remove("b")
    desk.save("a", "a1")
    desk.link("a", "b")
    desk.saved()
    desk.save("a", "a2")
    desk.lists("b", "b1", "a1", "a2")
    desk.lists("a", "a1", "a2")
