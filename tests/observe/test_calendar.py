"""A calendar of freezes: while any event lasts production is closed, and so it is unread."""

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.errors import PolicyError, UnreachableError
from vllm_rollout.observe.calendar import events_between
from vllm_rollout.policy import Windows, load_policy
from vllm_rollout.rollout.promotion_blockers import closed_at, nobody_on_call, opens_next

BERLIN = ZoneInfo("Europe/Berlin")
CALENDAR = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//tests//EN
BEGIN:VEVENT
UID:1
DTSTAMP:20260101T000000Z
DTSTART;VALUE=DATE:20261118
DTEND;VALUE=DATE:20261119
SUMMARY:Day of
  Repentance
TRANSP:TRANSPARENT
END:VEVENT
BEGIN:VEVENT
UID:2
DTSTAMP:20260101T000000Z
DTSTART;TZID=Europe/Berlin:20261109T100000
DTEND;TZID=Europe/Berlin:20261109T120000
RRULE:FREQ=WEEKLY;BYDAY=MO,TU
EXDATE;TZID=Europe/Berlin:20261123T100000
SUMMARY:Launch rehearsal
END:VEVENT
BEGIN:VEVENT
UID:3
DTSTAMP:20260101T000000Z
DTSTART:20261119T080000Z
DTEND:20261119T200000Z
STATUS:CANCELLED
SUMMARY:Called off
END:VEVENT
END:VCALENDAR
"""


def windows(source: object, **changes: object) -> Windows:
    given = {"calendar": str(source), "timezone": "Europe/Berlin", **changes}
    return load_policy(None, overrides={f"windows.{k}": v for k, v in given.items()}).windows


def closed_now(rules: Windows, moment: datetime) -> str:
    return closed_at(rules, moment)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "freezes.ics"
    file.write_text(CALENDAR)
    return file


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).astimezone(UTC)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("2026-11-17T09:30", ""),
        ("2026-11-17T10:00", "the calendar has 'Launch rehearsal' until 2026-11-17 12:00"),
        ("2026-11-17T12:00", ""),
        ("2026-11-23T10:30", ""),  # left out of the series
        ("2026-11-18T15:59", "'Day of Repentance' until 2026-11-19 00:00"),
        ("2026-11-19T09:00", ""),  # cancelled
    ],
)
def test_events_close_production_while_they_last(file: Path, when: str, said: str) -> None:
    reason = closed_now(windows(file), berlin(when))
    assert (said in reason) if said else reason == ""


DAYS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//tests//EN
BEGIN:VEVENT
UID:1
DTSTAMP:20260101T000000Z
DTSTART;VALUE=DATE:20261223
SUMMARY:A day
END:VEVENT
BEGIN:VEVENT
UID:2
DTSTAMP:20260101T000000Z
DTSTART:20260104T013000
DTEND:20260104T023000
RRULE:FREQ=WEEKLY
SUMMARY:Floating
END:VEVENT
END:VCALENDAR
"""
EVERY_DAY = {
    "days": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "hours": {"from": "00:00", "to": "24:00"},
    "avoid_last_days_of_month": 0,
    "avoid_last_days_of_quarter": 0,
}


@pytest.mark.parametrize(
    "zone", ["Pacific/Auckland", "Australia/Sydney", "UTC", "America/Los_Angeles", "Etc/GMT+12"]
)
def test_days_and_floating_times_are_those_of_the_windows_zone(tmp_path: Path, zone: str) -> None:
    (tmp_path / "days.ics").write_text(DAYS)
    rules = windows(tmp_path / "days.ics", **EVERY_DAY | {"timezone": zone})

    def closed(text: str) -> bool:
        moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
        return bool(closed_now(rules, moment.astimezone(UTC)))

    day = ("2026-12-23T00:00", "2026-12-23T09:00", "2026-12-23T12:00", "2026-12-23T23:59")
    assert [closed(text) for text in day] == [True] * 4
    assert not closed("2026-12-22T23:59")
    assert not closed("2026-12-24T00:00")
    # The same on both sides of a change of clocks.
    for date in ("2026-03-01", "2026-05-03", "2026-09-06", "2026-11-15"):
        times = [f"{date}T{time}" for time in ("01:29", "01:30", "02:29", "02:30")]
        assert [closed(text) for text in times] == [False, True, True, False], date


def test_a_floating_event_closes_a_repeated_hour_both_times(tmp_path: Path) -> None:
    (tmp_path / "days.ics").write_text(DAYS)
    rules = windows(tmp_path / "days.ics", **EVERY_DAY)
    repeated = [datetime(2026, 10, 25, hour, 15, tzinfo=UTC) for hour in (0, 1)]  # 2:15 in Berlin
    assert all(closed_now(rules, moment) for moment in repeated)
    left_out = datetime(2026, 3, 29, 0, 45, tzinfo=UTC)  # 1:45; 2:30 is never
    assert closed_now(rules, left_out)


def test_the_next_opening_is_when_the_last_event_in_the_way_ends(file: Path) -> None:
    assert opens_next(windows(file), berlin("2026-11-17T10:30")) == berlin("2026-11-17T12:00")
    assert opens_next(windows(file), berlin("2026-11-18T09:00")) == berlin("2026-11-19T09:00")


@pytest.mark.parametrize(
    "content",
    [None, "", "<html>sign in</html>", "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:never\n"],
)
def test_a_calendar_that_cannot_be_read_closes_production(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "freezes.ics"
    if content is not None:
        file.write_text(content)
    reason = closed_now(windows(file), berlin("2026-11-19T10:00"))
    assert "cannot be read" in reason
    assert opens_next(windows(file), berlin("2026-11-19T10:00")) is None


def test_an_event_every_second_since_1970_closes_production(tmp_path: Path) -> None:
    endless = CALENDAR.replace("20261109T", "19700101T").replace("WEEKLY;BYDAY=MO,TU", "SECONDLY")
    (tmp_path / "freezes.ics").write_text(endless)
    rules = windows(tmp_path / "freezes.ics", calendar_timeout="1500ms")
    reason = closed_now(rules, berlin("2026-11-19T10:00"))
    assert "cannot be read: its events take more than 1.5 s" in reason


SECRET_URL = "http://127.0.0.1:9/private-abcdef123/basic.ics?token=abcdef123"


@pytest.mark.parametrize("how", ["policy", "variable", "file"])
def test_of_a_private_calendars_and_on_call_urls_only_the_host_is_shown(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_URL", SECRET_URL)
    (tmp_path / "url").write_text(f"{SECRET_URL}\n")
    suffix, value = {
        "policy": ("", SECRET_URL),
        "variable": ("_env", "SECRET_URL"),
        "file": ("_file", str(tmp_path / "url")),
    }[how]
    given = {f"windows.calendar{suffix}": value, f"windows.on_call.url{suffix}": value}
    rules = load_policy(None, overrides=given).windows

    with pytest.raises(UnreachableError) as raised:
        events_between(rules, berlin("2026-11-19T10:00"), berlin("2026-11-20T10:00"))
    whole = " ".join((str(raised.value), raised.value.remedy, raised.value.address))
    assert "the calendar http://127.0.0.1:9 cannot be read" in whole
    on_call = nobody_on_call(rules.on_call)
    assert "on call is unknown: http://127.0.0.1:9: " in on_call
    shown = CliRunner().invoke(app, ["policy", "show", *options_of(given)]).output
    assert suffix or "calendar: http://127.0.0.1:9/[hidden]" in shown
    assert "abcdef123" not in whole + on_call + shown


def options_of(given: dict[str, str]) -> list[str]:
    return [word for key, value in given.items() for word in ("--set", f"{key}={value}")]


def test_a_secret_url_that_is_missing_closes_production_by_its_name(tmp_path: Path) -> None:
    rules = windows(tmp_path / "x", calendar=False, calendar_env="NOT_SET_HERE")
    assert "NOT_SET_HERE is not set" in closed_now(rules, berlin("2026-11-19T10:00"))
    (tmp_path / "empty").write_text("")
    on_call = {"windows.on_call.url_file": str(tmp_path / "empty")}
    assert "is empty" in nobody_on_call(load_policy(None, overrides=on_call).windows.on_call)
    with pytest.raises(PolicyError, match="give one of calendar, calendar_env"):
        windows(tmp_path / "x", calendar_env="X")
    with pytest.raises(PolicyError) as raised:
        load_policy(None, overrides={"windows.on_call.url": "on-call.example.com/x?abcdef123"})
    assert "abcdef123" not in str(raised.value)
    other = windows(tmp_path / "x", calendar="webcal://abcdef123@cal.example.com/abcdef123")
    said = closed_now(other, berlin("2026-11-19T10:00"))
    assert "the calendar webcal://cal.example.com cannot be read" in said
    assert "abcdef123" not in said
