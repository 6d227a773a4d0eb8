"""Delivers one message to one channel: a few attempts, spread over a deadline.

The pauses between attempts double, so that the last attempt is made shortly before the deadline. A
receiver that names a later moment (`Retry-After`) is asked again then, or at the last attempt.

A webhook's message is signed as https://www.standardwebhooks.com has it. The header of before,
`X-Vllm-Rollout-Signature: t=<Unix seconds>,v1=<hex>`, is HMAC-SHA256 of `<Unix seconds>.<body>`; it
is sent for one version more.
"""

import base64
import hmac
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy.notifications import Channel, Notifications
from vllm_rollout.rollout.http_delivery import NotDeliveredError, Request, ask
from vllm_rollout.rollout.notification_format import Message, rendered
from vllm_rollout.rollout.on_call import alerts
from vllm_rollout.rollout.status_page import OpenedStore, show
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command
from vllm_rollout.variables import secret_from

_PREFIX = "whsec_"


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
    opened: OpenedStore | None = None,
) -> None:
    """Send `message` to `channel`; `opened` is what is open there, if it is a status page.

    Raises:
        RolloutError: it is not known to have arrived. The message holds no URL and no key.
    """
    message_id = f"msg_{secrets.token_hex(16)}"
    until = monotonic() + rules.deadline_seconds
    last_attempt_seconds = min(rules.timeout_seconds, rules.deadline_seconds / 4)
    for left in reversed(range(rules.attempts)):
        try:
            _attempt(message, channel, rules, message_id, opened)
        except NotDeliveredError as error:
            spare = until - last_attempt_seconds - monotonic()
            if not left or spare <= 0:
                raise
            seconds = min(spare, max(error.after_seconds, spare / (2**left - 1)))
            if pause(seconds):
                raise
        else:
            return


def _attempt(
    message: Message,
    channel: Channel,
    rules: Notifications,
    message_id: str,
    opened: OpenedStore | None,
) -> None:
    template = Path(channel.template) if channel.template else None
    if channel.is_page:
        where = {"model": message.model, "environment": message.environment}
        kept = opened or OpenedStore(None, channel=channel.name, **where)
        sent = partial(ask, channel=channel, rules=rules)
        show(message, channel, kept, sent, template=template, message_id=message_id)
    elif channel.is_on_call:
        for request in alerts(message, channel, template):
            ask(request, channel, rules)
    elif channel.kind == "command":
        _run(message, channel, rules, template)
    else:
        _post(message, channel, rules, template, message_id)


def _run(message: Message, channel: Channel, rules: Notifications, template: Path | None) -> None:
    given = rendered(message, template=template, kind="webhook").decode()
    try:
        status, printed = run_user_command(
            channel.command or (), timeout_seconds=rules.timeout_seconds, given=given
        )
    except UserCommandError as error:
        raise NotDeliveredError(str(error)) from error
    if status != 0:
        last = printed.splitlines()[-1][:200] if printed else ""
        raise NotDeliveredError(f"its command ended with {status}: {last}")


def _post(
    message: Message,
    channel: Channel,
    rules: Notifications,
    template: Path | None,
    message_id: str,
) -> None:
    body = rendered(message, template=template, kind=channel.kind)
    headers = {}
    if channel.secret_env or channel.secret_file:
        secret = secret_from(channel.secret_env, channel.secret_file, "its key")
        headers = _signature(body, secret, message_id, datetime.now(UTC))
    ask(Request(body=body, headers=headers), channel, rules)


def _signature(body: bytes, secret: str, message_id: str, at: datetime) -> dict[str, str]:
    """Return the headers that sign `body`; `message_id` is the same in each attempt."""
    from standardwebhooks import Webhook

    key = secret.encode()
    seconds = str(int(at.timestamp()))
    before = hmac.digest(key, f"{seconds}.".encode() + body, "sha256").hex()
    if secret.startswith(_PREFIX):
        given = secret.removeprefix(_PREFIX)
        try:
            key = base64.b64decode(given + "=" * (-len(given) % 4), validate=True)
        except ValueError:
            key = b""
    if not key:
        raise UsageError(f"its key begins with {_PREFIX} and no base64 follows")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": seconds,
        "webhook-signature": Webhook(key).sign(message_id, at, body.decode()),
        "X-Vllm-Rollout-Signature": f"t={seconds},v1={before}",
    }
