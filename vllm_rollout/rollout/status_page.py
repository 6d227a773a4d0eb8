"""Status pages: one incident or maintenance for each rollout, opened, updated and closed.

What is open is kept in the store, before it is opened: the next run finds it there, and goes on
with it or closes it. An opening whose answer was lost is looked up before it is sent again. Each
message makes the page what it says, whatever did not arrive before: an update opens what is not
open yet, so that none overtakes the opening.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vllm_rollout.http_client import HttpAnswer
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy.notifications import ENDINGS, Channel, MessageKind
from vllm_rollout.rollout.http_delivery import NotDeliveredError, RefusedError, Request
from vllm_rollout.rollout.notification_format import Message
from vllm_rollout.rollout.page_requests import Page, page_of

Ask = Callable[[Request], HttpAnswer]
"""Sends a request and returns its answer, as `http_delivery.ask`."""
_BEGIN = (MessageKind.PROMOTION, MessageKind.ROLLBACK, MessageKind.ROLLBACK_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An incident or maintenance of rollout `run_id`; without `id` it may not be opened yet.

    `closed` is an end that is none yet: a run left its rollout unfinished. `lost` is why its id
    will never be known. `by` is the message that was to open it, `last` the run that was the last
    to show something there.
    """

    run_id: str
    by: str = ""
    last: str = ""
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
    page = page_of(channel, message, template, message_id=message_id)
    rollout, opened = message.rollout or message.run_id, kept.read()
    ends = message.kind in ENDINGS
    # A rollback that still waits has a headline of its own, and changes nothing yet.
    begins = message.kind in _BEGIN and not message.subject
    if not begins and (opened is None or opened.run_id != rollout):
        return  # nothing is open of this rollout
    if message.kind is MessageKind.LEFT and opened and opened.last > message.run_id:
        return  # a later run goes on with it, by its name
    left = ""
    if opened is not None and opened.run_id != rollout:
        left, opened = _close_left(opened, page, ask), None
    fresh, shown = opened is None, False
    if opened is None:
        opened = Opened(run_id=rollout, by=message_id, last=message.run_id)
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
            ask(page.close(opened.run_id, opened.id))
        # What a run left unfinished is gone on with: the next one opens no second.
        left_open = message.kind is MessageKind.LEFT
        kept.write(replace(opened, closed=True) if left_open else None)
    else:
        request = None if shown else page.update(opened.run_id, opened.id, reopens=opened.closed)
        if request is not None:
            ask(request)
        if opened.closed or opened.last != message.run_id:
            kept.write(replace(opened, closed=False, last=message.run_id))
    if left:
        raise RefusedError(left)


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
            ask(page.close(opened.run_id, opened.id))
    except RefusedError as error:
        return f"what run {opened.run_id} left open there cannot be closed: {error}"
    return ""
