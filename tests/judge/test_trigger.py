"""Rollback triggers: they fire when the condition has lasted, and only on what was seen."""

import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import vllm_rollout.policy
from vllm_rollout.judge.trigger import DEFAULT_MAX_GAP_SECONDS, Trigger, TriggerRule, TriggerState
from vllm_rollout.model.units import parse_duration


def run(trigger: Trigger, *steps: tuple[float, float | None]) -> TriggerState:
    """The state after the last of `steps`; none before it may have fired."""
    for time, observation in steps[:-1]:
        assert not trigger.step(time, observation).fired
    return trigger.step(*steps[-1])


def error_rate(**changes: float) -> Trigger:
    """The workflow's row: error rate > 5% for > 5 min."""
    return Trigger(**({"above": 0.05, "for_seconds": 300.0, "unit": "ratio"} | changes))


def bad_until(end: float, *, start: float = 0, step: float = 30) -> list[tuple[float, float]]:
    """An error rate of 20% seen every `step` seconds, from `start` to `end`."""
    count = int((end - start) // step)
    return [(start + i * step, 0.2) for i in range(count)] + [(end, 0.2)]


def test_fires_only_after_more_than_the_window():
    trigger = error_rate()
    state = run(trigger, *bad_until(300))
    assert not state.fired
    state = trigger.step(300.5, 0.2)
    assert state.fired
    assert (state.since, state.measured) == (0, 0.2)
    assert state.reason == "20%, above 5% for 5m (fires after 5m)"


def test_at_the_limit_is_not_above_it():
    at = [(float(second), 0.05) for second in range(0, 1000, 50)]
    assert not run(error_rate(), *at).fired
    assert run(Trigger(above=1.0, at_least=True, for_seconds=30), (0, 1.0), (31, 1.0)).fired
    assert not run(Trigger(above=1.0, at_least=True, for_seconds=30), (0, 0.999), (31, 0.999)).fired


def test_one_good_observation_starts_the_window_anew():
    trigger = error_rate()
    assert not run(trigger, *bad_until(290), (295, 0.01), *bad_until(590, start=299)).fired
    assert trigger.state.since == 299
    assert trigger.step(600, 0.2).fired


def test_data_that_stop_fire_nothing_and_say_that_nothing_is_seen():
    trigger = error_rate(max_gap_seconds=60)
    assert run(trigger, *bad_until(290), (340, None)).observable
    state = trigger.step(351, None)
    assert not state.observable
    assert not state.fired
    assert state.reason == "cannot observe: no data for 1m1s (at most 1m)"
    assert not run(trigger, (10_000, None)).fired


@pytest.mark.parametrize("silence", [[], [(400.0, None)], [(291.0, None), (470.0, math.nan)]])
def test_a_gap_neither_extends_nor_satisfies_the_window(silence):
    trigger = error_rate(max_gap_seconds=60)
    state = run(trigger, *bad_until(290), *silence, (480.0, 0.2))
    assert not state.fired
    assert state.observable
    assert state.since == 480
    assert "no data for 3m10s: restarted" in state.reason
    assert run(trigger, *bad_until(781, start=500)).fired


def test_a_short_gap_is_bridged_by_what_is_seen_at_both_ends():
    trigger = error_rate(max_gap_seconds=60)
    assert not run(trigger, *bad_until(290), (310, None), (340, -1.0)).fired
    assert trigger.step(350, 0.2).fired


def test_nothing_seen_yet_is_not_health():
    state = Trigger(above=0.05, for_seconds=300).step(0, None)
    assert not TriggerState().observable
    assert not state.observable
    assert "no data yet" in state.reason


def test_more_than_three_failures_in_a_row_fire():
    trigger = Trigger(above=1, at_least=True, consecutive=3)
    assert not run(
        trigger, (0, 1), (5, 1), (10, 1), (15, 0), (20, 1), (25, 1), (30, None), (35, 1)
    ).fired
    state = trigger.step(40, True)
    assert state.fired
    assert (state.in_a_row, state.since) == (4, 20)
    assert state.reason == "1, at least 1, 4 in a row (fires at more than 3)"


def test_failures_on_both_sides_of_a_gap_are_not_in_a_row():
    trigger = Trigger(above=1, at_least=True, consecutive=3, max_gap_seconds=60)
    assert not run(trigger, (0, 1), (5, 1), (10, 1), (71, 1)).fired
    assert trigger.state.in_a_row == 1


def test_immediate_triggers_fire_at_the_first_observation():
    assert Trigger(above=1, at_least=True, consecutive=0).step(0, 1.0).fired
    assert Trigger(above=1, at_least=True, for_seconds=0).step(0, 1.0).fired


def test_an_infinite_percentile_is_above_any_limit():
    trigger = Trigger(above=6.0, for_seconds=600, max_gap_seconds=400, unit="s")
    state = run(trigger, (0, math.inf), (301, math.inf), (601, math.inf))
    assert state.fired
    assert state.reason == "∞ s, above 6 s for 10m1s (fires after 10m)"


def test_a_clock_that_goes_back_starts_the_window_anew():
    trigger = error_rate()
    state = run(trigger, *bad_until(290, start=100), (50, 0.2))
    assert not state.fired
    assert state.since == 50
    assert "the clock went back 4m: restarted" in state.reason
    assert run(trigger, *bad_until(351, start=60)).fired
    blind = error_rate()
    assert not run(blind, (100, 0.2), (50, None)).observable


def test_a_clock_that_leaps_ahead_is_a_gap():
    trigger = error_rate()
    assert not run(trigger, (0, 0.2), (1e300, 0.2)).fired
    assert trigger.state.since == 1e300


def test_once_fired_stays_fired():
    trigger = Trigger(above=0.5, consecutive=0)
    fired = trigger.step(0, 1.0)
    assert trigger.step(5, 0.0) is fired
    assert trigger.step(-100, None) is fired


def test_the_rule_is_pure_and_frozen():
    rule = TriggerRule(above=0.05, for_seconds=300)
    start = TriggerState()
    assert rule.after(start, 0, 0.2) == rule.after(start, 0, 0.2)
    assert start == TriggerState()
    with pytest.raises(FrozenInstanceError):
        rule.above = 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"above": 1.0},
        {"above": 1.0, "for_seconds": 1.0, "consecutive": 1},
        {"above": math.nan, "for_seconds": 1.0},
        {"above": 1.0, "for_seconds": -1.0},
        {"above": 1.0, "for_seconds": math.nan},
        {"above": 1.0, "consecutive": -1},
        {"above": 1.0, "consecutive": 1, "max_gap_seconds": 0.0},
        {"above": 1.0, "consecutive": 1, "unit": "percent"},
    ],
)
def test_senseless_rules_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must|give|unit"):
        Trigger(**arguments)


def test_a_time_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="time"):
        error_rate().step(math.nan, 0.2)


def test_the_default_gap_is_the_default_policys():
    default = Path(vllm_rollout.policy.__file__).with_name("default.yaml")
    written = yaml.safe_load(default.read_text(encoding="utf-8"))["triggers"]["max_gap"]
    assert parse_duration(written).total_seconds() == DEFAULT_MAX_GAP_SECONDS


# Steps of a clock that mostly ticks, sometimes leaps, sometimes goes back; data that come and go.
TICKS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 5, 5, 5, 20, 21, 60, -3]),
        st.sampled_from([None, math.nan, 0.0, 0.05, 0.2, 0.2, 0.2, 1.0, math.inf]),
    ),
    max_size=60,
)


def unbroken_run(steps: list[tuple[float, float | None]], gap: float) -> list[float]:
    """Times, latest first, of the run of bad observations that ends at the last step.

    Written from the definition, backwards: the longest stretch without a good observation, a hole
    longer than `gap` or a step back of the clock.
    """
    if not _bad(steps[-1][1]):
        return []
    times = [steps[-1][0]]
    for (time, observation), (after, _) in zip(steps[-2::-1], steps[:0:-1], strict=True):
        if after < time or times[-1] - time > gap:
            break
        if observation is None or math.isnan(observation):
            continue
        if not _bad(observation):
            break
        times.append(time)
    return times


def _bad(observation: float | None) -> bool:
    return observation is not None and observation > 0.05


@settings(deadline=None)
@given(ticks=TICKS, count=st.integers(0, 5))
def test_fires_exactly_when_the_definition_says(ticks, count):
    gap, window = 20.0, 30.0
    lasting = Trigger(above=0.05, for_seconds=window, max_gap_seconds=gap)
    counting = Trigger(above=0.05, consecutive=count, max_gap_seconds=gap)
    steps: list[tuple[float, float | None]] = []
    now, lasted, counted = 0.0, False, False
    for tick, observation in ticks:
        now += tick
        steps.append((now, observation))
        times = unbroken_run(steps, gap)
        lasted = lasted or bool(times and times[0] - times[-1] > window)
        counted = counted or len(times) > count
        assert lasting.step(now, observation).fired == lasted
        assert counting.step(now, observation).fired == counted


@settings(deadline=None)
@given(ticks=TICKS)
def test_what_is_not_observable_never_fires_and_data_make_it_observable(ticks):
    trigger = Trigger(above=0.05, for_seconds=0, max_gap_seconds=20)
    now = 0.0
    for tick, observation in ticks:
        now += tick
        before, state = trigger.state, trigger.step(now, observation)
        assert state.fired <= state.observable
        assert state.reason
        if observation is None or math.isnan(observation):
            assert state.fired == before.fired
        else:
            assert state.observable
