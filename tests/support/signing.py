"""Keys and tokens of people and CI systems that exist in tests alone."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import OKPAlgorithm

ISSUER = "https://token.actions.githubusercontent.com"
SUBJECT = "repo:acme/llm:environment:qa"


def key_of(owner: str) -> Ed25519PrivateKey:
    """The key of an owner: always the same."""
    return Ed25519PrivateKey.from_private_bytes(owner.encode().ljust(32, b".")[:32])


def private_file(owner: str) -> bytes:
    """That key as ssh-keygen keeps it."""
    return key_of(owner).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def public_line(owner: str) -> str:
    """Its public part, as a `.pub` file has it."""
    key = key_of(owner).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " somebody@here"


def jwks(folder: Path, owner: str = "issuer", **more: Any) -> Path:
    """A file with the public key of an issuer."""
    path = folder / "jwks.json"
    key = json.loads(OKPAlgorithm.to_jwk(key_of(owner).public_key()))
    path.write_text(json.dumps({"keys": [{**key, "kid": "one", "alg": "EdDSA", **more}]}))
    return path


def token(audience: str, at: datetime, *, owner: str = "issuer", **claims: Any) -> str:
    """A token as a CI system gives it, good for five minutes."""
    header = {"kid": claims.pop("kid", "one")}
    content = {
        "iss": ISSUER, "aud": audience, "sub": SUBJECT, "actor": "grace",
        "iat": int(at.timestamp()), "nbf": int(at.timestamp()),
        "exp": int((at + timedelta(minutes=5)).timestamp()), **claims,
    }  # fmt: skip
    return jwt.encode(content, key_of(owner), algorithm="EdDSA", headers=header)
