"""Delivers one message to one channel: a few attempts, within a deadline."""

import os
import secrets
import ssl
import time
from http import HTTPStatus
from pathlib import Path

from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.policy.notifications import Channel, Notifications
from vllm_rollout.rollout.notification_format import Message, rendered
from vllm_rollout.rollout.user_command import UserCommandError, run_user_command
from vllm_rollout.rollout.webhook_signature import signature_headers

_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0


class NotDeliveredError(RolloutError):
    """The message did not arrive; another attempt may."""


class RefusedError(RolloutError):
    """The message did not arrive, and another attempt would not either."""


def deliver(message: Message, channel: Channel, rules: Notifications) -> None:
    """Send `message` to `channel`.

    Raises:
        RolloutError: it is not known to have arrived. The message holds no URL and no key.
    """
    message_id = f"msg_{secrets.token_hex(16)}"
    for attempt in Retrying(
        stop=stop_after_attempt(rules.attempts) | stop_before_delay(rules.deadline_seconds),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
        retry=retry_if_exception_type(NotDeliveredError),
        reraise=True,
    ):
        with attempt:
            if channel.command is not None:
                _run(message, channel, rules)
            else:
                _post(message, channel, rules, message_id)


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
    url = _secret(channel.url_env, channel.url_file, "URL")
    import httpx

    if not url.startswith(("http://", "https://")):
        raise UsageError("its URL does not begin with http:// or https://")
    if channel.kind == "command":
        raise AssertionError("a command has no URL")
    body = rendered(message, template=_template(channel), kind=channel.kind)
    headers = {"Content-Type": "application/json"}
    if channel.secret_env or channel.secret_file:
        secret = _secret(channel.secret_env, channel.secret_file, "key")
        try:
            headers |= signature_headers(
                body, secret, message_id=message_id, at_seconds=int(time.time())
            )
        except ValueError:
            raise UsageError("its key begins with whsec_ and no base64 follows") from None
    try:
        with (
            httpx.Client(timeout=rules.timeout_seconds, verify=_trust(rules)) as client,
            # Not read: what a receiver answers is nothing to us but its status.
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    except httpx.TransportError as error:
        # Its text may hold the URL, which is a secret; its kind does not.
        raise NotDeliveredError(f"no answer ({type(error).__name__})") from None
    except (httpx.InvalidURL, ValueError):
        raise UsageError("its URL cannot be used") from None
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        raise NotDeliveredError(f"HTTP {status}")
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise RefusedError(f"HTTP {status}")


def _template(channel: Channel) -> Path | None:
    return Path(channel.template) if channel.template else None


def _trust(rules: Notifications) -> ssl.SSLContext | bool:
    if not rules.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=rules.ca_file)
    except OSError as error:
        raise UsageError(f"notifications.ca_file {rules.ca_file}: {error}") from error


def _secret(variable: str | None, file: str | None, what: str) -> str:
    """Return the URL or key, read from the environment or a file when it is needed."""
    if variable is not None:
        if value := os.environ.get(variable, "").strip():
            return value
        raise UsageError(f"its {what} is missing: the environment variable {variable} is not set")
    try:
        return Path(file or "").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"its {what} cannot be read from {file}: {error}") from error
