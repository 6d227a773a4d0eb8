"""Delivers one message to one channel: a few attempts, spread over a deadline.

The pauses between attempts double, so that the last attempt is made shortly before the deadline. A
receiver that names a later moment (`Retry-After`) is asked again then, or at the last attempt.

A webhook's message is signed: `webhook-signature: v1,<base64>` is HMAC-SHA256 over
`<webhook-id>.<webhook-timestamp>.<body>`, as in
https://github.com/standard-webhooks/standard-webhooks (`spec/standard-webhooks.md`). Its Python
package brings five more packages for these few lines, so they are here. The header of before,
`X-Vllm-Rollout-Signature: t=<Unix seconds>,v1=<hex>`, is HMAC-SHA256 of `<Unix seconds>.<body>`; it
is sent for one version more.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from vllm_rollout.http_client import Failure, HttpAnswer, HttpClient, HttpError
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.policy.notifications import Channel, Notifications
from vllm_rollout.rollout.notification_format import Message, rendered
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command
from vllm_rollout.variables import secret_from

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


_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class NotDeliveredError(RolloutError):
    """The message did not arrive; another attempt may, `after_seconds` at the earliest."""

    def __init__(self, why: str, *, after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.after_seconds = after_seconds


class RefusedError(RolloutError):
    """The message did not arrive, and another attempt would not either."""


class Pause(Protocol):
    """Waits between two attempts."""

    def __call__(self, seconds: float, /) -> bool:
        """Wait so long at most; True if a newer message takes the place of the next attempt."""


def deliver(
    message: Message,
    channel: Channel,
    rules: Notifications,
    *,
    pause: Pause,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Send `message` to `channel`.

    Raises:
        RolloutError: it is not known to have arrived. The message holds no URL and no key.
    """
    message_id = f"msg_{secrets.token_hex(16)}"
    until = monotonic() + rules.deadline_seconds
    last_attempt_seconds = min(rules.timeout_seconds, rules.deadline_seconds / 4)
    for left in reversed(range(rules.attempts)):
        try:
            if channel.command is not None:
                _run(message, channel, rules)
            else:
                _post(message, channel, rules, message_id)
        except NotDeliveredError as error:
            spare = until - last_attempt_seconds - monotonic()
            if not left or spare <= 0:
                raise
            seconds = min(spare, max(error.after_seconds, spare / (2**left - 1)))
            if pause(seconds):
                raise
        else:
            return


def _retry_after_seconds(answer: HttpAnswer) -> float:
    """Return how long the receiver asks to wait: seconds, or a date by its own clock; else 0."""
    text = answer.header("Retry-After").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    at = _date(text)
    now = _date(answer.header("Date")) or datetime.now(UTC)
    return max(0.0, (at - now).total_seconds()) if at else 0.0


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _run(message: Message, channel: Channel, rules: Notifications) -> None:
    given = rendered(message, template=_template(channel), kind="webhook").decode()
    try:
        status, printed = run_user_command(
            channel.command or (), timeout_seconds=rules.timeout_seconds, given=given
        )
    except UserCommandError as error:
        raise NotDeliveredError(str(error)) from error
    if status != 0:
        last = printed.splitlines()[-1][:200] if printed else ""
        raise NotDeliveredError(f"its command ended with {status}: {last}")


def _post(message: Message, channel: Channel, rules: Notifications, message_id: str) -> None:
    url = secret_from(channel.url_env, channel.url_file, "its URL")
    if not url.startswith(("http://", "https://")):
        raise UsageError("its URL does not begin with http:// or https://")
    if channel.kind == "command":
        raise AssertionError("a command has no URL")
    body = rendered(message, template=_template(channel), kind=channel.kind)
    headers = {"Content-Type": "application/json"}
    if channel.secret_env or channel.secret_file:
        secret = secret_from(channel.secret_env, channel.secret_file, "its key")
        try:
            headers |= signature_headers(
                body, secret, message_id=message_id, at_seconds=int(time.time())
            )
        except ValueError:
            raise UsageError("its key begins with whsec_ and no base64 follows") from None
    try:
        with HttpClient(max_bytes=0, ca_file=rules.ca_file, proxy=True) as client:
            # Not read: what a receiver answers is nothing to us but its status.
            answer = client.request(
                "POST",
                url,
                content=body,
                headers=headers,
                timeout_seconds=rules.timeout_seconds,
                read=False,
            )
    except OSError as error:
        raise UsageError(f"notifications.ca_file {rules.ca_file}: {error}") from error
    except HttpError as error:
        # Its text may hold the URL, which is a secret; its kind does not.
        if error.failure is Failure.NOT_SENT:
            raise UsageError("its URL cannot be used") from None
        raise NotDeliveredError(f"no answer ({error.failure})") from None
    status = answer.status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        raise NotDeliveredError(f"HTTP {status}", after_seconds=_retry_after_seconds(answer))
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise RefusedError(f"HTTP {status}")


def _template(channel: Channel) -> Path | None:
    return Path(channel.template) if channel.template else None
