"""Rollback triggers: a condition that must last, judged over a stream of observations.

`TriggerRule` is what must last, `TriggerState` what has been seen so far, and `TriggerRule.after`
the pure step from one state to the next. `Trigger` keeps the two together.
"""

import math
from dataclasses import dataclass, replace
from datetime import timedelta

from vllm_rollout.model.units import format_duration, format_value

DEFAULT_MAX_GAP_SECONDS = 120.0
"""For callers without a policy; the suite's own triggers are given `triggers.max_gap`."""

_CENTURY_SECONDS = 100 * 365.25 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerState:
    """State of a trigger after an observation. Times are seconds on the caller's clock.

    `fired` never goes back. `observable` is False when there has been no data for longer than
    the rule's gap, or none yet: then not having fired says nothing about health. `since` is when
    the condition began to hold (None while it does not hold), `in_a_row` the observations that
    found it so, `measured` the last figure observed, at `observed_at`.
    """

    fired: bool = False
    observable: bool = False
    since: float | None = None
    measured: float | None = None
    reason: str = "nothing has been observed yet"
    in_a_row: int = 0
    observed_at: float | None = None
    stepped_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRule:
    """A condition and how long it must last; give `for_seconds` or `consecutive`.

    The condition is a measure strictly above `above`, or with `at_least` also equal to it (100%
    errors). With `for_seconds` the rule fires once the condition has held for *more* than that
    long, from the first to the latest observation, or at once when it is 0; with `consecutive`
    once *more* than that many observations in a row found it so.

    Observations at most `max_gap_seconds` apart show the time between them. Across a longer gap
    nothing is known: what was counted before it is dropped, and the state is not observable
    until data come again. `unit` is the measure's ("s", "ratio", "count" as in `Verdict`, or ""
    for a bare number), for the reason only.

    Raises:
        ValueError: both or neither of `for_seconds` and `consecutive`, or a number no rule can
            have.
    """

    above: float
    at_least: bool = False
    for_seconds: float | None = None
    consecutive: int | None = None
    max_gap_seconds: float = DEFAULT_MAX_GAP_SECONDS
    unit: str = ""

    def __post_init__(self) -> None:
        if (self.for_seconds is None) == (self.consecutive is None):
            raise ValueError("give a trigger either for_seconds or consecutive")
        if not math.isfinite(self.above):
            raise ValueError(f"above must be a finite number, not {self.above}")
        if self.for_seconds is not None and not 0 <= self.for_seconds < math.inf:
            raise ValueError(f"for_seconds must be 0 or more, not {self.for_seconds}")
        if self.consecutive is not None and self.consecutive < 0:
            raise ValueError(f"consecutive must be 0 or more, not {self.consecutive}")
        if not self.max_gap_seconds > 0:
            raise ValueError(f"max_gap_seconds must be above 0, not {self.max_gap_seconds}")
        format_value(self.above, self.unit)  # an unknown unit is found here, not in mid-watch

    def after(self, state: TriggerState, time: float, observation: float | None) -> TriggerState:
        """The state once `observation` was made at `time`; see `Trigger.step`."""
        if not math.isfinite(time):
            raise ValueError(f"time must be a finite number of seconds, not {time}")
        if state.fired:
            return state
        state, broken = self._up_to(state, time)
        if observation is None or not observation >= 0:
            return self._without_data(state, time, broken)
        seen = replace(
            state,
            observable=True,
            measured=float(observation),
            observed_at=time,
            stepped_at=time,
        )
        if not (observation > self.above or (self.at_least and observation == self.above)):
            reason = f"{self._show(observation)}, not {self._condition}{broken}"
            return replace(seen, since=None, in_a_row=0, reason=reason)
        since = time if state.since is None else state.since
        in_a_row = state.in_a_row + 1
        return replace(
            seen,
            fired=self._lasted(time - since, in_a_row),
            since=since,
            in_a_row=in_a_row,
            reason=f"{self._show(observation)}, {self._condition}"
            f"{self._progress(time - since, in_a_row)}{broken}",
        )

    def _up_to(self, state: TriggerState, time: float) -> tuple[TriggerState, str]:
        """The state with what the clock has made void dropped, and the words that say so."""
        if state.stepped_at is not None and time < state.stepped_at:
            back = _duration(state.stepped_at - time)
            return TriggerState(measured=state.measured), f"; the clock went back {back}: restarted"
        if state.observed_at is None or time - state.observed_at <= self.max_gap_seconds:
            return state, ""
        void = replace(state, since=None, in_a_row=0, observable=False)
        return void, f"; no data for {_duration(time - state.observed_at)}: restarted"

    def _without_data(self, state: TriggerState, time: float, broken: str) -> TriggerState:
        """A step that saw nothing: it fires nothing and clears nothing."""
        waiting = replace(state, stepped_at=time)
        if state.observed_at is None:
            return replace(waiting, reason=f"cannot observe: no data yet{broken}")
        quiet = _duration(time - state.observed_at)
        if state.observable:
            return replace(waiting, reason=f"no data for {quiet}; waiting for the next observation")
        limit = _duration(self.max_gap_seconds)
        return replace(waiting, reason=f"cannot observe: no data for {quiet} (at most {limit})")

    def _lasted(self, seconds: float, in_a_row: int) -> bool:
        if self.consecutive is not None:
            return in_a_row > self.consecutive
        return self.for_seconds is not None and (
            self.for_seconds == 0 or seconds > self.for_seconds
        )

    @property
    def _condition(self) -> str:
        return f"{'at least' if self.at_least else 'above'} {self._show(self.above)}"

    def _progress(self, seconds: float, in_a_row: int) -> str:
        if self.consecutive is not None:
            return f", {in_a_row} in a row (fires at more than {self.consecutive})"
        return f" for {_duration(seconds)} (fires after {_duration(self.for_seconds or 0)})"

    def _show(self, measure: float) -> str:
        return format_value(measure, self.unit) if self.unit else f"{measure:.4g}"


class Trigger:
    """A `TriggerRule` and its state so far; takes the rule's arguments and errors."""

    def __init__(
        self,
        *,
        above: float,
        at_least: bool = False,
        for_seconds: float | None = None,
        consecutive: int | None = None,
        max_gap_seconds: float = DEFAULT_MAX_GAP_SECONDS,
        unit: str = "",
    ) -> None:
        self.rule = TriggerRule(
            above=above,
            at_least=at_least,
            for_seconds=for_seconds,
            consecutive=consecutive,
            max_gap_seconds=max_gap_seconds,
            unit=unit,
        )
        self.state = TriggerState()

    def step(self, time: float, observation: float | None) -> TriggerState:
        """Take the measure seen at `time`, seconds on any clock; the new state is returned.

        None, NaN and a negative number are no data; infinity (a percentile among unanswered
        requests) is a measure. A clock that goes back makes what was counted void; one that
        jumps ahead further than the gap is such a gap.

        Raises:
            ValueError: `time` is NaN or infinite.
        """
        self.state = self.rule.after(self.state, time, observation)
        return self.state


def _duration(seconds: float) -> str:
    """Whole seconds above a minute, milliseconds below; a broken clock's aeons as a century."""
    seconds = min(seconds, _CENTURY_SECONDS)
    return format_duration(timedelta(seconds=round(seconds, 0 if seconds >= 60 else 3)))
