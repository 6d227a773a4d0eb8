"""Alerts of PagerDuty (Events API v2) and Opsgenie.

A change of production is announced before it happens, as a change event (PagerDuty) or an alert of
the lowest priority, closed at the end (Opsgenie). What needs a person is an alert that pages,
closed by its end. Each alert has a name of its own, by model, environment and message: sent twice,
it is one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vllm_rollout.policy.notifications import Channel, MessageKind
from vllm_rollout.rollout.http_delivery import Request, key_of
from vllm_rollout.rollout.notification_format import Message, json_body, shortened, text_of

_SEVERITY = {
    MessageKind.ROLLBACK_FAILED: ("critical", "P1"),
    MessageKind.KEPT: ("error", "P2"),
    MessageKind.BLIND: ("error", "P2"),
}
"""Of the messages that page somebody: PagerDuty's severity and Opsgenie's priority."""
_INFORMATION = "P5"
_SOURCE = "vllm-rollout"
_LONGEST_SUMMARY = {"pagerduty": 1024, "opsgenie": 130}


def alerts(message: Message, channel: Channel, template: Path | None) -> Iterator[Request]:
    """Yield the requests that alert by `message`, in order.

    Raises:
        UsageError: the key is missing, or the template cannot be used.
    """
    key = key_of(channel)
    ended = channel.ended_by(message.kind)
    begins = message.kind in channel.chosen
    text = text_of(message, template)
    if channel.kind == "pagerduty":
        return _pagerduty(message, key, text, ended, begins=begins)
    return _opsgenie(message, key, text, ended, begins=begins)


def _pagerduty(
    message: Message, key: str, text: str, ended: Iterable[MessageKind], *, begins: bool
) -> Iterator[Request]:
    for kind in ended:
        if kind in _SEVERITY:  # a change event has no end
            yield _event(key, {"event_action": "resolve", "dedup_key": _name(message, kind)})
    if not begins:
        return
    payload: dict[str, Any] = {
        "summary": _summary(message, "pagerduty"),
        "source": _SOURCE,
        "timestamp": message.at.isoformat(),
        "custom_details": {**_details(message), "text": text},
    }
    if message.kind not in _SEVERITY:
        yield Request(
            path="/v2/change/enqueue", body=json_body({"routing_key": key, "payload": payload})
        )
        return
    severity, _ = _SEVERITY[message.kind]
    payload |= {"severity": severity, "component": message.model, "group": message.environment}
    alert = {"event_action": "trigger", "dedup_key": _name(message, message.kind)}
    yield _event(key, {**alert, "payload": payload, "client": _SOURCE})


def _event(key: str, event: dict[str, Any]) -> Request:
    return Request(path="/v2/enqueue", body=json_body({"routing_key": key, **event}))


def _opsgenie(
    message: Message, key: str, text: str, ended: Iterable[MessageKind], *, begins: bool
) -> Iterator[Request]:
    headers = {"Authorization": f"GenieKey {key}"}
    for name in dict.fromkeys(_name(message, kind) for kind in ended):
        note = json_body({"source": _SOURCE, "note": text})
        path = f"/v2/alerts/{quote(name, safe='')}/close?identifierType=alias"
        yield Request(path=path, body=note, headers=headers, may_be_gone=True)
    if not begins:
        return
    priority = _SEVERITY[message.kind][1] if message.kind in _SEVERITY else _INFORMATION
    alert = {
        "message": _summary(message, "opsgenie"),
        "alias": _name(message, message.kind),
        "description": text,
        "source": _SOURCE,
        "entity": f"{message.model}-{message.environment}",
        "priority": priority,
        "tags": [_SOURCE, message.environment, message.kind.value],
        "details": _details(message),
    }
    yield Request(path="/v2/alerts", body=json_body(alert), headers=headers)


def _name(message: Message, kind: MessageKind) -> str:
    what = kind.value if kind in _SEVERITY else "change"
    return f"{_SOURCE}/{message.model}/{message.environment}/{what}"


def _summary(message: Message, kind: str) -> str:
    build = f" (build {message.build})" if message.build else ""
    return shortened(f"{message.headline}{build}, by {message.who}", _LONGEST_SUMMARY[kind])


def _details(message: Message) -> dict[str, str]:
    names = ("model", "environment", "build", "run_id", "who", "reason")
    return {name: shortened(getattr(message, name), 500) for name in names}
