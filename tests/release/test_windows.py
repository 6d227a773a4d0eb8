"""Deployment windows."""

from datetime import UTC, datetime

import pytest

from vllm_rollout.policy import Windows, load_policy
from vllm_rollout.release.windows import closed_because, next_opening


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
        ("2026-11-19T10:00", "holiday"),
        ("2026-11-18T12:30", "peak hours"),
    ],
)
def test_production_is_closed_for_the_reasons_of_the_workflow(when: str, why: str) -> None:
    rules = windows(holidays=["2026-11-19"], peak_hours=[{"from": "12:00", "to": "13:00"}])

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
