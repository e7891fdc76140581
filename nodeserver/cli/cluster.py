"""``nodeserver cluster``: several nodes on this machine, for trying things out."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nodeserver.datadir import DataDir
from nodeserver.layout import ADDRESS

ZONES = 3


@click.command()
@click.option("--nodes", type=click.IntRange(min=1, max=50), default=5, show_default=True, help="How many.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cluster"),
    show_default=True,
    help="Where each gets a directory.",
)
@click.option("--port", type=click.IntRange(0, 65000), default=7100, show_default=True, help="Of the first; 0: any.")
def cluster(nodes: int, data: Path, port: int) -> None:
    """Run a cluster on this machine until Ctrl-C: each node a process with a data directory of its own.

    The first has the metadata. The same command again finds everything as it was.
    """
    program = [sys.executable, "-m", "nodeserver", "serve"]
    with contextlib.ExitStack() as stack:
        first = data / "node1"
        started = [(first, stack.enter_context(_node(program, first, port, "z1")))]
        url = (first / ADDRESS).read_text().strip()
        token = DataDir(first.resolve()).keys().mint("join", "join", 3600)
        for number in range(2, nodes + 1):
            options = ["--join", url, "--join-token", token]
            listen = port + number - 1 if port else 0
            place, zone = data / f"node{number}", f"z{(number - 1) % ZONES + 1}"
            started.append((place, stack.enter_context(_node(program, place, listen, zone, *options))))
        click.echo(f"\n{nodes} nodes run. To use them, in another terminal:")
        click.echo(f"  mountfs mount {url} MOUNTPOINT --token-file {first / 'admin.token'}")
        click.echo(f"  nodeserver nodes --data {first}")
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            _tell_of_ends(started)


def _tell_of_ends(started: list[tuple[Path, subprocess.Popen[str]]]) -> None:
    """Say which nodes end, until all have."""
    with selectors.DefaultSelector() as ends:
        for data, process in started:
            ends.register(os.pidfd_open(process.pid), selectors.EVENT_READ, (data, process))
        while ends.get_map():
            for key, _ in ends.select():
                ends.unregister(key.fd)
                os.close(key.fd)
                data, process = key.data
                code = process.wait()
                how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
                click.echo(f"{data}: ended {how}; the others go on, the same command starts all again")


@contextlib.contextmanager
def _node(program: list[str], data: Path, port: int, zone: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running node; it is told to stop at the end. Raises ``click.ClickException`` when it does not start."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    listen = ["--data", str(data), "--listen", f"127.0.0.1:{port}", "--zone", zone]
    # Sessions of their own: Ctrl-C is for this process, which stops them in order.
    process = subprocess.Popen(  # noqa: S603 - this very program
        [*program, *listen, *options], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line.startswith("ready "):
            raise click.ClickException(f"the node on {data} did not start")
        click.echo(f"{data}: {line.removeprefix('ready ')}, zone {zone}, process {process.pid}")
        yield process
    finally:
        process.terminate()
        process.wait()
