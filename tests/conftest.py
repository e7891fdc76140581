"""Fixtures that start the real programs: ``node`` servers and mounts of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Mount, Node, tail
from tests.nodeserver.postgres import Postgres, postgres, programs

MakeNode = Callable[..., Node]
MakeMount = Callable[..., Mount]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plain", action="store_true", help="run the tests of programs and the model on a plain directory instead"
    )
    parser.addoption(
        "--metadata",
        choices=["some", "sqlite", "postgresql", "both"],
        default="some",
        help="where node servers keep metadata: SQLite, and PostgreSQL too for some tests or for all of the server's",
    )
    parser.addoption("--soak", type=int, default=1, metavar="N", help="N times the rounds of random tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite: looks into the files of the metadata's SQLite")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests on the databases that ``--metadata`` says."""
    if "metadata_engine" not in metafunc.fixturenames or "postgres_server" in metafunc.fixturenames:
        return  # the latter uses both as it likes
    choice = metafunc.config.getoption("metadata")
    if metafunc.definition.get_closest_marker("sqlite"):
        choice = "sqlite"
    if choice == "some":
        choice = "both" if getattr(metafunc.module, "BOTH_ENGINES", False) else "sqlite"
    engines = ["sqlite", "postgresql"] if choice == "both" else [choice]
    if engines != ["sqlite"]:
        metafunc.parametrize("metadata_engine", engines, indirect=True, scope="module")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that all tests share; each takes databases of its own."""
    if programs() is None:
        pytest.skip("needs PostgreSQL")
    with postgres() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def metadata_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The database that the node servers of the test keep their metadata in; each has one of its own."""
    name: str = getattr(request, "param", "sqlite")
    if name == "postgresql":
        Node.new_database = request.getfixturevalue("postgres_server").create
    yield name
    Node.new_database = None


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> int:
    """The factor for the rounds of random tests."""
    return int(request.config.getoption("soak"))


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Starts node servers; they end with the test."""
    yield from _nodes(tmp_path)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A running node server."""
    return make_node()


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Mounts a node's bucket: ``make_mount(node, bucket)``; see `_mounts`."""
    yield from _mounts(tmp_path)


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory, metadata_engine: str) -> Iterator[Node]:
    """A node server that the tests of a module share."""
    for make in _nodes(tmp_path_factory.mktemp("node")):
        yield make()


@pytest.fixture(scope="module")
def make_module_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeMount]:
    """As ``make_mount``, for mounts that the tests of a module share."""
    yield from _mounts(tmp_path_factory.mktemp("mounts"))


def _nodes(tmp_path: Path) -> Iterator[MakeNode]:
    nodes: list[Node] = []

    def make(data: Path | None = None, **how: Any) -> Node:
        node = Node(data or tmp_path / f"node{len(nodes)}", **how)
        nodes.append(node)
        return node.start()

    yield make
    for node in nodes:
        node.destroy()


def _mounts(tmp_path: Path) -> Iterator[MakeMount]:
    """Yields ``make(node, bucket=None, *, start=True, url=…, state=…, options=…, …)``.

    Each mount gets a mount point and an empty state directory of its own. After the test all of them must have
    logged no traceback, but for those made with ``raises=True``.
    """
    mounts: list[Mount] = []
    numbers = itertools.count()

    def make(node: Node, bucket: str | None = None, *, start: bool = True, **how: Any) -> Mount:
        number = next(numbers)
        url = how.pop("url", node.url) + (f"/{bucket}" if bucket else "")
        mount = Mount(
            url,
            how.pop("path", tmp_path / f"mount{number}"),
            token_file=how.pop("token_file", node.token_file),
            state=how.pop("state", tmp_path / f"state{number}"),
            **how,
        )
        mounts.append(mount)
        return mount.start() if start else mount

    try:
        yield make
    finally:
        for mount in mounts:
            mount.destroy()
    for mount in mounts:
        if mount.log.exists() and not mount.raises:
            assert "Traceback" not in mount.log.read_text(errors="replace"), tail(mount.log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemons' logs with a failed test."""
    report = yield
    if report.failed:
        for mount in Mount.live:
            report.sections.append((f"log of {mount.path}", tail(mount.log)))
    return report
