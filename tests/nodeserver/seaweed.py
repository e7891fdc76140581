"""A SeaweedFS for the tests: master, volume server, filer and S3 endpoint in one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from tests.harness import BIN, eventually, tail

ACCESS_KEY = "tests"
SECRET_KEY = "a secret of the tests"
READER = "reader"
"""An access key that may not write; its secret is that of the other."""
BUCKET = "chunks"
START = 40.0
"""Seconds it may take until the first object is stored."""


class Seaweed:
    """The process, on a directory and ports of its own, which it keeps when it is stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "weed.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        (directory / "data").mkdir()
        identities = [
            _identity(ACCESS_KEY, "Admin", "Read", "Write", "List"),
            _identity(READER, "Read", "List"),
        ]
        (directory / "s3.json").write_text(json.dumps({"identities": identities}))
        self._ports = _free_ports()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def address(self, prefix: str) -> str:
        """What ``--chunks`` takes."""
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}"

    def bucket(self, prefix: str = "") -> Bucket:
        """The objects below a prefix, as somebody else sees them."""
        return Bucket(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0},
        )

    def start(self) -> Seaweed:
        """Start it and wait until it stores an object."""
        weed = ["server", f"-dir={self.directory}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        weed += [f"-s3.config={self.directory}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        weed += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-volume.preStopSeconds=0"]
        weed += ["-master.electionTimeout=1s"]
        weed += [f"-{option}={port}" for option, port in self._ports.items()]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [BIN / "weed", "-logtostderr", *weed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._process
        eventually(lambda: process.poll() is not None or self._answers(), START, "SeaweedFS stores an object")
        assert process.poll() is None, f"weed ended with {process.returncode}:\n{tail(self.log)}"
        return self

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            obstore.put(self.bucket(), "started", b"yes")
        except BaseError:
            return False
        return True


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A SeaweedFS that all tests share: each keeps to a prefix of its own."""
    weed = Seaweed(tmp_path_factory.mktemp("seaweed") / "weed")
    try:
        yield weed.start()
    finally:
        weed.kill()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials are where those of AWS are."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


def _identity(key: str, *actions: str) -> dict[str, object]:
    return {"name": key, "credentials": [{"accessKey": key, "secretKey": SECRET_KEY}], "actions": actions}


def _free_ports() -> dict[str, int]:
    """The options that name ports, with ports that nobody has."""
    ports = {}
    with ExitStack() as taken:
        for option in (f"{role}.port{kind}" for role in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")):
            listener = taken.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[option] = int(listener.getsockname()[1])
    return ports
