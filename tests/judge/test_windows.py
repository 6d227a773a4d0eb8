"""Deployment windows."""

from datetime import UTC, datetime, timedelta

import pytest

from vllm_rollout.judge.windows import closed_because, next_closing, next_opening
from vllm_rollout.model.calendar_event import Event
from vllm_rollout.model.errors import PolicyError
from vllm_rollout.policy import Windows, load_policy


def windows(**changes: object) -> Windows:
    overrides = {f"windows.{key}": value for key, value in changes.items()}
    return load_policy(None, overrides=overrides).windows


@pytest.mark.parametrize(
    ("when", "why"),
    [
        ("2026-11-18T10:00", ""),
        ("2026-11-18T09:00", ""),
        ("2026-11-18T16:00", "16:00 is outside"),
        ("2026-11-18T08:59", "08:59 is outside"),
        ("2026-11-20T10:00", "friday"),
        ("2026-12-30T10:00", "end of the month"),
        ("2026-12-28T10:00", "end of the quarter"),
        ("2026-10-27T10:00", ""),  # of a month, but of no quarter
        ("2026-12-02T10:00", "frozen until 2026-12-02: stocktaking"),
        ("2026-12-03T10:00", ""),
        ("2026-11-19T10:00", "holiday"),
        ("2026-11-18T12:30", "peak hours"),
    ],
)
def test_production_is_closed_for_the_reasons_of_the_workflow(when: str, why: str) -> None:
    rules = windows(
        holidays=["2026-11-19"],
        peak_hours=[{"from": "12:00", "to": "13:00"}],
        freezes=[{"from": "2026-12-01", "to": "2026-12-02", "reason": "stocktaking"}],
    )

    reason = closed_because(rules, datetime.fromisoformat(when).replace(tzinfo=UTC))

    assert (why in reason) if why else reason == ""


def test_hours_are_those_of_the_policys_time_zone() -> None:
    rules = windows(timezone="America/New_York")

    assert closed_because(rules, datetime(2026, 11, 18, 10, 0, tzinfo=UTC))
    assert not closed_because(rules, datetime(2026, 11, 18, 15, 0, tzinfo=UTC))


def test_the_next_opening_steps_over_weekend_and_peak_hours() -> None:
    rules = windows(peak_hours=[{"from": "09:00", "to": "11:00"}])

    opening = next_opening(rules, datetime(2026, 11, 20, 10, 0, tzinfo=UTC))

    assert opening == datetime(2026, 11, 23, 11, 0, tzinfo=UTC)


def test_windows_that_are_not_enforced_are_always_open() -> None:
    assert not closed_because(windows(enforce=False), datetime(2026, 11, 20, 3, 0, tzinfo=UTC))


def night(**hours: object) -> Windows:
    """Windows on Sundays in Berlin, when and where clocks are changed."""
    return windows(timezone="Europe/Berlin", days=["sunday"], avoid_last_days_of_month=0,
                   avoid_last_days_of_quarter=0, **hours)  # fmt: skip


def in_utc(moment: datetime | None) -> datetime:
    """Moments of a repeated hour compare as unequal to those of another zone, whatever they are."""
    assert moment is not None
    return moment.astimezone(UTC)


def test_an_hour_that_the_clocks_leave_out_opens_when_it_would_be_over() -> None:
    rules = night(hours={"from": "02:30", "to": "05:00"})
    before = datetime(2026, 3, 28, 23, 0, tzinfo=UTC)  # Sunday 0:00 in Berlin; 2:00 becomes 3:00
    opening = next_opening(rules, before)
    assert opening is not None
    assert in_utc(opening) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert f"{opening:%H:%M %Z}" == "03:00 CEST"
    assert not closed_because(rules, opening)


def test_an_hour_that_the_clocks_repeat_is_open_both_times() -> None:
    rules = night(hours={"from": "02:00", "to": "03:00"},
                  peak_hours=[{"from": "02:00", "to": "02:30"}])  # fmt: skip
    first, second = (datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1))
    assert in_utc(next_opening(rules, first - timedelta(hours=1))) == first
    assert closed_because(rules, first + timedelta(minutes=35))  # 2:05 again: peak hours
    assert in_utc(next_opening(rules, first + timedelta(minutes=35))) == second


def test_hours_over_midnight_are_of_the_day_they_begin() -> None:
    rules = windows(
        days=["friday"],
        hours={"from": "22:00", "to": "04:00"},
        peak_hours=[{"from": "23:30", "to": "00:30"}],
        freezes=[{"from": "2026-11-28", "to": "2026-11-28", "reason": "stocktaking"}],
    )

    def closed(day: int, hour: int, minute: int = 0) -> str:
        return closed_because(rules, datetime(2026, 11, day, hour, minute, tzinfo=UTC))

    assert not closed(20, 22)
    assert not closed(21, 3, 59)
    assert "saturday" in closed(21, 4)
    assert "21:59 is outside 22:00-04:00" in closed(20, 21, 59)
    assert "thursday" in closed(20, 3)
    assert "saturday" in closed(21, 22)
    assert "peak hours 23:30-00:30" in closed(20, 23, 45)
    assert "peak hours" in closed(21, 0, 29)
    assert "frozen" in closed(28, 1)
    opening = next_opening(rules, datetime(2026, 11, 20, 23, 45, tzinfo=UTC))
    assert opening == datetime(2026, 11, 21, 0, 30, tzinfo=UTC)


def test_a_day_ends_at_24_and_empty_hours_are_refused() -> None:
    rules = windows(hours={"from": "16:00", "to": "24:00"})
    assert not closed_because(rules, datetime(2026, 11, 18, 23, 59, 59, tzinfo=UTC))
    assert "outside 16:00-24:00" in closed_because(rules, datetime(2026, 11, 19, tzinfo=UTC))
    assert rules.hours.model_dump(by_alias=True, mode="json") == {"from": "16:00", "to": "24:00"}
    whole = windows(hours={"from": "00:00", "to": "24:00"})
    for hour in range(24):
        assert not closed_because(whole, datetime(2026, 11, 18, hour, tzinfo=UTC))
    frozen = windows(
        hours={"from": "22:00", "to": "04:00"},
        freezes=[{"from": "2026-11-16", "to": "2026-11-17", "reason": "stocktaking"}],
    )
    opening = next_opening(frozen, datetime(2026, 11, 17, 12, tzinfo=UTC))
    assert opening == datetime(2026, 11, 18, tzinfo=UTC)
    for begin, end in (("00:00", "00:00"), ("24:00", "04:00"), ("16:00", "09:00")):
        with pytest.raises(PolicyError):
            windows(hours={"from": begin, "to": end})


def test_windows_that_never_open_say_so() -> None:
    rules = windows(freezes=[{"from": "2026-01-01", "to": "2030-01-01", "reason": "the end"}])
    assert next_opening(rules, datetime(2026, 11, 18, 10, 0, tzinfo=UTC)) is None


def test_a_ramp_fits_where_nothing_closes_before_its_end() -> None:
    rules = windows(
        peak_hours=[{"from": "12:00", "to": "13:00"}],
        freezes=[{"from": "2026-11-19", "to": "2026-11-19", "reason": "stocktaking"}],
    )
    nine = datetime(2026, 11, 18, 9, 0, tzinfo=UTC)
    three = timedelta(hours=3)
    assert next_closing(rules, nine, nine + three) is None
    later = nine + timedelta(minutes=1)
    closing = next_closing(rules, later, later + three)
    assert closing == (nine + three, "12:00 is within peak hours 12:00-13:00")
    assert next_opening(rules, later, lasting=three) == nine + timedelta(hours=4)
    # Thursday is frozen, and Friday to Sunday are no deployment days.
    after = nine + timedelta(hours=4, minutes=1)
    assert next_opening(rules, after, lasting=three) == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert next_opening(rules, nine, lasting=timedelta(hours=4)) is None
    event = Event(nine + timedelta(hours=1), nine + timedelta(hours=2), "launch")
    found = next_closing(rules, nine, nine + three, [event])
    assert found is not None
    assert found[0] == event.start


def test_a_ramp_over_midnight_runs_into_the_freeze_of_the_next_day() -> None:
    rules = windows(
        hours={"from": "22:00", "to": "04:00"},
        timezone="Australia/Sydney",
        freezes=[{"from": "2026-11-19", "to": "2026-11-20", "reason": "stocktaking"}],
    )
    begun = datetime(2026, 11, 18, 23, 30, tzinfo=rules.zone)
    closing = next_closing(rules, begun, begun + timedelta(hours=2))
    assert closing is not None
    assert f"{closing[0]:%d %H:%M %Z}" == "19 00:00 AEDT"
    assert "frozen until 2026-11-20" in closing[1]
