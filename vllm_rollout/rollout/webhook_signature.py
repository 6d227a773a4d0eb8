"""Standard Webhooks signatures: HMAC-SHA256 over message id, time and body.

`webhook-signature: v1,<base64>` signs `<webhook-id>.<webhook-timestamp>.<body>`, as in
https://github.com/standard-webhooks/standard-webhooks (`spec/standard-webhooks.md`). Its Python
package brings five more packages for these few lines, so they are here.

`X-Vllm-Rollout-Signature: t=<Unix seconds>,v1=<hex>` is the header of before, HMAC-SHA256 of
`<Unix seconds>.<body>`. It is sent for one version more.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
HEADER = "X-Vllm-Rollout-Signature"
_PREFIX = "whsec_"
_SECONDS = re.compile(r"[0-9]{1,15}")
_FORM = re.compile(r"t=(\d{1,15}),v1=([0-9a-f]{64})")


def signature_headers(
    body: bytes, secret: str, *, message_id: str, at_seconds: int
) -> dict[str, str]:
    """The headers that sign `body`, sent at `at_seconds` of Unix time.

    `message_id` is the same in each attempt to deliver the message.

    Raises:
        ValueError: `secret` begins with `whsec_` and no base64 follows.
    """
    return {
        ID: message_id,
        TIMESTAMP: str(at_seconds),
        SIGNATURE: _signature(body, secret, message_id, str(at_seconds)),
        HEADER: sign(body, secret.encode(), at_seconds=at_seconds),
    }


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    *,
    now_seconds: float,
    tolerance_seconds: float = 300.0,
) -> bool:
    """Return True if the `webhook-` headers sign `body`, at most the tolerance old or ahead.

    The comparison takes as long for a wrong signature as for a right one.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message_id, at, signatures = (given.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    if not message_id or not _SECONDS.fullmatch(at):
        return False
    expected = _signature(body, secret, message_id, at).encode()
    found = [hmac.compare_digest(expected, each.encode()) for each in signatures.split(" ")]
    return any(found) and abs(now_seconds - int(at)) <= tolerance_seconds


def sign(body: bytes, key: bytes, *, at_seconds: int) -> str:
    """The value of the header of before for `body`, sent at `at_seconds` of Unix time."""
    return f"t={at_seconds},v1={_digest(body, key, at_seconds)}"


def is_genuine(
    header: str, body: bytes, key: bytes, *, now_seconds: float, tolerance_seconds: float = 300.0
) -> bool:
    """Return True if the old `header` signs `body` and is at most the tolerance old (or ahead).

    The comparison takes as long for a wrong signature as for a right one.
    """
    found = _FORM.fullmatch(header)
    if found is None:
        return False
    at_seconds = int(found[1])
    right = hmac.compare_digest(_digest(body, key, at_seconds), found[2])
    return right and abs(now_seconds - at_seconds) <= tolerance_seconds


def _signature(body: bytes, secret: str, message_id: str, at: str) -> str:
    signed = hmac.digest(_key(secret), f"{message_id}.{at}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(signed).decode('ascii')}"


def _key(secret: str) -> bytes:
    """The key's bytes: base64 after `whsec_`, any other text as it stands."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    if not key:
        raise ValueError(f"nothing follows {_PREFIX}")
    return key


def _digest(body: bytes, key: bytes, at_seconds: int) -> str:
    return hmac.new(key, str(at_seconds).encode() + b"." + body, hashlib.sha256).hexdigest()
