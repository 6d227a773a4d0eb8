"""Has a revision been unchanged and healthy for long enough? Judged by when it was seen how."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from vllm_rollout.model.units import format_duration
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.policy import Soak

_MOST_GAPS_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Sights that found the same, from the first to the last of them, never far apart.

    `why` says what was wrong where it was not healthy. `restarted`: its first sight found a server
    started anew.
    """

    first: datetime
    last: datetime
    healthy: bool
    why: str = ""
    restarted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakState:
    """What is known of a soak. `soaked` is the time seen healthy since `since`.

    `gaps` are the stretches since then in which nobody looked, `began_anew` why it does not count
    from the revision's beginning (or empty), `trouble` what is wrong at this moment (or empty).
    """

    since: datetime
    soaked: timedelta
    minimum: timedelta
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    began_anew: str = ""
    trouble: str = ""
    seen: bool = True

    @property
    def left(self) -> timedelta:
        """How much longer it must be seen healthy, in whole seconds; 0 if no longer."""
        seconds = (self.minimum - self.soaked).total_seconds()
        return timedelta(seconds=max(0, math.ceil(seconds)))

    @property
    def over(self) -> bool:
        """Whether it has soaked long enough and is healthy now."""
        return not self.left and not self.trouble


def soak_state(
    stretches: Sequence[Stretch], *, began: datetime, now: datetime, rules: Soak
) -> SoakState:
    """What `stretches`, in order of time, show of a revision that `began` then.

    Time counts between sights at most `rules.max_gap` apart that both found it healthy. Unhealthy
    for longer than `rules.grace`, or a restart, and it begins anew; a shorter spell does not count
    and breaks nothing. Sights from after `now` (a clock was set back) are not believed.
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
        began_anew=count.began_anew,
        trouble=count.trouble,
        seen=bool(known),
    )


class _Count:
    """The walk over the stretches."""

    def __init__(self, began: datetime, rules: Soak) -> None:
        self._rules = rules
        self._at, self._well = began, True
        self._ill_since: datetime | None = None
        self.since, self.soaked = began, timedelta()
        self.gaps: list[tuple[datetime, datetime]] = []
        self.began_anew = self.trouble = ""

    def take(self, stretch: Stretch, last: datetime) -> None:
        """The next stretch, which ends at `last`."""
        self._pass_to(stretch.first, stretch.healthy)
        if stretch.restarted:
            self._anew(stretch.first, stretch.why or "a server was started anew")
        if stretch.healthy:
            self._ill_since, self.trouble = None, ""
            self.soaked += last - stretch.first
        else:
            self._ill_since = self._ill_since or stretch.first
            self.trouble = stretch.why or "it is not healthy"
            if last - self._ill_since > self._rules.grace:
                self._anew(last, self.trouble)
        self._at, self._well = last, stretch.healthy

    def until(self, now: datetime) -> None:
        """Nothing more was seen up to `now`."""
        if now - self._at > self._rules.max_gap:
            self.gaps.append((self._at, now))
        elif self._well:
            self.soaked += now - self._at
        if self._ill_since is not None and now - self._ill_since > self._rules.grace:
            self._anew(now, self.trouble)

    def _pass_to(self, moment: datetime, healthy: bool) -> None:
        apart = moment - self._at
        # An illness lasts until it is seen to be over.
        if self._ill_since is not None and moment - self._ill_since > self._rules.grace:
            self._anew(moment, self.trouble)
        elif apart > self._rules.max_gap:
            self.gaps.append((self._at, moment))
        elif self._well and healthy:
            self.soaked += apart

    def _anew(self, moment: datetime, why: str) -> None:
        self.since, self.soaked, self.gaps = moment, timedelta(), []
        self.began_anew = f"{why} ({moment:%Y-%m-%d %H:%M:%S %Z})"


def soak_verdict(state: SoakState, *, remedy: str) -> Verdict:
    """Pass if the soak is over, inconclusive while it is not; `remedy` is what lets it be seen."""
    figures = Verdict(
        outcome=Outcome.PASS,
        reason=soak_text(state),
        measured=state.soaked.total_seconds(),
        limit=state.minimum.total_seconds(),
        unit="s",
    )
    if state.over:
        return figures
    return figures.inconclusive_because(soak_text(state), remedy)


def soak_text(state: SoakState) -> str:
    """What is known, in one line: how long, how much is left, what broke it, what nobody saw."""
    seen = f"seen healthy for {_time(state.soaked)} of {format_duration(state.minimum)}"
    words = [f"{seen} since {state.since:%Y-%m-%d %H:%M:%S %Z}"]
    if state.left:
        words.append(f"{format_duration(state.left)} are left")
    if state.trouble:
        words.append(f"it is not healthy now: {state.trouble}")
    if state.began_anew:
        words.append(f"it began anew: {state.began_anew}")
    for start, end in state.gaps[:_MOST_GAPS_NAMED]:
        words.append(f"nobody looked from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M %Z}")
    if len(state.gaps) > _MOST_GAPS_NAMED:
        words.append(f"and {len(state.gaps) - _MOST_GAPS_NAMED} gaps more")
    return ", ".join(words)


def _time(duration: timedelta) -> str:
    return format_duration(timedelta(seconds=int(duration.total_seconds())))
