"""Reading many small files of a directory never seen takes few requests."""

from __future__ import annotations

from tests.conftest import MakeMount
from tests.faultproxy import FaultProxy
from tests.harness import Node

FILES = 200


def test_small_files_of_a_directory_are_fetched_together(node: Node, make_mount: MakeMount) -> None:
    first = make_mount(node, node.create_bucket("small"))
    (first.path / "directory").mkdir()
    bodies = {f"file{number:03d}": f"content {number}\n".encode() * 20 for number in range(FILES)}
    for name, body in bodies.items():
        (first.path / "directory" / name).write_bytes(body)
    first.sync()
    with FaultProxy(node.url) as proxy:
        second = make_mount(node, "small", url=proxy.url)
        found = {path.name: path.read_bytes() for path in sorted((second.path / "directory").iterdir())}
        assert found == bodies
        assert proxy.count("GET", r"/chunks/[0-9a-f]+$") + proxy.count("POST", "/chunks/read") <= 4
