"""A real PostgreSQL for the tests, started and stopped by them, with a database for each that wants one."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection

from nodeserver.metadata import engines
from tests.harness import Node, eventually, tail

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the machine does not crash, only programs do
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "autovacuum": "off",
}


def programs() -> Path | None:
    """Where PostgreSQL's programs are: Debian keeps those of the server out of PATH. None when there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return Path(other).resolve().parent if other else None


class Postgres:
    """A PostgreSQL server on a socket of its own; it keeps its data over restarts."""

    def __init__(self, directory: Path, **settings: str) -> None:
        """``directory`` is made, for a user that is not root, which PostgreSQL refuses to run as."""
        bin_ = programs()
        assert bin_ is not None, "there is no PostgreSQL"
        self._bin = bin_
        self.directory = directory
        self.log = directory / "log"
        self._settings = SETTINGS | settings
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        directory.mkdir()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")

    def start(self) -> Postgres:
        """Start it and wait until it answers."""
        assert self._process is None, "PostgreSQL is running"
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        options += ["-c", f"unix_socket_directories={self.directory}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.directory / "data", *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", **self._user,
            )  # fmt: skip
        eventually(self._answers, 30, "PostgreSQL answers")
        return self

    def stop(self, mode: str = "immediate") -> None:
        """``fast`` ends sessions in order; ``immediate`` is a crash of PostgreSQL, not of the machine."""
        if self._process is not None:
            self._run("pg_ctl", "stop", "-w", "-m", mode)
            self._process.wait(30)
            self._process = None

    def url(self, database: str) -> str:
        """The URL of a database, as for ``nodeserver serve --metadata``."""
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def create(self) -> str:
        """A new empty database; its URL."""
        name = f"test{next(self._numbers)}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def execute(self, statement: sql.Composable | str, url: str = "") -> list[tuple[Any, ...]]:
        """Run one statement by itself; its rows, if it has any."""
        with psycopg.connect(url or self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def end_sessions(self) -> int:
        """Kill the connections of all node servers; how many there were."""
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nodeserver'"
        return len(self.execute(ended))

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, tail(self.log)
        with contextlib.suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, "-D", self.directory / "data", *arguments],
            capture_output=True, text=True, cwd="/", timeout=60, check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def postgres(**settings: str) -> Iterator[Postgres]:
    """A running server for the length of the block."""
    # Not below pytest's own directory, which other users may not enter, and whose paths are too long for a socket.
    top = Path(tempfile.mkdtemp(prefix="pg-"))
    top.chmod(0o755)
    try:
        server = Postgres(top / "p", **settings)
        try:
            yield server.start()
        finally:
            server.stop()
    finally:
        shutil.rmtree(top)


@contextlib.contextmanager
def reading(node: Node) -> Iterator[Connection]:
    """A look into the metadata of a node server, whatever database that is."""
    options = dict(zip(node.options, node.options[1:], strict=False))
    engine = engines.connect(options.get("--metadata", f"sqlite:///{node.data / 'metadata.sqlite'}")).reading
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
