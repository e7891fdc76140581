"""What command line, environment and configuration files make of a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from mountfs.cli import options, settings
from mountfs.errors import MountError


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o600)
    return file


def configure(home: Path, text: str) -> None:
    (home / "config/mountfs").mkdir(parents=True, exist_ok=True)
    (home / "config/mountfs/config.toml").write_text(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("10G", 10 << 30), ("1.5 GiB", 3 << 29), ("20mb", 20 << 20), ("2T", 2 << 40), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "10X", "1e9", "10 G G", "ten"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        options.parse_size(text)


def test_options_as_in_fstab() -> None:
    found = options.parse(
        options.split(
            [
                "_netdev,allow_other,noatime,x-systemd.automount,user=me,umask=027,nosuid",
                "noxattr,close=cluster,cache-size=1G,ro,rw",
            ]
        )
    )
    assert found == {
        "allow_other": True,
        "umask": 0o27,
        "nosuid": True,
        "xattr": False,
        "close": "cluster",
        "cache_size": 1 << 30,
        "ro": False,
    }


@pytest.mark.parametrize(
    "option",
    [
        "nonsense",
        "umask=9",
        "umask=1000",
        "uid=me",
        "uid=4294967295",
        "gid=-1",
        "cache-size=8192P",
        "close=never",
        "settle=0",
        "data-deadline=soon",
        "ro=1",
        "uid",
        "sync",
    ],
)
def test_options_that_are_refused_are_named(option: str) -> None:
    with pytest.raises(MountError, match=option):
        options.parse([option])


def test_sloppy_ignores_unknown_options_but_not_bad_values() -> None:
    assert options.parse(["nonsense", "ro"], sloppy=True) == {"ro": True}
    with pytest.raises(MountError):
        options.parse(["uid=me"], sloppy=True)


@pytest.mark.parametrize(
    ("source", "url", "bucket"),
    [
        ("http://host:1/photos", "http://host:1", "photos"),
        ("http://host:1/photos/", "http://host:1", "photos"),
        ("http://host", "http://host", None),
        ("https://[::1]:2/", "https://[::1]:2", None),
    ],
)
def test_sources(source: str, url: str, bucket: str | None) -> None:
    assert settings.parse_source(source) == (url, bucket)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "host:1",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://h:99999",
        "http://me:pw@h",
        "http://h/a/b",
        "http://h/A",
        "http://h/abc?x",
    ],
)
def test_sources_that_are_refused(source: str) -> None:
    with pytest.raises(MountError):
        settings.parse_source(source)


def test_the_command_line_wins_over_sections_and_these_over_general_settings(
    home: Path, tmp_path: Path, token: Path
) -> None:
    configure(
        home,
        f"""
        [mount]
        token-file = "{token}"
        cache-size = "1G"
        ro = true
        options = "umask=077,settle=2"
        [mount."http://h:1"]
        cache-size = "2G"
        data_deadline = 5
        [mount."http://h:1/abc"]
        cache-size = "3G"
        ro = false
        [mount."{tmp_path}"]
        uid = 7
        """,
    )
    config = settings.build("http://h:1/abc", tmp_path, {"data_deadline": 6.0})
    assert (config.url, config.bucket, config.token, config.mountpoint) == ("http://h:1", "abc", "secret", tmp_path)
    assert (config.cache_size, config.data_deadline, config.settle) == (3 << 30, 6.0, 2.0)
    assert (config.options.ro, config.options.umask, config.options.uid) == (False, 0o77, 7)
    other = settings.build("http://h:2/abc", tmp_path / "elsewhere", {})
    assert (other.cache_size, other.options.ro, other.options.uid) == (1 << 30, True, None)
    assert other.state != config.state


@pytest.mark.parametrize(
    "text",
    [
        "[mount",
        "[mont]",
        "[mount]\nnonsense = 1",
        "[mount]\nsettle = true",
        "mount = 3",
        "[mount.'http://h:1']\nuid = 'me'",
    ],
)
def test_a_wrong_configuration_file_is_named(home: Path, tmp_path: Path, token: Path, text: str) -> None:
    configure(home, text)
    with pytest.raises(MountError, match=r"config\.toml: "):
        settings.build("http://h:1", tmp_path, {"token_file": str(token)})


def test_where_the_token_comes_from(home: Path, tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MountError, match="no token"):
        settings.find_token(None, None, tmp_path / "absent")
    for place in "configured", "environment", "given":
        (tmp_path / place).write_text(place)
        (tmp_path / place).chmod(0o600)
    assert settings.find_token(None, None, token.parent) == "secret"
    assert settings.find_token(None, str(tmp_path / "configured"), token.parent) == "configured"
    monkeypatch.setenv("MOUNTFS_TOKEN_FILE", str(tmp_path / "environment"))
    assert settings.find_token(None, str(tmp_path / "configured"), token.parent) == "environment"
    assert settings.find_token(str(tmp_path / "given"), None, None) == "given"


def test_a_token_file_that_others_can_read_is_warned_about(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings.read_token(token) == "secret"
    assert capsys.readouterr().err == ""
    token.chmod(0o644)
    assert settings.read_token(token) == "secret"
    assert f"chmod 600 {token}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"a\x00b"])
def test_what_is_no_token(token: Path, content: bytes) -> None:
    token.write_bytes(content)
    with pytest.raises(MountError, match=str(token)):
        settings.read_token(token)


def test_a_state_directory_belongs_to_a_source() -> None:
    states = {settings.default_state(url, bucket) for url in ("http://h:1", "http://h:2") for bucket in ("abc", None)}
    assert len(states) == 4
    assert settings.default_state("http://h:1", "abc") in states


def test_mount_points_are_absolute_and_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    for path in "real", "link", "real/", "./real", "real/../link", "real/.", "real/../real/":
        assert settings.absolute(Path(path)) == tmp_path / "real"
    monkeypatch.chdir("real")
    assert settings.absolute(Path("..")) == tmp_path
    assert settings.absolute(Path(".")) == tmp_path / "real"
