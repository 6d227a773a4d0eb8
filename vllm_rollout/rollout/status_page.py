"""Status pages: one incident or maintenance for each rollout, opened, updated and closed.

What is open is kept in the store, before it is opened: the next run finds it there, and goes on
with it or closes it. An opening whose answer was lost is looked up before it is sent again. Each
message makes the page what it says, whatever did not arrive before: an update opens what is not
open yet, so that none overtakes the opening.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from vllm_rollout.http_client import HttpAnswer, HttpError
from vllm_rollout.model.errors import RolloutError, UsageError
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy.notifications import ENDINGS, Channel, MessageKind, PageRequest
from vllm_rollout.rollout.http_delivery import (
    NotDeliveredError,
    RefusedError,
    Request,
    key_of,
)
from vllm_rollout.rollout.notification_format import Message, filled, json_body, page_text
from vllm_rollout.variables import secret_from

Ask = Callable[[Request], HttpAnswer]
"""Sends a request and returns its answer, as `http_delivery.ask`."""
_LONGEST_ID = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An incident or maintenance of rollout `run_id`; without `id` it may not be opened yet.

    `closed` is an end that is none yet: a run left its rollout unfinished. `lost` is why its id
    will never be known. `by` is the message that was to open it.
    """

    run_id: str
    by: str = ""
    id: str = ""
    closed: bool = False
    lost: str = ""


_ADAPTER: TypeAdapter[Opened] = TypeAdapter(Opened)


class OpenedStore:
    """Record of the one that is open on a channel for a deployment; in memory without a store."""

    def __init__(self, store: Store | None, *, model: str, environment: str, channel: str) -> None:
        self._store, self._key = store, f"status-page/{model}/{environment}/{channel}"
        self._version: str | None = None
        self._found: Opened | None = None
        self._unsaved = False

    def read(self) -> Opened | None:
        """Return what is open. Raises: NotDeliveredError where the store cannot say."""
        if self._store is None or self._unsaved:
            return self._found
        try:
            entry = self._store.read(self._key)
            found = _ADAPTER.validate_python(entry.value) if entry and entry.value else None
        except (RolloutError, ValidationError) as error:
            raise NotDeliveredError(f"what is open there cannot be read: {error}") from error
        self._version, self._found = entry.version if entry else None, found
        return found

    def write(self, opened: Opened | None) -> None:
        """Keep it; None for nothing. Raises: NotDeliveredError where the store does not take it."""
        self._found, self._unsaved = opened, True
        if self._store is None:
            return
        value = _ADAPTER.dump_python(opened, mode="json") if opened else {}
        try:
            self._version = self._store.write(self._key, value, expect=self._version)
        except ConflictError as error:
            self._unsaved = False  # somebody else knows better
            raise NotDeliveredError(f"what is open there is another's by now: {error}") from error
        except RolloutError as error:
            raise NotDeliveredError(f"what is open there cannot be kept: {error}") from error
        self._unsaved = False


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

    def update(self, opened: Opened) -> Request | None:
        """Return the request that updates it, if there is one."""

    def close(self, opened: Opened) -> Request:
        """Return the request that closes it."""


def show(
    message: Message,
    channel: Channel,
    kept: OpenedStore,
    ask: Ask,
    *,
    template: Path | None,
    message_id: str,
) -> None:
    """Have the page show `message`.

    `message_id` is the same in each attempt.

    Raises:
        RolloutError: it is not known to show it; as `http_delivery.ask`.
    """
    text = page_text(message, template)
    page: Page = (
        _Statuspage(message, channel, text)
        if channel.kind == "statuspage"
        else _Templated(message, channel, text, message_id)
    )
    rollout, opened = message.rollout or message.run_id, kept.read()
    begins, ends = message.kind in _BEGIN, message.kind in ENDINGS
    if not begins and (opened is None or opened.run_id != rollout):
        return  # nothing is open of this rollout
    left = ""
    if opened is not None and opened.run_id != rollout:
        left, opened = _close_left(opened, page, ask), None
    fresh, shown = opened is None, False
    if opened is None:
        opened = Opened(run_id=rollout, by=message_id)
        kept.write(opened)
    if not opened.id:
        opened = opened if fresh else _found(opened, page, ask)
        shown = opened.by == message_id  # whichever attempt it was
        if not opened.id:
            if ends and page.can_find:
                kept.write(None)  # it was never opened
                return
            opened, shown = _open(opened, page, kept, ask), True
        kept.write(opened)
    if ends:
        if not (opened.closed and message.kind is MessageKind.ENDED):
            ask(page.close(opened))
        # What a run left unfinished is gone on with: the next one opens no second.
        left_open = message.kind is MessageKind.LEFT
        kept.write(replace(opened, closed=True) if left_open else None)
    else:
        request = None if shown else page.update(opened)
        if request is not None:
            ask(request)
        if opened.closed:
            kept.write(replace(opened, closed=False))
    if left:
        raise RefusedError(left)


_BEGIN = (MessageKind.PROMOTION, MessageKind.ROLLBACK, MessageKind.ROLLBACK_FAILED)


def _open(opened: Opened, page: Page, kept: OpenedStore, ask: Ask) -> Opened:
    if opened.lost:
        raise RefusedError(opened.lost)
    found = page.opened_id(ask(page.opening(opened.run_id)), opened.run_id)
    if found:
        return replace(opened, id=found)
    why = "its answer to the opening has no id"
    if page.can_find:
        raise NotDeliveredError(why)
    kept.write(replace(opened, lost=why))
    raise RefusedError(why)


def _found(opened: Opened, page: Page, ask: Ask) -> Opened:
    if not page.can_find:
        return opened
    return replace(opened, id=page.found_id(ask(page.finding(opened.run_id)), opened.run_id))


def _close_left(opened: Opened, page: Page, ask: Ask) -> str:
    """Close what an earlier rollout left open; return why that cannot be, or ""."""
    if opened.closed:
        return ""
    try:
        opened = opened if opened.id else _found(opened, page, ask)
        if opened.id:
            ask(page.close(opened))
    except RefusedError as error:
        return f"what run {opened.run_id} left open there cannot be closed: {error}"
    return ""


@dataclass(frozen=True, slots=True)
class _Statuspage:
    """Atlassian Statuspage. What is opened has the run in its metadata, by which it is found."""

    message: Message
    channel: Channel
    text: str
    can_find: bool = True

    def opening(self, rollout: str) -> Request:
        message, maintenance = self.message, self.channel.opens != "incident"
        incident: dict[str, Any] = {
            "name": f"Rollout of {message.model} to {message.environment}",
            **self._said(ends=False),
            **self._components("under_maintenance" if maintenance else "degraded_performance"),
            "metadata": {_METADATA: {"run_id": rollout}},
        }
        if maintenance:
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
        for number, each in enumerate(incidents):
            with suppress(KeyError, TypeError):
                if each["metadata"][_METADATA]["run_id"] == rollout:
                    return _id_at(answer, f"{number}.id")
        return ""

    def update(self, opened: Opened) -> Request | None:
        return self._request("PATCH", f"/{quote(opened.id, safe='')}", self._said(ends=False))

    def close(self, opened: Opened) -> Request:
        closed = {**self._said(ends=True), **self._components("operational")}
        return self._request("PATCH", f"/{quote(opened.id, safe='')}", closed)

    def _said(self, *, ends: bool) -> dict[str, Any]:
        # Subscribers hear of beginning, end and failure, and not of each step.
        heard = self.message.kind is not MessageKind.STEP
        status = _STATUS[self.channel.opens or "maintenance"][ends]
        return {"status": status, "body": self.text, "deliver_notifications": heard}

    def _components(self, status: str) -> dict[str, Any]:
        ids = list(self.channel.components or ())
        return {"component_ids": ids, "components": dict.fromkeys(ids, status)} if ids else {}

    def _request(self, method: str, path: str, incident: dict[str, Any] | None) -> Request:
        return Request(
            method=method,
            path=f"/v1/pages/{self.channel.page_id}/incidents{path}",
            body=b"" if incident is None else json_body({"incident": incident}),
            headers={"Authorization": f"OAuth {key_of(self.channel)}"},
        )


_METADATA = "vllm_rollout"
_SHORTEST = timedelta(minutes=1)
_STATUS = {"maintenance": ("in_progress", "completed"), "incident": ("identified", "resolved")}
"""While it is open, and closed."""


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

    def update(self, opened: Opened) -> Request | None:
        if self.channel.update is None:
            return None
        return self._request(self.channel.update, opened.run_id, opened.id, sent=self.message_id)

    def close(self, opened: Opened) -> Request:
        request = self.channel.close or PageRequest()
        return self._request(request, opened.run_id, opened.id, sent=self.message_id)

    def _key(self, rollout: str) -> str:
        return f"vllm-rollout-{self.message.model}-{self.message.environment}-{rollout}"

    def _request(
        self, request: PageRequest, rollout: str, opened_id: str = "", *, sent: str = ""
    ) -> Request:
        more = {"id": opened_id, "key": self._key(rollout), "message": self.text}
        what = f"a template of channel {self.channel.name}"
        body = filled(request.body or "", self.message, _within_json, what=what, **more)
        try:
            sent_body = json_body(json.loads(body)) if body else b""
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{what} makes no JSON: {error}") from None
        return Request(
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
