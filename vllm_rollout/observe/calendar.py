"""iCalendar of holidays and freezes: production is closed during each of its events.

Recurring events are expanded; cancelled ones are none. Events that are marked as free time count
too: public calendars of holidays mark theirs so.

A calendar can ask for any amount of time and memory (every second since 1970), and nothing ends a
computation in this process: this module runs itself in another one, which has limits.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.model.calendar_event import Event
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.text import one_line, public_address, shown
from vllm_rollout.variables import secret_from

if TYPE_CHECKING:
    from vllm_rollout.policy import Windows

_LONGEST_SUMMARY = 100
_MAX_BYTES = 10_000_000
_MOST_EVENTS = 100_000
_MEMORY_BYTES = 2 << 30
_FARTHEST_ZONES = timedelta(days=2)


def events_between(windows: "Windows", start: datetime, end: datetime) -> Sequence[Event]:
    """The events of the windows' calendar that last at any time from `start` to `end`.

    Raises:
        UnreachableError: the calendar cannot be had or read; then it must be taken that it would
            have closed production.
    """
    source = _source(windows)
    if source is None:
        return ()
    seconds = windows.calendar_timeout.total_seconds()
    text = _text(source, seconds)
    # Days and times without a zone are taken in the windows' own below: ask for more than is meant.
    asked = (start - _FARTHEST_ZONES, end + _FARTHEST_ZONES)
    command = [sys.executable, "-P", "-m", __name__, *(moment.isoformat() for moment in asked)]
    try:
        expanded = subprocess.run(  # noqa: S603 - this very module
            command, input=text, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _unreadable(source, f"its events take more than {seconds:g} s") from error
    if expanded.returncode:
        why = expanded.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _unreadable(source, shown(why) or "its events take too much memory")
    found = [_event(each, windows.zone) for each in json.loads(expanded.stdout)]
    lasting = (each for each in found if each.start <= end and start <= each.end)
    return sorted(lasting, key=lambda event: event.start)


def _event(expanded: dict[str, Any], zone: tzinfo) -> Event:
    start, end = min(_moments(expanded["start"], zone)), max(_moments(expanded["end"], zone))
    return Event(start.astimezone(zone), end.astimezone(zone), expanded["summary"])


def _moments(text: str, zone: tzinfo) -> list[datetime]:
    """A day begins at its midnight in the windows' time zone, where times without one are too.

    A time that the clocks repeat, or leave out, is two moments (in UTC, by which they compare).
    """
    value = datetime.fromisoformat(text)
    both = [value] if value.tzinfo else [value.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    return [moment.astimezone(UTC) for moment in both]


def _source(windows: "Windows") -> str | None:
    """Return the calendar's file or URL, which an environment variable or a file may hold."""
    variable, file = windows.calendar_env, windows.calendar_file
    if variable is None and file is None:
        return windows.calendar
    try:
        return secret_from(variable, file, "its URL")
    except UsageError as error:
        raise _unreadable(f"of {variable or file}", str(error)) from error


def _text(source: str, timeout_seconds: float) -> bytes:
    try:
        if source.startswith(("http://", "https://")):
            with HttpClient(max_bytes=_MAX_BYTES, proxy=True, redirects=True) as client:
                answer = client.get(source, timeout_seconds=timeout_seconds)
            if answer.status != 200:
                raise _unreadable(source, f"HTTP {answer.status}")
            data = answer.body
        elif "://" in source:
            raise _unreadable(source, "it is neither an http(s) URL nor a file")
        else:
            with Path(source).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
    except (HttpError, OSError) as error:
        raise _unreadable(source, str(error) or type(error).__name__) from error
    if len(data) > _MAX_BYTES or b"BEGIN:VCALENDAR" not in data:
        raise _unreadable(source, "it is no iCalendar")
    return data


def _unreadable(source: str, why: str) -> UnreachableError:
    # The rest of a private calendar's URL is a secret, be it path or query.
    shown_source = public_address(source) if "://" in source else source
    return UnreachableError(
        f"the calendar {shown_source} cannot be read: {why.replace(source, shown_source)}",
        address=shown_source,
        remedy="Correct `windows.calendar`, or see why it does not answer.",
    )


def _expand(text: bytes, start: datetime, end: datetime) -> list[dict[str, str]]:
    """The events between the two times; days without a time are their midnights."""
    import icalendar
    import recurring_ical_events

    found = []
    for component in recurring_ical_events.of(icalendar.Calendar.from_ical(text)).between(
        start, end
    ):
        if str(component.get("STATUS", "")).upper() == "CANCELLED":
            continue
        first, last = component.start, component.end
        if first == last and not isinstance(first, datetime):
            last = first + timedelta(days=1)
        summary = one_line(str(component.get("SUMMARY", "an event")))[:_LONGEST_SUMMARY]
        found.append({"start": _iso(first), "end": _iso(last), "summary": summary})
        if len(found) > _MOST_EVENTS:
            raise ValueError(f"more than {_MOST_EVENTS:,} events")
    return found


def _iso(value: date | datetime) -> str:
    if not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return value.isoformat()


def _main() -> None:
    import resource

    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    start, end = (datetime.fromisoformat(text) for text in sys.argv[1:])
    try:
        found = _expand(sys.stdin.buffer.read(), start, end)
    except Exception as error:  # noqa: BLE001 - whatever a calendar may hold
        sys.exit(f"{type(error).__name__}: {error}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()
