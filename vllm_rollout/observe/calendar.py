"""iCalendar of holidays and freezes: production is closed during each of its events.

Recurring events are expanded; cancelled ones are none. Events that are marked as free time count
too: public calendars of holidays mark theirs so.
"""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_rollout.model.calendar_event import Event
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.policy import Windows

if TYPE_CHECKING:
    import icalendar

_LONGEST_SUMMARY = 100
_LARGEST_BYTES = 10_000_000


def events_between(windows: Windows, start: datetime, end: datetime) -> Sequence[Event]:
    """The events of the windows' calendar that last at any time from `start` to `end`.

    Raises:
        UnreachableError: the calendar cannot be had or read; then it must be taken that it would
            have closed production.
    """
    if windows.calendar is None:
        return ()
    import icalendar
    import recurring_ical_events

    text = _text(windows.calendar, windows.calendar_timeout.total_seconds())
    try:
        found = recurring_ical_events.of(icalendar.Calendar.from_ical(text)).between(start, end)
        return sorted(
            (
                _event(component, windows.zone)
                for component in found
                if str(component.get("STATUS", "")).upper() != "CANCELLED"
            ),
            key=lambda event: event.start,
        )
    except Exception as error:  # whatever a calendar may hold
        raise _unreadable(windows.calendar, f"{type(error).__name__}: {error}") from error


def _event(component: "icalendar.Event", zone: tzinfo) -> Event:
    start, end = component.start, component.end
    if start == end and not isinstance(start, datetime):
        end = start + timedelta(days=1)
    summary = " ".join(str(component.get("SUMMARY", "an event")).split())
    return Event(_moment(start, zone), _moment(end, zone), summary[:_LONGEST_SUMMARY])


def _moment(value: date | datetime, zone: tzinfo) -> datetime:
    """A day begins at its midnight in the windows' time zone, where times without one are too."""
    if not isinstance(value, datetime):
        return datetime.combine(value, time(), tzinfo=zone)
    return value if value.tzinfo else value.replace(tzinfo=zone)


def _text(source: str, timeout_seconds: float) -> bytes:
    import httpx

    try:
        if source.startswith(("http://", "https://")):
            with httpx.Client(timeout=timeout_seconds, follow_redirects=True) as client:
                data = client.get(source).raise_for_status().content
        else:
            data = Path(source).read_bytes()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _unreadable(source, str(error) or type(error).__name__) from error
    if len(data) > _LARGEST_BYTES or b"BEGIN:VCALENDAR" not in data:
        raise _unreadable(source, "it is no iCalendar")
    return data


def _unreadable(source: str, why: str) -> UnreachableError:
    shown = source.partition("?")[0]  # the rest of a private calendar's URL is a secret
    return UnreachableError(
        f"the calendar {shown} cannot be read: {why.replace(source, shown)}",
        address=shown,
        remedy="Correct `windows.calendar`, or see why it does not answer.",
    )
