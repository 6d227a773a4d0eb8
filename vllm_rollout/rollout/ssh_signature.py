"""Signatures as `ssh-keygen -Y sign` makes them, by Ed25519 keys (OpenSSH, PROTOCOL.sshsig)."""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from textwrap import wrap

from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy.signing import ED25519

_MAGIC = b"SSHSIG"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_HASHES = (b"sha512", b"sha256")
_LONGEST = 4096


class UnprovedError(UsageError):
    """A signature or a token that does not prove what it was given for."""


def verified_key(signature: str, statement: bytes, namespace: str) -> bytes:
    """Return the public key (32 bytes) by which `statement` is signed for `namespace`.

    Raises:
        UnprovedError: it is no such signature, or not of that statement.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key, signed_for, hash_name, raw = _parsed(signature)
        digest = hashlib.new(hash_name.decode(), statement).digest()
        public = Ed25519PublicKey.from_public_bytes(key)
    except (ValueError, IndexError) as error:
        raise UnprovedError("its signature is not an SSH signature by an Ed25519 key") from error
    if signed_for != namespace.encode():
        raise UnprovedError(f"its signature is for another purpose than {namespace}")
    try:
        public.verify(raw, _to_sign(namespace, hash_name, digest))
    except InvalidSignature as error:
        raise UnprovedError(
            "its signature is of another statement than this, or was changed"
        ) from error
    return key


def sign(private_key: bytes, statement: bytes, namespace: str) -> str:
    """Return the signature of `statement` by an Ed25519 private key, in the format of a file.

    Raises:
        UsageError: it is no such key, or has a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_ssh_private_key,
    )

    openssh = b"BEGIN OPENSSH PRIVATE KEY" in private_key
    try:
        key = (load_ssh_private_key if openssh else load_pem_private_key)(private_key, None)
    except TypeError as error:
        raise UsageError(
            "the key has a passphrase",
            remedy="Sign with ssh-keygen, which asks for it: --statement prints what to sign.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("the key cannot be read", remedy="Give a private key file.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("the key is no Ed25519 key", remedy="Make one: ssh-keygen -t ed25519")
    hash_name = _HASHES[0]
    digest = hashlib.new(hash_name.decode(), statement).digest()
    raw = key.sign(_to_sign(namespace, hash_name, digest))
    blob = _MAGIC + (1).to_bytes(4)
    public = ED25519 + key.public_key().public_bytes_raw()
    for part in (public, namespace.encode(), b"", hash_name, ED25519[:15] + _field(raw)):
        blob += _field(part)
    return "\n".join([_BEGIN, *wrap(b64encode(blob).decode(), 70), _END, ""])


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a public key, as `ssh-keygen -l` prints it."""
    digest = hashlib.sha256(ED25519 + key).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


def name_of_key(key: bytes, names: Mapping[str, str]) -> str:
    """Return which of the policy's keys, by name, that is.

    Raises:
        UnprovedError: none.
    """
    for name, line in names.items():
        if b64decode(line.split()[1]) == ED25519 + key:
            return name
    raise UnprovedError(
        f"it is signed by the key {fingerprint(key)}, which the policy does not name"
    )


def _parsed(signature: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return key, namespace, name of the hash and raw signature.

    Raises:
        ValueError: it is none, or by a key or hash of another kind.
    """
    text = signature.strip()
    if len(text) > _LONGEST or not (text.startswith(_BEGIN) and text.endswith(_END)):
        raise ValueError("no signature")
    blob = b64decode("".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    if not blob.startswith(_MAGIC + (1).to_bytes(4)):
        raise ValueError("another format")
    key, namespace, reserved, hash_name, inner = _fields(blob[10:], 5)
    kind, raw = _fields(inner, 2)
    if not key.startswith(ED25519) or len(key) != len(ED25519) + 32 or kind != b"ssh-ed25519":
        raise ValueError("another kind of key")
    if reserved or hash_name not in _HASHES or len(raw) != 64:
        raise ValueError("another format")
    return key[len(ED25519) :], namespace, hash_name, raw


def _fields(blob: bytes, number: int) -> list[bytes]:
    """Split a blob into so many strings with their lengths before them, and nothing after."""
    found = []
    for _ in range(number):
        end = 4 + int.from_bytes(blob[:4])
        if len(blob) < end or end < 4:
            raise ValueError("cut short")
        found.append(blob[4:end])
        blob = blob[end:]
    if blob:
        raise ValueError("something follows")
    return found


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4) + value


def _to_sign(namespace: str, hash_name: bytes, digest: bytes) -> bytes:
    parts = (namespace.encode(), b"", hash_name, digest)
    return _MAGIC + b"".join(_field(part) for part in parts)
