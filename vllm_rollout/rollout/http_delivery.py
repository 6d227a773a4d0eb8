"""One HTTP request of a notification, and whether another attempt may help where it fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from vllm_rollout.http_client import Failure, HttpAnswer, HttpClient, HttpError
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.policy.notifications import Channel, Notifications
from vllm_rollout.variables import secret_from

_MOST_BYTES = 8_000_000
"""A hundred incidents with their updates."""
_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, 420)
"""420 is what Statuspage calls too many."""
_ROOTS = {
    "statuspage": "https://api.statuspage.io",
    "pagerduty": "https://events.pagerduty.com",
    "opsgenie": "https://api.opsgenie.com",
}


class NotDeliveredError(RolloutError):
    """The message did not arrive; another attempt may, `after_seconds` at the earliest."""

    def __init__(self, why: str, *, after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.after_seconds = after_seconds


class RefusedError(RolloutError):
    """The message did not arrive, and another attempt would not either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request below the channel's URL."""

    method: str = "POST"
    path: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reads: bool = False
    """True if the body of its answer is asked for."""
    may_be_gone: bool = False
    """True if a 404 says that what is to be closed is."""


def key_of(channel: Channel) -> str:
    """Return the key of the channel's API. Raises: UsageError where it is missing."""
    return secret_from(channel.key_env, channel.key_file, "its key")


def ask(request: Request, channel: Channel, rules: Notifications) -> HttpAnswer:
    """Send the request and return the answer that took it.

    No error's text holds a URL or a key.

    Raises:
        NotDeliveredError: there is no answer, or it says to come again.
        RefusedError: it does not take it.
        UsageError: it could not be sent.
    """
    url = _joined(_url(channel), request.path)
    headers = {"Content-Type": "application/json", **request.headers}
    try:
        with HttpClient(max_bytes=_MOST_BYTES, ca_file=rules.ca_file, proxy=True) as client:
            answer = client.request(
                request.method,
                url,
                content=request.body or None,
                headers=headers,
                timeout_seconds=rules.timeout_seconds,
                read=request.reads,
            )
    except OSError as error:
        raise UsageError(f"notifications.ca_file {rules.ca_file}: {error}") from error
    except HttpError as error:
        # Its text may hold the URL, which is a secret; its kind does not.
        if error.failure is Failure.NOT_SENT:
            raise UsageError("its URL or a header cannot be used") from None
        raise NotDeliveredError(f"no answer ({error.failure})") from None
    status = answer.status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN:
        raise NotDeliveredError(f"HTTP {status}", after_seconds=_retry_after_seconds(answer))
    if status == HTTPStatus.NOT_FOUND and request.may_be_gone:
        return answer
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise RefusedError(f"HTTP {status}")
    return answer


def _url(channel: Channel) -> str:
    if not (channel.url_env or channel.url_file):
        return channel.url or _ROOTS[channel.kind]
    url = secret_from(channel.url_env, channel.url_file, "its URL")
    if not url.startswith(("http://", "https://")):
        raise UsageError("its URL does not begin with http:// or https://")
    return url


def _joined(url: str, path: str) -> str:
    """Return `url` with a path below its own; the queries of both stay."""
    if not path:
        return url
    (root, _, own), (below, _, more) = url.partition("?"), path.partition("?")
    query = "&".join(filter(None, (own, more)))
    return root.rstrip("/") + below + (f"?{query}" if query else "")


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
