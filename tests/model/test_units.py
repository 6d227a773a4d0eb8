"""Units as people write them: what is refused, what is read, and that writing reads back."""

import math
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.units import (
    UnitError,
    format_duration,
    format_rate,
    format_share,
    format_value,
    parse_duration,
    parse_rate,
    parse_share,
)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("15", "15 has no unit"),
        (15, "15 has no unit"),
        ("15min", "'15min' is not a duration"),
        ("-3s", "-3s is negative"),
        (float("nan"), "'nan' is not a duration"),
        (float("inf"), "'inf' is not a duration"),
        ("30m1h", "'30m1h' is not a duration"),
        ("1h1h", "'1h1h' is not a duration"),
        ("", "'' is not a duration"),
        ("٣s", "'٣s' is not a duration"),
        (True, "a bool is not a duration"),
        (None, "a NoneType is not a duration"),
        ("0.1ms0.0001ms", "is not a duration"),
        ("0.0001ms", "finer than a microsecond"),
        ("99999999999999d", "too long"),
    ],
)
def test_a_wrong_duration_is_refused_and_the_message_shows_a_right_one(
    value: object, reason: str
) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(value)
    assert reason in str(caught.value)
    assert "15m, 24h or 1h30m" in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.001, "without its % sign"),
        ("1", "without its % sign"),
        ("101%", "more than all"),
        ("-1%", "negative"),
        ("nan%", "is not a share"),
        ("1e-3%", "is not a share"),
        (False, "a bool is not a share"),
    ],
)
def test_a_share_without_a_percent_sign_or_beyond_all_is_refused(
    value: object, reason: str
) -> None:
    with pytest.raises(UnitError, match=reason) as caught:
        parse_share(value)
    assert "0.1% or 50%" in str(caught.value)


@pytest.mark.parametrize("value", ["10", 10, "10/d", "-1/s", "inf/s", "10 per s", None])
def test_a_rate_without_a_known_unit_is_refused(value: object) -> None:
    with pytest.raises(UnitError, match="10/s, 600/m or 36000/h"):
        parse_rate(value)


def test_units_are_read_as_people_write_them() -> None:
    assert parse_duration("1h30m") == timedelta(minutes=90)
    assert parse_duration("2d") == timedelta(days=2)
    assert parse_duration("500ms") == timedelta(milliseconds=500)
    assert parse_duration("1m5ms") == timedelta(seconds=60.005)
    assert parse_duration("0s") == timedelta(0)
    assert parse_share("0.1%") == 0.001
    assert parse_share(0) == 0
    assert parse_rate("10/s") == parse_rate("600/m") == parse_rate("36000/h") == 10


def test_durations_are_written_without_days_and_without_empty_parts() -> None:
    assert format_duration(timedelta(days=2)) == "48h"
    assert format_duration(timedelta(seconds=90)) == "1m30s"
    assert format_duration(timedelta(seconds=2.5)) == "2.5s"
    assert format_duration(timedelta(milliseconds=500)) == "500ms"
    assert format_duration(timedelta(0)) == "0s"
    assert format_duration(-timedelta(minutes=1)) == "-1m"


@settings(deadline=None)
@given(st.timedeltas(min_value=timedelta(0)))
def test_a_written_duration_reads_back_the_same(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@settings(deadline=None)
@given(st.one_of(st.just(0.0), st.floats(min_value=1e-9, max_value=1)))
def test_a_written_share_reads_back_the_same(fraction: float) -> None:
    assert parse_share(format_share(fraction)) == fraction


@settings(deadline=None)
@given(st.floats(min_value=1e-9, max_value=1e12))
def test_a_written_rate_reads_back_the_same(per_second: float) -> None:
    assert parse_rate(format_rate(per_second)) == per_second


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.2341, "s", "1.234 s"),
        (3.0, "s", "3 s"),
        (0.0012, "ratio", "0.12%"),
        (1e-7, "ratio", "0.00001%"),
        (0.0, "ratio", "0%"),
        (9.98, "1/s", "9.98/s"),
        (3, "count", "3"),
        (2995, "", "2,995"),
        (math.inf, "s", "∞ s"),
        (math.nan, "s", "unknown"),
        (None, "ratio", "unknown"),
    ],
)
def test_figures_are_rounded_for_people_and_only_zero_reads_zero(
    value: float | None, unit: str, text: str
) -> None:
    assert format_value(value, unit) == text


def test_an_unknown_unit_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="'ms' is not a unit"):
        format_value(1, "ms")
