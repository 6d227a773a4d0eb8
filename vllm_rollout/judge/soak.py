"""Soak verdict: a revision was observed unchanged and healthy for long enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from vllm_rollout.model.units import counted, format_about, format_duration
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod
from vllm_rollout.policy import Soak

_MOST_GAPS_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Observations with the same result, from the first to the last of them, never far apart.

    `why` says what was wrong where it was not healthy. `restarted`: its first observation found a
    restarted server.
    """

    first: datetime
    last: datetime
    healthy: bool
    why: str = ""
    restarted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakState:
    """State of a soak. `soaked` is the time observed healthy since `since`.

    `gaps` are the stretches since then without an observation, `restarted` why it does not count
    from the revision's beginning (or empty), `problem` what is wrong at this moment (or empty).
    """

    since: datetime
    soaked: timedelta
    minimum: timedelta
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    restarted: str = ""
    problem: str = ""
    seen: bool = True

    @property
    def left(self) -> timedelta:
        """Time it must still be seen healthy, in whole seconds; 0 if none."""
        seconds = (self.minimum - self.soaked).total_seconds()
        return timedelta(seconds=max(0, math.ceil(seconds)))

    @property
    def over(self) -> bool:
        """True if it has soaked long enough and is healthy now."""
        return not self.left and not self.problem


def soak_state(
    stretches: Sequence[Stretch], *, began: datetime, now: datetime, rules: Soak
) -> SoakState:
    """Return the soak after `stretches`, in order of time, of a revision that `began` then.

    Time counts between observations at most `rules.max_gap` apart that both found it healthy.
    Unhealthy for longer than `rules.grace`, or a restart, and the soak restarts; a shorter illness
    does not count and breaks nothing. Observations after `now` (a clock was set back) are ignored.
    """
    count = _Count(began, rules)
    known = [s for s in stretches if began <= s.first <= now]
    for stretch in known:
        count.take(stretch, min(stretch.last, now))
    count.until(now)
    return SoakState(
        since=count.since,
        soaked=count.soaked,
        minimum=rules.minimum,
        gaps=tuple(count.gaps),
        restarted=count.restarted,
        problem=count.problem,
        seen=bool(known),
    )


class _Count:
    """Counts the soaked time over the stretches."""

    def __init__(self, began: datetime, rules: Soak) -> None:
        self._rules = rules
        self._at, self._well = began, True
        self._ill_since: datetime | None = None
        self.since, self.soaked = began, timedelta()
        self.gaps: list[tuple[datetime, datetime]] = []
        self.restarted = self.problem = ""

    def take(self, stretch: Stretch, last: datetime) -> None:
        """Count the next stretch, which ends at `last`."""
        self._pass_to(stretch.first, stretch.healthy)
        if stretch.restarted:
            self._restart(stretch.first, stretch.why or "a server was restarted")
        if stretch.healthy:
            self._ill_since, self.problem = None, ""
            self.soaked += last - stretch.first
        else:
            self._ill_since = self._ill_since or stretch.first
            self.problem = stretch.why or "it is not healthy"
            if last - self._ill_since > self._rules.grace:
                self._restart(last, self.problem)
        self._at, self._well = last, stretch.healthy

    def until(self, now: datetime) -> None:
        """Count up to `now`, without another observation."""
        if now - self._at > self._rules.max_gap:
            self.gaps.append((self._at, now))
        elif self._well:
            self.soaked += now - self._at
        if self._ill_since is not None and now - self._ill_since > self._rules.grace:
            self._restart(now, self.problem)

    def _pass_to(self, moment: datetime, healthy: bool) -> None:
        apart = moment - self._at
        # An illness lasts until it is seen to be over.
        if self._ill_since is not None and moment - self._ill_since > self._rules.grace:
            self._restart(moment, self.problem)
        elif apart > self._rules.max_gap:
            self.gaps.append((self._at, moment))
        elif self._well and healthy:
            self.soaked += apart

    def _restart(self, moment: datetime, why: str) -> None:
        self.since, self.soaked, self.gaps = moment, timedelta(), []
        self.restarted = f"{why} ({moment:%Y-%m-%d %H:%M:%S %Z})"


def soak_verdict(state: SoakState, *, remedy: str) -> Verdict:
    """Pass if the soak is over, inconclusive while it is not; `remedy` is what lets it be seen."""
    figures = Verdict(
        outcome=Outcome.PASS,
        reason=soak_text(state),
        measured=state.soaked.total_seconds(),
        limit=state.minimum.total_seconds(),
        unit="s",
        method=VerdictMethod.COMPARED,
    )
    if state.over:
        return figures
    return figures.inconclusive_because(soak_text(state), remedy)


def soak_text(state: SoakState) -> str:
    """Return the soak in one line: how long, how much is left, what restarted it, its gaps."""
    minimum = format_duration(state.minimum)
    seen = f"seen healthy for {_time(state.soaked)} of {minimum}"
    if not state.seen:
        seen = f"not observed yet, and {minimum} are required,"
    words = [f"{seen} since {state.since:%Y-%m-%d %H:%M:%S %Z}"]
    if state.left:
        words.append(f"{format_about(state.left)} are left")
    if state.problem:
        words.append(f"it is not healthy now: {state.problem}")
    if state.restarted:
        words.append(f"it restarted: {state.restarted}")
    for start, end in state.gaps[:_MOST_GAPS_NAMED]:
        words.append(f"not observed from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M %Z}")
    if len(state.gaps) > _MOST_GAPS_NAMED:
        words.append(f"and {counted(len(state.gaps) - _MOST_GAPS_NAMED, 'more gap')}")
    return ", ".join(words)


def _time(duration: timedelta) -> str:
    return format_duration(timedelta(seconds=int(duration.total_seconds())))
