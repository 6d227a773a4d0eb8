"""Signed messages: who receives one can tell that it is the suite's, whole, and not an old one.

The header `X-Vllm-Rollout-Signature: t=<Unix seconds>,v1=<hex>` carries HMAC-SHA256 of
`<Unix seconds>.<body>` under a key that both sides know.
"""

import hashlib
import hmac
import re

HEADER = "X-Vllm-Rollout-Signature"
_FORM = re.compile(r"t=(\d{1,15}),v1=([0-9a-f]{64})")


def sign(body: bytes, key: bytes, *, at_seconds: int) -> str:
    """The header's value for `body`, sent at `at_seconds` of Unix time."""
    return f"t={at_seconds},v1={_digest(body, key, at_seconds)}"


def is_genuine(
    header: str, body: bytes, key: bytes, *, now_seconds: float, tolerance_seconds: float = 300.0
) -> bool:
    """Whether `header` signs `body` under `key` and is at most the tolerance old (or ahead).

    The comparison takes as long for a wrong signature as for a right one.
    """
    found = _FORM.fullmatch(header)
    if found is None:
        return False
    at_seconds = int(found[1])
    right = hmac.compare_digest(_digest(body, key, at_seconds), found[2])
    return right and abs(now_seconds - at_seconds) <= tolerance_seconds


def _digest(body: bytes, key: bytes, at_seconds: int) -> str:
    return hmac.new(key, str(at_seconds).encode() + b"." + body, hashlib.sha256).hexdigest()
