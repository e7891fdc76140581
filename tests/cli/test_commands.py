"""The commands as a script sees them: exit codes, one line of error, JSON."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mountfs.cli import doctor
from mountfs.cli.main import VERBS, main
from tests.harness import BIN, Node, command


def failed(*args: str | Path, code: int = 1) -> str:
    """The one line of error of a command that fails with ``code``."""
    result = command(*args)
    assert result.returncode == code, result.stdout + result.stderr
    [line] = result.stderr.splitlines()
    assert not result.stdout
    return line


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o600)
    return file


def test_help_and_version() -> None:
    assert command("mountfs", "--version").stdout.startswith("mountfs ")
    assert command("mountfs", "-h").stdout.startswith("Usage: mountfs")
    for args in [*([verb] for verb in VERBS), ["bucket", "create"], ["bucket", "list"], ["bucket", "delete"]]:
        result = CliRunner().invoke(main, [*args, "--help"], prog_name="mountfs")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(f"Usage: mountfs {' '.join(args)} ")


def test_the_summary_of_a_verb_is_its_helps_first_sentence() -> None:
    listing = command("mountfs", "--help").stdout
    for verb, summary in VERBS.items():
        assert f"{verb} " in listing
        assert summary in listing
        assert main.get_command(None, verb) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["mount"],
        ["mount", "http://h:1"],
        ["status", "--nonsense"],
        ["bucket", "nonsense"],
        ["mount", "http://h:1", ".", "--cache-size", "much"],
    ],
)
def test_wrong_usage_exits_with_2(args: list[str]) -> None:
    result = command("mountfs", *args)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_mount_that_cannot_be_says_why(tmp_path: Path, token: Path) -> None:
    (tmp_path / "point").mkdir()
    (tmp_path / "file").touch()
    args = "--token-file", token
    assert "not the address" in failed("mountfs", "mount", "nonsense", tmp_path / "point", *args, code=2)
    no_bucket = failed("mountfs", "mount", "http://h:1/A", tmp_path / "point", *args, code=2)
    assert "cannot be the name of a bucket" in no_bucket
    assert "h:1 does not answer" in failed("mountfs", "mount", "http://h:1", tmp_path / "absent/point", *args)
    assert not (tmp_path / "absent/point").exists(), "what was made for it is gone again"
    assert "Not a directory" in failed("mountfs", "mount", "http://h:1", tmp_path / "file", *args)
    assert "no token" in failed("mountfs", "mount", "http://h:1", tmp_path / "point")
    assert "absent" in failed("mountfs", "mount", "http://h:1", tmp_path / "point", "--token-file", tmp_path / "absent")
    assert "nonsense" in failed(
        "mountfs", "mount", "http://h:1", tmp_path / "point", "-o", "ro,nonsense", *args, code=2
    )
    for option in ("uid=me", "umask=9", "settle=soon", "close=never", "cache-size=much"):
        line = failed("mountfs", "mount", "http://h:1", tmp_path / "point", "-o", option, *args, code=2)
        assert "mount option" in line
        assert not any(word in line for word in ("invalid literal", "convert", "float", "base 10"))
    assert "Not a directory" in failed(
        "mountfs", "mount", "http://h:1", tmp_path / "point", "--state", tmp_path / "file/state", *args
    )


def test_where_nothing_is_mounted(tmp_path: Path) -> None:
    for verb in "umount", "sync", "status":
        assert "not " in failed("mountfs", verb, tmp_path, code=5)
    assert command("mountfs", "status").stdout == "nothing is mounted\n"
    assert json.loads(command("mountfs", "status", "--json").stdout) == []
    assert "--url" in failed("mountfs", "bucket", "list", code=5)


def test_up_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "full/file").parent.mkdir()
    (tmp_path / "full/file").touch()
    assert "is not empty" in failed("mountfs", "up", tmp_path / "full")
    assert "Not a directory" in failed("mountfs", "up", tmp_path / "full/file/point")
    assert "no place here" in failed("mountfs", "up", tmp_path / "point", "-o", "state=/tmp/x", code=2)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ([], 1, "Usage"),
        (["http://h:1"], 1, "Usage"),
        (["http://h:1", "/", "extra"], 1, "Usage"),
        (["-x", "http://h:1", "/"], 1, "Usage"),
        (["http://h:1", "/", "-o", "nonsense"], 32, "nonsense"),
        (["http://h:1", "/", "-o", "defaults,_netdev,nofail,x-systemd.automount"], 32, "no token"),
        (["nonsense", "/"], 32, "not the address"),
    ],
)
def test_the_mount_helper_exits_as_mount_8_wants(args: list[str], code: int, text: str) -> None:
    result = command("mount.mountfs", *args)
    assert result.returncode == code
    assert text in result.stderr


def test_the_mount_helper_only_checks_when_told_to(tmp_path: Path, token: Path) -> None:
    result = command(
        "mount.mountfs", "http://h:1/abc", tmp_path, "-fsnv", "-o", f"rw,nonsense,token-file={token}", "-t", "mountfs"
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_buckets(node: Node, home: Path, tmp_path: Path) -> None:
    server = "--url", node.url, "--token-file", node.token_file
    assert command("mountfs", "bucket", "list", *server).stdout == ""
    for name, quota in (("photos", []), ("music", ["--quota", "1G"])):
        result = command("mountfs", "bucket", "create", name, *quota, *server)
        assert (result.returncode, result.stdout + result.stderr) == (0, "")
    found = {
        bucket["name"]: bucket for bucket in json.loads(command("mountfs", "bucket", "list", "--json", *server).stdout)
    }
    assert {name: bucket["quota_bytes"] for name, bucket in found.items()} == {"photos": None, "music": 1 << 30}
    assert "of 1.0 GiB" in command("mountfs", "bucket", "list", *server).stdout
    assert "exists" in failed("mountfs", "bucket", "create", "photos", *server)
    assert "cannot be the name" in failed("mountfs", "bucket", "create", "Photos", *server, code=2)
    assert command("mountfs", "bucket", "delete", "photos", *server).returncode == 0
    assert "no such bucket" in failed("mountfs", "bucket", "delete", "photos", *server)
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    wrong.chmod(0o600)
    assert "token" in failed("mountfs", "bucket", "list", "--url", node.url, "--token-file", wrong)
    (home / "config/mountfs").mkdir()
    (home / "config/mountfs/config.toml").write_text(f'[mount."{node.url}"]\ntoken-file = "{node.token_file}"\n')
    assert command("mountfs", "bucket", "list", "--url", node.url).stdout.startswith("music")
    node.stop()
    assert node.url in failed("mountfs", "bucket", "list", *server)


def examine(*args: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    result = command("mountfs", "doctor", "--json", *args)
    assert not result.stderr
    return result.returncode, {finding["check"]: finding for finding in json.loads(result.stdout)}


def test_doctor_finds_this_machine_well(node: Node) -> None:
    code, findings = examine("--url", node.url, "--token-file", node.token_file)
    assert code == 0, findings
    expected = (
        "FUSE device",
        "fusermount3",
        "libfuse",
        f"server {node.url}",
        f"token for {node.url}",
        f"clock of {node.url}",
    )
    assert {findings[check]["outcome"] for check in expected} == {"ok"}
    lines = command("mountfs", "doctor", "--url", node.url, "--token-file", node.token_file).stdout
    assert f"ok      server {node.url}" in lines


def test_doctor_names_what_is_wrong_and_the_cure(node: Node, token: Path, tmp_path: Path) -> None:
    code, findings = examine("--url", node.url, "--token-file", token)
    assert code == 1
    assert findings[f"token for {node.url}"]["outcome"] == "failed"
    assert "admin.token" in findings[f"token for {node.url}"]["cure"]
    assert findings[f"server {node.url}"]["outcome"] == "ok"
    _, findings = examine("--url", node.url, "--token-file", tmp_path / "absent")
    assert "absent" in findings[f"token for {node.url}"]["detail"]
    node.stop()
    code, findings = examine("--url", node.url, "--token-file", node.token_file)
    assert code == 1
    assert findings[f"server {node.url}"]["outcome"] == "failed"
    assert "nodeserver serve" in findings[f"server {node.url}"]["cure"]


def test_doctor_checks_the_clock() -> None:
    now = time.time()
    ahead = doctor.check_clock("http://h:1", now + 3600, now)
    assert (ahead.outcome, ahead.detail[:14]) == ("failed", "3600.0 s ahead")
    assert "time service" in ahead.cure
    assert doctor.check_clock("http://h:1", now - 1, now).outcome == "ok"


def test_doctor_checks_directories(tmp_path: Path) -> None:
    assert doctor.check_directory(tmp_path / "a/b/c", "state").outcome in ("ok", "warning")
    (tmp_path / "file").touch()
    found = doctor.check_directory(tmp_path / "file/state", "state")
    assert found.outcome == "failed"


def test_doctor_checks_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "FUSE_DEVICE", tmp_path / "absent")
    absent = doctor.check_device()
    assert absent.outcome == "failed"
    assert "modprobe fuse" in absent.cure
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_helper().cure == "apt-get install fuse3"


def test_commands_start_quickly_enough_to_be_typed() -> None:
    """Neither the daemon's parts nor the server's are imported to ask or to help."""
    program = "import sys; from mountfs.cli import main, status, umount, sync; print(*sys.modules)"
    loaded = subprocess.run([BIN / "python", "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyfuse3", "apsw", "httpx", "sqlalchemy", "starlette", "rich", "trio"} & set(loaded)
