"""Tokens: JSON Web Tokens (RFC 7519) signed with Ed25519, and the identity that a valid one proves."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from typing import Literal, get_args

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

ALGORITHM = "EdDSA"
CACHE = 1024
"""Verified tokens that are remembered."""
TOKEN_MAX = 4096
"""A longer token is not looked at."""

Right = Literal["admin", "read", "join", "node", "server", "keep", "fetch"]
"""What a token says its holder is."""
Deed = Literal["admin", "read", "join", "beat", "map", "keep", "fetch"]
"""What a request does: ``keep`` and ``fetch`` are for pieces of chunks, ``beat`` and ``map`` for nodes of the cluster.
Each route names its own; who may do what stands in ``GRANTS``."""

GRANTS: dict[Right, frozenset[Deed]] = {
    "admin": frozenset(get_args(Deed)),
    "read": frozenset({"read", "map", "fetch"}),
    "join": frozenset({"join"}),
    # A node that keeps chunks alone, for itself: it says that it is there. Also where it is, as at its first join.
    "node": frozenset({"join", "beat", "map"}),
    # A server with metadata of an earlier release, at a node.
    "server": frozenset({"map", "keep", "fetch"}),
    # For the pieces of one node, which is named in the token: whoever that node is, it is of no use elsewhere.
    "keep": frozenset({"keep", "fetch"}),
    "fetch": frozenset({"fetch"}),
}
_NODE = "node "
"""What the subjects of nodes begin with; their ids follow, in hexadecimal."""


class InvalidToken(Exception):
    """A token that is malformed, forged, expired or for another server."""


class Forbidden(Exception):
    """A valid token that does not allow what was asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, proven by a token."""

    subject: str
    right: Right
    expires: float | None = None
    """Seconds since the epoch."""
    only: str = ""
    """The node that it is good for, in hexadecimal; empty: all."""

    @property
    def member(self) -> bytes | None:
        """The node that asks, if one does."""
        try:
            return bytes.fromhex(self.subject.removeprefix(_NODE)) if self.subject.startswith(_NODE) else None
        except ValueError:
            return None

    def may(self, deed: Deed) -> bool:
        """Whether it may do something."""
        return deed in GRANTS[self.right]

    def require(self, deed: Deed) -> None:
        """Raises ``Forbidden`` unless it may."""
        if not self.may(deed):
            raise Forbidden(f"the right of {self.subject} is {self.right}, and this takes {deed}")


def node_subject(node: bytes) -> str:
    """The subject of a node's tokens."""
    return f"{_NODE}{node.hex()}"


class Keys:
    """Verifies the tokens of one cluster; with its signing key, mints them."""

    def __init__(self, pem: bytes, audience: str) -> None:
        """``pem`` is the signing key or its public half. Raises ``ValueError`` when it is no Ed25519 key."""
        self._key: Ed25519PrivateKey | None = None
        if b"PRIVATE" in pem:
            key = load_pem_private_key(pem, password=None)
            if not isinstance(key, Ed25519PrivateKey):
                raise ValueError("the signing key is not an Ed25519 key")
            self._key = key
            self._public = key.public_key()
        else:
            public = load_pem_public_key(pem)
            if not isinstance(public, Ed25519PublicKey):
                raise ValueError("the public key is not an Ed25519 key")
            self._public = public
        self.audience = audience
        self._verified: OrderedDict[str, Identity] = OrderedDict()

    @property
    def public(self) -> bytes:
        """What verifies the tokens: the public key, in PEM."""
        return self._public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @staticmethod
    def generate() -> bytes:
        """A new key, in PEM."""
        return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def signs(self) -> bool:
        """Whether it can mint."""
        return self._key is not None

    def mint(self, subject: str, right: Right, lifetime: float | None = None, *, only: bytes = b"") -> str:
        """A token for ``subject``, valid for ``lifetime`` seconds; None: until the key changes. At the node ``only``,
        if one is given.

        Raises ``Forbidden`` without the signing key.
        """
        if self._key is None:
            raise Forbidden("this node has no signing key: a node with the role metadata has")
        now = int(time.time())
        claims = {"sub": subject, "aud": self.audience, "iat": now, "right": right}
        if lifetime is not None:
            claims["exp"] = now + int(lifetime)
        if only:
            claims["node"] = only.hex()
        return jwt.encode(claims, self._key, algorithm=ALGORITHM)

    def verify(self, token: str) -> Identity:
        """The identity that a token proves. Raises ``InvalidToken``.

        The signature is verified once for each token; what is remembered is only ever looked up by a whole token.
        """
        identity = self._verified.get(token)
        if identity is None:
            identity = self._verify(token)
            self._verified[token] = identity
            if len(self._verified) > CACHE:
                self._verified.popitem(last=False)
        if identity.expires is not None and identity.expires <= time.time():
            raise InvalidToken("the token has expired")
        return identity

    def _verify(self, token: str) -> Identity:
        if len(token) > TOKEN_MAX:
            raise InvalidToken("the token is too long")
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[ALGORITHM],
                audience=self.audience,
                options={"require": ["sub", "aud", "right"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError as error:
            raise InvalidToken("the token has expired") from error
        except jwt.InvalidAudienceError as error:
            raise InvalidToken("the token is for another server") from error
        except jwt.PyJWTError as error:
            raise InvalidToken("the token is not valid") from error
        if claims["right"] not in GRANTS:
            raise InvalidToken("the token grants a right that this server does not know")
        only = claims.get("node", "")
        if not isinstance(only, str):
            raise InvalidToken("the token is not valid")
        return Identity(claims["sub"], claims["right"], claims.get("exp"), only)
