"""Tokens."""

from __future__ import annotations

import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nodeserver.access.tokens import Forbidden, InvalidToken, Keys
from nodeserver.protocol.errors import Code
from nodeserver.protocol.wire import ChunkBatch, ChunkIds
from tests.harness import command
from tests.nodeserver.api import Api, problem

KEYS = Keys(Keys.generate(), "node")


def test_a_token_proves_who_asks() -> None:
    identity = KEYS.verify(KEYS.mint("ada", "read"))
    assert (identity.subject, identity.right, identity.expires) == ("ada", "read", None)
    identity.require("read")
    with pytest.raises(Forbidden):
        identity.require("admin")
    KEYS.verify(KEYS.mint("root", "admin")).require("admin")


def test_a_token_expires_also_when_it_was_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    token = KEYS.mint("ada", "read", 60)
    KEYS.verify(token)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(InvalidToken, match="expired"):
        KEYS.verify(token)


def _forged(**claims: object) -> str:
    good = {"sub": "eve", "aud": "node", "iat": 0, "right": "admin"}
    return jwt.encode(good | claims, Ed25519PrivateKey.generate(), algorithm="EdDSA")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "x" * 5000,
        _forged(),
        jwt.encode({"sub": "eve", "aud": "node", "right": "admin"}, "", algorithm="none"),
        jwt.encode({"sub": "eve", "aud": "node", "right": "admin"}, "s" * 32, algorithm="HS256"),
        Keys(Keys.generate(), "node").mint("eve", "admin"),
        KEYS.mint("ada", "admin", -1),
        KEYS.mint("ada", "admin")[:-4],
        KEYS.mint("ada", "root"),  # type: ignore[arg-type]
    ],
)
def test_anything_else_is_refused(token: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidToken):
            KEYS.verify(token)


def test_a_token_of_another_server_is_refused() -> None:
    pem = Keys.generate()
    with pytest.raises(InvalidToken, match="another server"):
        Keys(pem, "node").verify(Keys(pem, "other").mint("ada", "admin"))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic YTpi", "Bearer x.y.z", "Bearer \xff"])
def test_requests_without_a_valid_token(api: Api, header: str | None) -> None:
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    for method, path in (("GET", "/server"), ("PUT", "/buckets/abc"), ("GET", "/buckets/none"), ("GET", "/none")):
        answer = httpx.request(method, f"{api.node.url}/v1{path}", headers=headers, trust_env=False)
        problem(answer, Code.UNAUTHORIZED)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_to_read_cannot_write(api: Api) -> None:
    id_ = api.new_file(b"f", b"1")
    batch, chunk = api.batch(api.create(b"g")), api.put_chunk(b"2")
    made = command("nodeserver", "token", "--data", api.node.data, "--subject", "ada", "--days", "1")
    assert made.returncode == 0, made.stderr
    api.http.headers["authorization"] = f"Bearer {made.stdout.strip()}"
    assert api.names() == [b"f"]
    assert api.content(id_) == b"1"
    assert api.request("POST", "/chunks/missing", ChunkIds([chunk])).status_code == 200
    problem(api.request("POST", "/commits", batch), Code.FORBIDDEN)
    problem(api.request("PUT", "", {"id": bytes(16)}), Code.FORBIDDEN)
    problem(api.request("PATCH", "", {"quota_bytes": 1}), Code.FORBIDDEN)
    problem(api.request("DELETE", ""), Code.FORBIDDEN)
    problem(api.request("POST", "/chunks", ChunkBatch([])), Code.FORBIDDEN)
    problem(api.request("PUT", f"/chunks/{chunk.hex()}", b""), Code.FORBIDDEN)


def test_the_token_command_needs_a_data_directory(tmp_path: object) -> None:
    made = command("nodeserver", "token", "--data", f"{tmp_path}/none")
    assert made.returncode == 1
    assert made.stderr.startswith("Error: ")
