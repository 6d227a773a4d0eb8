"""Tokens of CI systems (OpenID Connect), verified against their issuer's public keys."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.text import shown
from vllm_rollout.policy.signing import Oidc
from vllm_rollout.rollout.ssh_signature import UnprovedError

if TYPE_CHECKING:
    from jwt import PyJWK

_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""Those of public keys alone: with a shared secret, whoever may verify could sign."""
_CLAIMS = ["iss", "aud", "sub", "iat", "exp"]
_LEEWAY = timedelta(minutes=1)
_LONGEST = 16_384
_MAX_BYTES = 1_000_000
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of a token: whom its issuer calls `subject`, and which person began that job."""

    name: str
    subject: str
    issued: datetime


ReadKeys = Callable[[str], bytes]
"""Reads an issuer's public keys, from a URL or a file."""


def verified_claims(token: str, audience: str, rules: Oidc, at: datetime, read: ReadKeys) -> Claims:
    """Return the claims of a token that was good at `at`, and is for exactly this audience.

    Raises:
        UnprovedError: it proves nothing; the text says why.
        UnreachableError: the issuer's keys cannot be had.
    """
    import jwt

    if len(token) > _LONGEST:
        raise UnprovedError("its token is too long to be one")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise UnprovedError("its token is no JSON web token") from error
    algorithm, kid = str(header.get("alg")), str(header.get("kid"))
    if algorithm not in _ALGORITHMS:
        raise UnprovedError(
            f"its token has the algorithm {shown(algorithm, 20)}, which proves nothing"
        )
    key = _key(rules, kid, read)
    if key.algorithm_name != algorithm:
        raise UnprovedError(
            f"its token has the algorithm {algorithm}, and the key {shown(kid, 60)} is for "
            f"{shown(key.algorithm_name, 20)}"
        )
    try:
        found: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=rules.issuer,
            # It was good when the word was given, which is asked below.
            options={
                "require": _CLAIMS,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except jwt.InvalidAudienceError as error:
        raise UnprovedError(
            f"its token is not for this decision: its aud is not {audience}"
        ) from error
    except jwt.InvalidIssuerError as error:
        raise UnprovedError(f"its token is not of the issuer {rules.issuer}") from error
    except jwt.PyJWTError as error:
        raise UnprovedError(f"its token does not hold: {shown(str(error), 100)}") from error
    issued, expires = _time(found["iat"]), _time(found["exp"])
    begins = max(issued, _time(found.get("nbf", found["iat"])))
    if not begins - _LEEWAY <= at <= expires + _LEEWAY:
        raise UnprovedError(
            f"its token was good from {begins:%Y-%m-%d %H:%M:%S %Z} to {expires:%H:%M:%S}, and not "
            f"at {at.astimezone(UTC):%Y-%m-%d %H:%M:%S %Z}: it has expired, or is not valid yet"
        )
    subject = str(found["sub"])
    if not any(_matches(pattern, subject) for pattern in rules.subjects):
        raise UnprovedError(f"its token is of {shown(subject)}, whom the policy does not name")
    person = found.get("actor") or found.get("user_login") or subject
    return Claims(shown(str(person)), shown(subject), issued)


def _key(rules: Oidc, kid: str, read: ReadKeys) -> "PyJWK":
    import jwt

    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(read(rules.jwks))).keys
    except (ValueError, TypeError, AttributeError, RecursionError, jwt.PyJWTError) as error:
        raise _unreadable(rules.jwks, "it is no set of keys") from error
    for key in keys:
        if key.key_id == kid and key.key_type in ("RSA", "EC", "OKP"):
            return key
    raise UnprovedError(
        f"its token is signed by the key {shown(kid, 60)}, which its issuer does not have"
    )


def read_keys(source: str) -> bytes:
    """Return an issuer's public keys as they are published.

    Raises:
        UnreachableError: they cannot be had.
    """
    try:
        if source.startswith("https://"):
            with HttpClient(max_bytes=_MAX_BYTES, proxy=True) as client:
                answer = client.get(source, timeout_seconds=_TIMEOUT_SECONDS)
            if answer.status != 200:
                raise _unreadable(source, f"HTTP {answer.status}")
            return answer.body
        with Path(source).open("rb") as file:
            return file.read(_MAX_BYTES)
    except (HttpError, OSError) as error:
        raise _unreadable(source, str(error)) from error


def _unreadable(source: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"the keys of who issues tokens, {shown(source)}, cannot be read: {shown(why)}",
        address=source,
        remedy="Correct `sign_off.oidc.jwks`, or see why it does not answer.",
    )


def _time(value: Any) -> datetime:
    try:
        return datetime.fromtimestamp(float(value), UTC)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise UnprovedError("its token has times that cannot be read") from error


def _matches(pattern: str, subject: str) -> bool:
    """Return True if `subject` is as `pattern`, in which * stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), subject) is not None
