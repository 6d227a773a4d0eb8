"""Requests of each kind of status page: Atlassian's Statuspage, and any other by templates."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from vllm_rollout.http_client import HttpAnswer, HttpError
from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy.notifications import Channel, MessageKind, PageRequest
from vllm_rollout.rollout.http_delivery import NotDeliveredError, Request, key_of
from vllm_rollout.rollout.notification_format import Message, filled, json_body, page_text
from vllm_rollout.variables import secret_from

_LONGEST_ID = 200


class Page(Protocol):
    """The requests of one kind of status page for one message."""

    @property
    def can_find(self) -> bool:
        """False where a lost opening is sent again, as the page takes it for the same."""

    def opening(self, rollout: str) -> Request:
        """Return the request that opens it; `rollout` is the run that began the rollout."""

    def opened_id(self, answer: HttpAnswer, rollout: str) -> str:
        """Return the id in its answer, or ""."""

    def finding(self, rollout: str) -> Request:
        """Return the request that finds it."""

    def found_id(self, answer: HttpAnswer, rollout: str) -> str:
        """Return the id in that answer, or ""."""

    def update(self, rollout: str, item_id: str, *, reopens: bool) -> Request | None:
        """Return the request that updates the one of that id, if there is a request."""

    def close(self, rollout: str, item_id: str) -> Request:
        """Return the request that closes it."""


def page_of(channel: Channel, message: Message, template: Path | None, *, message_id: str) -> Page:
    """Return the requests of the channel's kind for `message`; `message_id` is each attempt's.

    Raises:
        UsageError: the template cannot be used.
    """
    text = page_text(message, template)
    if channel.kind == "statuspage":
        return _Statuspage(message, channel, text)
    return _Templated(message, channel, text, message_id)


@dataclass(frozen=True, slots=True)
class _Statuspage:
    """Atlassian Statuspage. What is opened has the run in its metadata, by which it is found."""

    message: Message
    channel: Channel
    text: str
    can_find: bool = True

    @property
    def _opens(self) -> str:
        return self.channel.opens or "maintenance"

    def opening(self, rollout: str) -> Request:
        message = self.message
        incident: dict[str, Any] = {
            "name": f"Rollout of {message.model} to {message.environment}",
            **self._said(ends=False),
            **self._components(ends=False),
            "metadata": {_METADATA: {"run_id": rollout, "channel": self.channel.name}},
        }
        if self._opens == "maintenance":
            until = message.at + max(message.expected, _SHORTEST)
            incident |= {
                "scheduled_for": message.at.isoformat(),
                "scheduled_until": until.isoformat(),
                "scheduled_auto_in_progress": False,
                "scheduled_auto_completed": False,
            }
        return self._request("POST", "", incident)

    def opened_id(self, answer: HttpAnswer, rollout: str) -> str:  # noqa: ARG002 - of others
        return _id_at(answer, "id")

    def finding(self, rollout: str) -> Request:  # noqa: ARG002 - all are listed
        return self._request("GET", "?limit=100", None)

    def found_id(self, answer: HttpAnswer, rollout: str) -> str:
        try:
            incidents = answer.json(list[dict[str, Any]])
        except HttpError:
            raise NotDeliveredError("its list of incidents cannot be read") from None
        name = self.channel.name
        for number, each in enumerate(incidents):
            with suppress(KeyError, TypeError, AttributeError):
                of = each["metadata"][_METADATA]
                # Two channels may have a page in common.
                if of["run_id"] == rollout and of.get("channel", name) == name:
                    return _id_at(answer, f"{number}.id")
        return ""

    def update(self, rollout: str, item_id: str, *, reopens: bool) -> Request | None:  # noqa: ARG002
        update = self._said(ends=False)
        if reopens or self.message.kind is not MessageKind.STEP:
            update |= self._components(ends=False)
        return self._request("PATCH", f"/{_within_url(item_id)}", update)

    def close(self, rollout: str, item_id: str) -> Request:  # noqa: ARG002 - the id is enough
        closed = {**self._said(ends=True), **self._components(ends=True)}
        return self._request("PATCH", f"/{_within_url(item_id)}", closed)

    def _said(self, *, ends: bool) -> dict[str, Any]:
        # Subscribers hear of beginning, end and failure, and not of each step.
        heard = self.message.kind is not MessageKind.STEP
        status, _ = _STATUS[self._opens][ends]
        return {"status": status, "body": self.text, "deliver_notifications": heard}

    def _components(self, *, ends: bool) -> dict[str, Any]:
        _, status = _STATUS[self._opens][ends]
        ids = list(self.channel.components or ())
        return {"component_ids": ids, "components": dict.fromkeys(ids, status)} if ids else {}

    def _request(self, method: str, path: str, incident: dict[str, Any] | None) -> Request:
        return Request(
            reads=method != "PATCH",
            method=method,
            path=f"/v1/pages/{self.channel.page_id}/incidents{path}",
            body=b"" if incident is None else json_body({"incident": incident}),
            headers={"Authorization": f"OAuth {key_of(self.channel)}"},
        )


_METADATA = "vllm_rollout"
_SHORTEST = timedelta(minutes=1)
_STATUS = {
    "maintenance": (("in_progress", "under_maintenance"), ("completed", "operational")),
    "incident": (("identified", "degraded_performance"), ("resolved", "operational")),
}
"""Its status and that of its components: while it is open, and closed."""


@dataclass(frozen=True, slots=True)
class _Templated:
    """Any other page, by the channel's own requests."""

    message: Message
    channel: Channel
    text: str
    message_id: str

    @property
    def can_find(self) -> bool:
        return self.channel.find is not None

    def opening(self, rollout: str) -> Request:
        sent = self._key(rollout)
        return self._request(self.channel.open or PageRequest(), rollout, sent=sent)

    def opened_id(self, answer: HttpAnswer, rollout: str) -> str:
        where = self.channel.open.id_from if self.channel.open else None
        return _id_at(answer, where) if where else self._key(rollout)

    def finding(self, rollout: str) -> Request:
        return self._request(self.channel.find or PageRequest(), rollout)

    def found_id(self, answer: HttpAnswer, rollout: str) -> str:  # noqa: ARG002 - it was asked for
        where = self.channel.find.id_from if self.channel.find else None
        return _id_at(answer, where or "")

    def update(self, rollout: str, item_id: str, *, reopens: bool) -> Request | None:  # noqa: ARG002
        if self.channel.update is None:
            return None
        return self._request(self.channel.update, rollout, item_id, sent=self.message_id)

    def close(self, rollout: str, item_id: str) -> Request:
        request = self.channel.close or PageRequest()
        return self._request(request, rollout, item_id, sent=self.message_id)

    def _key(self, rollout: str) -> str:
        # Another channel may have the same page.
        where = f"{self.message.model}-{self.message.environment}"
        return f"vllm-rollout-{where}-{rollout}-{self.channel.name}"

    def _request(
        self, request: PageRequest, rollout: str, item_id: str = "", *, sent: str = ""
    ) -> Request:
        more = {"id": item_id, "key": self._key(rollout), "message": self.text}
        what = f"a template of channel {self.channel.name}"
        body = filled(request.body or "", self.message, _within_json, what=what, **more)
        try:
            sent_body = json_body(json.loads(body)) if body else b""
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{what} makes no JSON: {error}") from None
        return Request(
            reads=request.id_from is not None,
            method=request.method,
            path=filled(request.path, self.message, _within_url, what=what, **more),
            body=sent_body,
            headers={**self._headers(), **({"Idempotency-Key": sent} if sent else {})},
        )

    def _headers(self) -> dict[str, str]:
        by_variable, by_file = self.channel.headers_env or {}, self.channel.headers_file or {}
        return {
            **{
                name: secret_from(each, None, f"header {name}")
                for name, each in by_variable.items()
            },
            **{name: secret_from(None, each, f"header {name}") for name, each in by_file.items()},
        }


def _within_json(text: str) -> str:
    return json.dumps(text)[1:-1]


_within_url = partial(quote, safe="")


def _id_at(answer: HttpAnswer, where: str) -> str:
    """Return what the answer has at a path such as `data.0.id`; "" where it has no id there."""
    try:
        found = answer.json(object)
    except HttpError:
        return ""
    for part in where.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError, ValueError):
            return ""
    usable = isinstance(found, str | int) and not isinstance(found, bool)
    text = str(found) if usable else ""
    return text if len(text) <= _LONGEST_ID and text.strip(".") else ""
