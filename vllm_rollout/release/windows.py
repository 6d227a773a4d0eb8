"""Deployment windows: when production may be deployed to (workflow, "Deployment Windows")."""

import calendar
from datetime import date, datetime, timedelta

from vllm_rollout.policy import Windows

_SEARCH_DAYS = 400


def closed_because(windows: Windows, now: datetime) -> str:
    """Why production may not be deployed to at `now`; "" when it may."""
    if not windows.enforce:
        return ""
    local = now.astimezone(windows.zone)
    if reason := _closed_day(windows, local.date()):
        return reason
    if not windows.hours.from_ <= local.time() < windows.hours.to:
        return (
            f"{local:%H:%M} is outside {windows.hours.from_:%H:%M}-{windows.hours.to:%H:%M} "
            f"{windows.timezone}"
        )
    for peak in windows.peak_hours:
        if peak.from_ <= local.time() < peak.to:
            return f"{local:%H:%M} is within peak hours {peak.from_:%H:%M}-{peak.to:%H:%M}"
    return ""


def next_opening(windows: Windows, now: datetime) -> datetime | None:
    """The first moment from `now` on at which production may be deployed to; None within a year."""
    today = now.astimezone(windows.zone).date()
    starts = [windows.hours.from_, *(peak.to for peak in windows.peak_hours)]
    if not closed_because(windows, now):
        return now
    for offset in range(_SEARCH_DAYS):
        day = today + timedelta(days=offset)
        for start in sorted(starts):
            moment = datetime.combine(day, start, tzinfo=windows.zone)
            if moment > now and not closed_because(windows, moment):
                return moment
    return None


def _closed_day(windows: Windows, day: date) -> str:
    name = calendar.day_name[day.weekday()].lower()
    if name not in windows.days:
        return f"{name} is not a deployment day"
    if day in windows.holidays:
        return f"{day} is a holiday"
    last = calendar.monthrange(day.year, day.month)[1]
    if last - day.day < windows.avoid_last_days_of_month:
        return f"{day} is at the end of the month"
    return ""
