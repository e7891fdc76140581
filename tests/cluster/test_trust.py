"""What nodes may do, what they are shown, and that a node is nothing but a node."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt

from nodeserver.access.tokens import Keys
from nodeserver.protocol.ids import new_id
from tests.cluster.conftest import MakeCluster
from tests.cluster.nodes import Cluster
from tests.conftest import MakeMount
from tests.harness import Node, eventually
from tests.nodeserver.api import Api


def ask(url: str, token: str, method: str, path: str, body: object = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.request(
        method, f"{url}/v1{path}", headers=headers, json=body, timeout=30, trust_env=False, verify=False
    )


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def keys_of(node: Node) -> Keys:
    """The signing key of a server with metadata."""
    audience = json.loads((node.data / "node.json").read_text())["id"]
    return Keys((node.data / "signing.key").read_bytes(), audience)


def member(url: str, **said: object) -> dict[str, object]:
    """What a node says, as JSON has it."""
    return {"id": base64.b64encode(new_id()).decode(), "url": url, "version": "1", "roles": ["chunks"], **said}


def hexadecimal(text: str) -> str:
    return base64.b64decode(text).hex()


def test_a_node_may_do_nothing_but_be_one(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first, one, other = cluster.nodes
    cluster.first.create_bucket("docs")
    own = claims(one.token)
    assert own["right"] == "node"
    assert 29 * 86_400 < own["exp"] - own["iat"] <= 30 * 86_400
    for method, path in (
        ("GET", "/buckets"), ("GET", "/buckets/docs"), ("GET", "/buckets/docs/changes"), ("DELETE", "/buckets/docs"),
        ("POST", "/buckets/docs/commits"), ("GET", "/nodes"), ("GET", "/cluster/tokens"), ("GET", "/pieces"),
        ("POST", f"/nodes/{cluster.id_of(other)}"), ("GET", "/status"), ("GET", "/workers"),
    ):  # fmt: skip
        assert ask(first.url, one.token, method, path, {}).status_code == 403, path
    assert ask(other.url, one.token, "GET", "/pieces").status_code == 403
    assert ask(first.url, one.token, "GET", "/cluster").status_code == 200
    assert ask(one.url, one.token, "GET", "/workers").status_code == 200  # whoever reads its data directory
    pretended = {"member": member("http://127.0.0.1:9"), "epoch": 0}
    assert ask(first.url, one.token, "POST", "/cluster/beat", pretended).status_code == 403
    # With a token for joining, nobody takes the place of a node that is there, least of all a server's.
    for victim in (other, first):
        id_ = base64.b64encode(bytes.fromhex(cluster.id_of(victim))).decode()
        taken = {"member": member("http://127.0.0.1:9", id=id_)}
        assert ask(first.url, cluster.join_token(), "POST", "/cluster/join", taken).status_code == 403

    # What a client shows a node is good there and nowhere else.
    given = ask(first.url, first.token, "GET", "/cluster/tokens").json()["tokens"]
    tokens = {hexadecimal(node): token for node, token in given.items()}
    assert set(tokens) == {cluster.id_of(one), cluster.id_of(other)}
    for_one = tokens[cluster.id_of(one)]
    assert ask(one.url, for_one, "GET", "/pieces").status_code == 200
    assert ask(one.url, for_one, "GET", "/workers").status_code == 403
    for node in (other, first):
        assert ask(node.url, for_one, "GET", "/pieces").status_code == 401
    reader = keys_of(first).mint("ada", "read", 100)
    read = ask(first.url, reader, "GET", "/cluster/tokens").json()
    assert read["seconds"] <= 100
    assert {claims(token)["right"] for token in read["tokens"].values()} == {"fetch"}

    # A node of an earlier release has a token for everything: it counts as a node's, and another takes its place.
    old = keys_of(first).mint(f"node {cluster.id_of(one)}", "admin")
    assert ask(first.url, old, "GET", "/buckets").status_code == 403
    assert ask(first.url, old, "GET", "/cluster").status_code == 200
    one.stop()
    joined = json.loads((one.data / "cluster.json").read_text())
    (one.data / "cluster.json").write_text(json.dumps(joined | {"token": old}))
    (one.data / "admin.token").write_text(old)
    one.options = one.options[: one.options.index("--join")]
    one.start()
    kept = one.data / "cluster.json"
    eventually(lambda: json.loads(kept.read_text())["token"] != old, 30, "its token is renewed")
    assert claims(one.token)["right"] == "node"
    assert json.loads(kept.read_text())["token"] == one.token

    # After its removal it is nobody, everywhere.
    removed, last = old, one.token
    one.stop()
    code, said = cluster.command("node", "remove", cluster.id_of(one), "--apply", "--lose-data")
    assert code == 0, said
    for token in (removed, last):
        assert ask(first.url, token, "GET", "/cluster").status_code == 403
        eventually(lambda: ask(other.url, token, "GET", "/cluster").status_code == 403, 20)  # noqa: B023


def test_what_a_node_says_of_itself_is_checked(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    first, node = cluster.nodes
    url = "http://127.0.0.1:9"
    addresses = (
        "", "file:///etc/passwd", "ftp://host:1", "http://", "http://user:word@host:1", "http://@host", "http://host:0",
        "http://host:65536", "http://host:x", "http://host/?a=b", "http://host/#x", "http://ho st:1",
        "http://host:1\r\nX: y", "http://h\u00f6st:1", "host:1", "http://h" + "o" * 300,
    )  # fmt: skip
    figures: list[dict[str, object]] = [
        {"capacity_bytes": (1 << 64) - 1}, {"free_bytes": -1}, {"used_bytes": 1 << 63}, {"pieces": -5},
        {"weight": 0.0}, {"weight": -1.0}, {"weight": 1e300}, {"roles": []}, {"roles": ["root"]},
        {"roles": ["metadata", "chunks"]}, {"zone": "z" * 300}, {"version": "1\x1b[2J"},
        {"id": base64.b64encode(b"short").decode()},
    ]  # fmt: skip
    wrong = [*map(member, addresses), *(member(url, **bad) for bad in figures)]
    for said in wrong:
        answer = ask(first.url, cluster_token(cluster), "POST", "/cluster/join", {"member": said})
        assert answer.status_code == 400, (said, answer.text)
    own = base64.b64encode(bytes.fromhex(cluster.id_of(node))).decode()
    beat = {"member": member(node.url, id=own, capacity_bytes=(1 << 64) - 1), "epoch": 0}
    assert ask(first.url, node.token, "POST", "/cluster/beat", beat).status_code == 400
    beat = {"member": member(node.url, id=own), "epoch": 0, "damaged": [["YQ==", "YQ=="]]}
    assert ask(first.url, node.token, "POST", "/cluster/beat", beat).status_code == 400
    beat = {"member": member(node.url, id=own, capacity_bytes=1 << 60, free_bytes=1 << 60), "epoch": 0}
    assert ask(first.url, node.token, "POST", "/cluster/beat", beat).status_code == 200
    first.create_bucket("docs")
    for path in ("/buckets", "/server", "/buckets/docs/changes?since=0"):
        assert ask(first.url, first.token, "GET", path).status_code == 200, path


def cluster_token(cluster: Cluster) -> str:
    """As ``nodeserver token join`` prints it."""
    return keys_of(cluster.first).mint("join", "join", 3600)


@contextmanager
def listening() -> Iterator[tuple[str, set[str]]]:
    """A server that notes what it is shown and sends everybody elsewhere: its URL, and the tokens."""
    shown: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            shown.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            self.send_response(307)
            self.send_header("Location", "/v1/elsewhere")
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", shown
    finally:
        server.shutdown()
        server.server_close()


def test_a_hostile_node_is_shown_nothing_that_is_of_use_to_it(
    make_cluster: MakeCluster, make_mount: MakeMount, tmp_path: Path
) -> None:
    cluster = make_cluster(2)
    first = cluster.first
    first.create_bucket("docs")
    with listening() as (url, shown):
        hostile = member(url, capacity_bytes=1 << 40, free_bytes=1 << 40)
        joined = ask(first.url, cluster_token(cluster), "POST", "/cluster/join", {"member": hostile})
        assert joined.status_code == 200, joined.text
        node = hexadecimal(str(hostile["id"]))
        api = Api(first, "other")
        with closing(api.http):
            api.new_file(b"from the server", b"x" * 1000)
        assert shown, "the server asked it"
        shown.clear()
        mount = make_mount(first, "docs")
        (mount.path / "from a mount").write_bytes(b"y" * 100_000)
        mount.sync()
        eventually(lambda: shown, 10, "the mount asked it")
        for token in shown:
            found = claims(token)
            assert (found["right"], found["node"]) == ("keep", node)
            assert found["exp"] - found["iat"] <= 86_400
            for path in ("/buckets", "/cluster", "/pieces", "/nodes", "/elsewhere"):
                assert ask(first.url, token, "GET", path).status_code == 401
