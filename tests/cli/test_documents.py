"""The manuals cover every command and option; units, README and CHANGELOG fit the programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import mountfs.cli.main
import nodeserver.cli.main
from mountfs.cli import options, settings
from mountfs.errors import Busy, MountError, NotMounted, Pending
from tests.harness import BIN

ROOT = Path(__file__).parents[2]
MANUALS = sorted((ROOT / "man").iterdir())


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands of a program, with the words that lead to them."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


def manual(name: str) -> str:
    return (ROOT / "man" / name).read_text()


def commands() -> Iterator[tuple[str, str, click.Command]]:
    for program, root in (("mountfs", mountfs.cli.main.main), ("nodeserver", nodeserver.cli.main.main)):
        for path, command in walk(root):
            yield program, " ".join(path), command


@pytest.mark.parametrize("path", MANUALS, ids=lambda path: path.name)
def test_manuals_are_clean(path: Path) -> None:
    result = subprocess.run(["mandoc", "-T", "lint", path], capture_output=True, text=True, check=False)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


@pytest.mark.parametrize(("program", "path", "command"), list(commands()))
def test_every_command_and_option_is_in_the_manual(program: str, path: str, command: click.Command) -> None:
    text = manual(f"{program}.1")
    synopsis = _section(text, "SYNOPSIS")
    usage = [part for part in re.split(r"^\.Nm ", synopsis, flags=re.MULTILINE) if _is_of(part, program, path)]
    options = [name for option in command.params if isinstance(option, click.Option) for name in option.opts]
    if not (isinstance(command, click.Group) and path):
        assert len(usage) == 1, f"{program} {path}: not once in the synopsis"
    entries = re.findall(r"^\.It (.*)$", _section(text, "DESCRIPTION"), flags=re.MULTILINE)
    for name in options:
        flag = re.escape(name[1:])
        assert any(re.search(rf"(^Fl|,) {flag}( |$)", entry) for entry in entries), f"{path} {name}: no entry"
        assert re.search(rf"(Fl|\|) {flag}( |$)", usage[0], flags=re.MULTILINE), f"{path} {name}: not in the synopsis"


def _section(text: str, name: str) -> str:
    return text.partition(f".Sh {name}\n")[2].partition("\n.Sh ")[0]


def _is_of(part: str, program: str, path: str) -> bool:
    """Whether a part of a synopsis is the usage of the command that the words of ``path`` lead to."""
    words = " ".join(re.findall(r"\bCm (\w+)", part.split("\n")[0]))
    return part.startswith(program) and words == path


def test_every_mount_option_is_in_the_manuals() -> None:
    text = _section(manual("mountfs.1"), "MOUNT OPTIONS")
    settings_text = manual("mountfs.toml.5")
    for name in {*options.FLAGS, *options.VALUES, "rw"}:
        shown = name if name in options.FLAGS else name.replace("_", "-")
        assert re.search(rf"(Cm|,) {shown}\b", text), name
        if name in options.VALUES or name == options.FLAGS.get(name, ("",))[0]:
            assert re.search(rf"(Cm|,) {shown}\b", settings_text), name


def test_exit_codes_are_in_the_manual() -> None:
    text = _section(manual("mountfs.1"), "EXIT STATUS")
    assert re.findall(r"^\.It (\d)", text, flags=re.MULTILINE) == [str(code) for code in range(6)]
    assert [kind.exit_code for kind in (MountError, Pending, Busy, NotMounted)] == [1, 3, 4, 5]


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md"])
def test_documents_mention_every_command(document: str) -> None:
    text = (ROOT / document).read_text()
    for program, path, command in commands():
        if path and not isinstance(command, click.Group):
            last = path.split()[-1]
            assert re.search(rf"{program} {path}\b|bucket {last}\b", text), f"{program} {path}"
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[0].split()
    assert all(f"make {target}" in text for target in targets if target != "debian")


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_example_of_the_configuration_file_works(home: Path) -> None:
    example = _section(manual("mountfs.toml.5"), "EXAMPLES").partition(".Bd -literal -offset indent\n")[2]
    (home / "config/mountfs").mkdir()
    (home / "config/mountfs/config.toml").write_text(example.partition(".Ed")[0])
    found = settings.from_files("http://store:7070", "photos", Path("/home/me/Archive"))
    assert found == {
        "cache_size": 20 << 30,
        "token_file": "~/.config/mountfs/store.token",
        "close": "cluster",
        "ro": True,
    }


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = re.findall(r"^([a-z0-9-]+)==\S+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert {re.match(r"[a-z0-9-]+", name, re.IGNORECASE)[0].lower() for name in wanted} <= set(pinned)  # type: ignore[index]


@pytest.mark.parametrize("unit", ["nodeserver.service", "mountfs@.service"])
def test_units_are_valid(unit: str, tmp_path: Path) -> None:
    text = (ROOT / "systemd" / unit).read_text()
    (tmp_path / unit).write_text(text.replace("/usr/local/bin", str(BIN)))
    analyze = shutil.which("systemd-analyze")
    assert analyze
    scope = ["--user"] if "@" in unit else []
    result = subprocess.run(
        [analyze, *scope, "verify", "--man=no", tmp_path / unit],
        capture_output=True,
        text=True,
        check=False,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert (result.stderr, result.returncode) == ("", 0)
