"""Deployment windows: when production may be deployed to (workflow, "Deployment Windows")."""

import calendar
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta

from vllm_rollout.model.calendar_event import Event
from vllm_rollout.policy import Windows

SEARCH = timedelta(days=400)
"""How far ahead an opening is looked for."""
_CLOCKS_CHANGE = timedelta(minutes=30)
"""Clocks are changed on the hour or half past, everywhere."""
_MONTHS_OF_A_QUARTER = 3


def closed_because(windows: Windows, now: datetime, events: Iterable[Event] = ()) -> str:
    """Return why production may not be deployed to at `now`; "" when it may.

    `events` are those of the windows' calendar around `now`.
    """
    if not windows.enforce:
        return ""
    return _closed_by_rule(windows, now) or _closed_by_event(events, now)


def next_opening(
    windows: Windows,
    now: datetime,
    events: Sequence[Event] = (),
    *,
    lasting: timedelta = timedelta(),
) -> datetime | None:
    """The first moment from `now` on at which production may be deployed to, in the windows' zone.

    It is open for `lasting` from then on. `events` are those of the calendar in the next `SEARCH`.
    None where it does not open so by then.
    """
    if not windows.enforce:
        return now
    # It opens at one of these moments if at all: now, or when something that closes it is over.
    end = now + SEARCH
    opened = None
    for moment in (now, *_changes(windows, events, now, end)):
        if opened is not None and moment - opened >= lasting:
            return opened.astimezone(windows.zone)
        is_closed = closed_because(windows, moment, events)
        opened = None if is_closed else opened or moment
    return opened.astimezone(windows.zone) if opened and end - opened >= lasting else None


def next_closing(
    windows: Windows, start: datetime, end: datetime, events: Sequence[Event] = ()
) -> tuple[datetime, str] | None:
    """The first moment in this time at which production is closed, and why; None without one.

    `events` are those of the calendar in it; the moment is in the windows' zone.
    """
    for moment in (start, *_changes(windows, events, start, end)):
        if moment < end and (why := closed_because(windows, moment, events)):
            return moment.astimezone(windows.zone), why
    return None


def _changes(
    windows: Windows, events: Iterable[Event], now: datetime, end: datetime
) -> Sequence[datetime]:
    """Return the moments in this time at which production may open or close, in UTC."""
    # At midnight another day begins, in the middle of hours that go on.
    hours = (windows.hours, *windows.peak_hours)
    times = {time(), *(each.from_ for each in hours), *(each.to.replace(fold=0) for each in hours)}
    today, last = (moment.astimezone(windows.zone).date() for moment in (now, end))
    days = [today + timedelta(days=offset) for offset in range((last - today).days + 1)]
    # An hour that the clocks repeat is there twice.
    found = {
        datetime.combine(day, start, tzinfo=windows.zone).replace(fold=fold).astimezone(UTC)
        for day in days
        for start in times
        for fold in (0, 1)
    }
    for day in days:
        midnight = datetime.combine(day, time(), tzinfo=windows.zone)
        if midnight.utcoffset() != (midnight + timedelta(days=1)).utcoffset():
            # It may open or close in the moment at which the clocks are changed.
            found |= {midnight.astimezone(UTC) + step * _CLOCKS_CHANGE for step in range(48)}
    found |= {moment.astimezone(UTC) for event in events for moment in (event.start, event.end)}
    return sorted(moment for moment in found if now.astimezone(UTC) < moment <= end)


def _closed_by_rule(windows: Windows, now: datetime) -> str:
    local = now.astimezone(windows.zone)
    before = timedelta(days=windows.hours.begun_before_midnight(local.time()))
    name = calendar.day_name[(local.date() - before).weekday()].lower()
    if name not in windows.days:
        return f"{name} is not a deployment day"
    if reason := _closed_day(windows, local.date()):
        return reason
    if not windows.hours.contain(local.time()):
        return f"{local:%H:%M} is outside {windows.hours} {windows.timezone}"
    for peak in windows.peak_hours:
        if peak.contain(local.time()):
            return f"{local:%H:%M} is within peak hours {peak}"
    return ""


def _closed_day(windows: Windows, day: date) -> str:
    if day in windows.holidays:
        return f"{day} is a holiday"
    for freeze in windows.freezes:
        if freeze.from_ <= day <= freeze.to:
            return f"frozen until {freeze.to}: {freeze.reason}"
    left = calendar.monthrange(day.year, day.month)[1] - day.day
    if left < windows.avoid_last_days_of_month:
        return f"{day} is at the end of the month"
    if day.month % _MONTHS_OF_A_QUARTER == 0 and left < windows.avoid_last_days_of_quarter:
        return f"{day} is at the end of the quarter"
    return ""


def _closed_by_event(events: Iterable[Event], now: datetime) -> str:
    for event in events:
        if event.start <= now < event.end:
            return f"the calendar has {event.summary!r} until {event.end:%Y-%m-%d %H:%M %Z}"
    return ""
