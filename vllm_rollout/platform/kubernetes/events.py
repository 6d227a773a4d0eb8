"""Events of a namespace, by age."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.symptoms import Event
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """An event, and the object it is about."""

    kind: str
    name: str
    uid: str
    event: Event


def list_events(api: KubernetesApi, namespace: str) -> list[ObjectEvent]:
    """The namespace's events, oldest first; none if barred."""
    try:
        with api.doing("list", f"events in namespace {namespace}"):
            found = api.core.list_namespaced_event(namespace, _request_timeout=TIMEOUT_SECONDS)
    except RolloutError:
        return []
    now = datetime.now(UTC)
    # Times are whole seconds; of the same second, what was written later is newer.
    items = sorted(found.items, key=lambda e: (-_age(e, now), int(e.metadata.resource_version)))
    return [
        ObjectEvent(
            kind=each.involved_object.kind or "",
            name=each.involved_object.name or "",
            uid=each.involved_object.uid or "",
            event=Event(each.reason or "", redact(each.message or ""), _age(each, now)),
        )
        for each in items
    ]


def _age(event: Any, now: datetime) -> float:
    """How long ago it was seen last: a series is one event that goes on."""
    series = event.series and event.series.last_observed_time
    last = series or event.last_timestamp or event.event_time or event.metadata.creation_timestamp
    return max(0.0, (now - last).total_seconds()) if last else 0.0


def seconds_since(text: str, now: datetime) -> float | None:
    """Seconds from a time of the API server's; negative for one to come, None where it is none."""
    try:
        return (now - datetime.fromisoformat(text)).total_seconds()
    except (ValueError, TypeError):
        return None
