"""The highest rate at which the SLOs hold, from short loads at one rate each.

It is taken that more load never makes the SLOs easier to hold: they hold up to some rate, the
capacity, and not above it. So one rate at which they hold with confidence and one at which they do
not are an interval for the capacity. The search first explores with probes that are too short to
prove that the SLOs hold, then proves the rate below it; a rate above shows by itself, as a rule.

Of the risk 1 - confidence, that the capacity is outside the interval, half is for its upper end,
in even parts for the fails of all probes, and half for its lower end: the first attempt to prove a
rate has half of that, each further one half of what is left. Bonferroni over the whole search, so
it holds for rates chosen by what was seen before.

A load that begins with an idle server says little of an excess that has had no time to show: at
(1 + e) times what the service can do, waiting grows by e seconds a second, and reaches the limit
of L seconds after L / e. A rate that held for T seconds may therefore be above what the service can
do by the share L / T. Just below that, waiting settles too slowly to be seen to its end, and would
yet exceed the limit: in a queue with the share g to spare it settles in some 4 / g^2 service times,
and 95% wait less than L where g is 3 service times / L, which adds about L / T. So the lower end is
the rate that held, less the share 2 L / T; proofs last as long as makes that half the precision.
"""

import math
from collections.abc import Sequence

from vllm_rollout.capacity.model import (
    KEPT_FOR_PROOFS,
    UNSETTLED,
    Capacity,
    NextProbe,
    Probe,
    Purpose,
    SearchConfig,
    StopReason,
)
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome

_STEP_UP = 2.0
_MOST_HALVINGS = 5
"""Below the first rate by this power of 2 no service is looked for."""
_MOST_UNPROVED = 4
"""Where so many rates held and could not be proved, a lower one would not be either."""


def next_step(goal: SearchConfig, probes: Sequence[Probe]) -> NextProbe | Capacity:
    """Return the next probe after the probes so far, or the end."""
    if probes and probes[-1].unmeasured:
        return conclude(goal, probes, StopReason.UNMEASURED, probes[-1].unmeasured)
    seen = _Seen(goal, probes)
    if seen.proved >= seen.refuted:
        return conclude(
            goal,
            probes,
            StopReason.UNSTEADY,
            f"it did not hold at {seen.refuted:.4g}/s and did at {seen.proved:.4g}/s",
        )
    if len(probes) >= goal.most_probes:
        return conclude(goal, probes, StopReason.PROBES)
    left = goal.most_probes - len(probes)
    rate = seen.explored()
    if rate is not None and (left > KEPT_FOR_PROOFS or not seen.good):
        return _explore(goal, rate, seen.good)
    target = seen.to_prove()
    if target is not None:
        proof = _prove(goal, probes, target, Purpose.PROVE)
        if seen.hopeless or (short := _too_short(goal, proof)):
            return conclude(goal, probes, StopReason.UNPROVED, "" if seen.hopeless else short)
        return proof
    if seen.good >= goal.max_per_second:
        return conclude(goal, probes, StopReason.AT_LEAST)
    if seen.limited:
        return conclude(goal, probes, StopReason.GENERATOR, seen.limited)
    target = seen.to_refute()
    if target is not None:
        return _prove(goal, probes, target, Purpose.REFUTE)
    return conclude(goal, probes, StopReason.FOUND if seen.good else StopReason.BELOW)


def conclude(
    goal: SearchConfig, probes: Sequence[Probe], ending: StopReason, detail: str = ""
) -> Capacity:
    """The interval that the probes so far give, however the search ended."""
    seen = _Seen(goal, probes)
    lower = max(
        (
            p.per_second / (1 + UNSETTLED * goal.limit_seconds / p.seconds)
            for p in probes
            if p.outcome is Outcome.PASS
        ),
        default=0.0,
    )
    upper = seen.refuted
    if ending is StopReason.UNSTEADY:
        lower, upper = min(lower, upper), max(seen.proved, upper)
    estimate = None
    if lower > 0 and upper < math.inf:
        middle = math.sqrt(seen.good * min(seen.bad, upper)) if seen.good else lower
        estimate = min(max(middle, lower), upper)
    return Capacity(
        ending=ending,
        confidence=goal.confidence,
        lower=lower,
        upper=upper,
        estimate=estimate,
        proved=seen.proved or None,
        detail=detail,
    )


class _Seen:
    """Summary of the probes: which rates hold, which do not, and which were tried.

    Of several probes at one rate the one that decided counts, else the latest.
    """

    def __init__(self, goal: SearchConfig, probes: Sequence[Probe]) -> None:
        self._goal = goal
        self.limited = next((p.generator_limited for p in probes if p.generator_limited), "")
        self._ceiling = min(
            [goal.max_per_second]
            + [p.per_second / math.sqrt(_STEP_UP) for p in probes if p.generator_limited]
        )
        usable = [p for p in probes if not p.generator_limited]
        decided = [p for p in usable if p.outcome is not Outcome.INCONCLUSIVE]
        latest = {p.per_second: p for p in [*usable, *decided]}
        self.proved = max((p.per_second for p in usable if p.outcome is Outcome.PASS), default=0.0)
        self.refuted = min(
            (p.per_second for p in usable if p.outcome is Outcome.FAIL), default=math.inf
        )
        self.bad = min(
            (p.per_second for p in latest.values() if not p.good and p.per_second > self.proved),
            default=math.inf,
        )
        self.good = max(
            [self.proved]
            + [p.per_second for p in latest.values() if p.good and p.per_second < self.bad]
        )
        self._usable = usable
        self._unproved = [
            p.per_second for p in usable if p.aim is Purpose.PROVE and p.outcome is not Outcome.PASS
        ]
        self._unrefuted = [
            p.per_second
            for p in usable
            if p.aim is Purpose.REFUTE and p.outcome is not Outcome.FAIL
        ]

    @property
    def hopeless(self) -> bool:
        """True if too many attempts to prove a rate were undecided."""
        undecided = [
            p for p in self._usable if p.aim is Purpose.PROVE and p.outcome is Outcome.INCONCLUSIVE
        ]
        return not self.proved and len(undecided) >= _MOST_UNPROVED

    def explored(self) -> float | None:
        """The next rate to look at, None where the place is known as well as is asked."""
        goal = self._goal
        if self._unproved:  # from there on it is looked for by proofs
            return None
        if not self.good and self.bad == math.inf:
            rate = min(goal.start_per_second, self._ceiling)
            # A generator that cannot send half of what was asked for needs help first.
            return rate if rate * (1 + 1e-9) >= goal.start_per_second / _STEP_UP else None
        if self.bad == math.inf:
            rate = min(self.good * _STEP_UP, self._ceiling)
            return rate if rate > self.good * (1 + 1e-9) else None
        if not self.good:
            rate = self.bad / _STEP_UP
            return rate if rate >= goal.start_per_second / 2.0**_MOST_HALVINGS else None
        wide = self.bad / self.good > goal.step * (1 + 1e-9)
        return math.sqrt(self.bad * self.good) if wide else None

    def to_prove(self) -> float | None:
        """The highest rate worth a proof that the SLOs hold; None where it is proved.

        After each attempt that did not prove its rate it is lower, by growing steps.
        """
        rate, missed = self.good, [rate for rate in self._unproved if rate > self.proved]
        if missed:
            rate = min(missed) / self._stride(missed)
        return rate if rate > self.proved * (1 + 1e-9) else None

    def to_refute(self) -> float | None:
        """The lowest rate worth a proof that they do not; None where there is one."""
        beyond = max([self.proved, *self._unproved])
        missed = [rate for rate in self._unrefuted if rate > beyond]
        if missed:
            rate = max(missed) * self._stride(missed)
        else:
            bad = (p.per_second for p in self._usable if not p.good and p.per_second > beyond)
            rate = min(bad, default=math.inf)
        return rate if rate * (1 + 1e-9) < self.refuted else None

    def _stride(self, missed: Sequence[float]) -> float:
        """The ratio to go on by after so many attempts that did not decide: ever wider ones."""
        return math.pow(1 + self._goal.precision, max(1, len(missed) - 1))


def _explore(goal: SearchConfig, per_second: float, good: float) -> NextProbe:
    """A probe long enough to show an excess as large as the step from a rate that holds."""
    step = per_second / good if good else _STEP_UP
    shows = goal.limit_seconds / (step - 1) if step > 1 else 0.0
    seconds = max(
        goal.probe_seconds,
        min(shows, goal.proved_after_seconds),
        min(goal.slos.fewest_requests / per_second, goal.proof_seconds),
    )
    return NextProbe(
        per_second=per_second,
        aim=Purpose.EXPLORE,
        least_seconds=seconds,
        most_seconds=seconds,
        pass_risk=None,
        fail_risk=goal.fail_risk,
    )


def _prove(
    goal: SearchConfig, probes: Sequence[Probe], per_second: float, aim: Purpose
) -> NextProbe:
    return NextProbe(
        per_second=per_second,
        aim=aim,
        least_seconds=goal.proved_after_seconds,
        most_seconds=goal.proof_seconds,
        pass_risk=goal.pass_risk(sum(probe.aim is not Purpose.EXPLORE for probe in probes)),
        fail_risk=goal.fail_risk,
    )


def _too_short(goal: SearchConfig, proof: NextProbe) -> str:
    """Return why no load at the rate can prove it, or ""."""
    if proof.pass_risk is None:
        return ""
    needed = goal.slos.requests_to_pass(proof.pass_risk)
    seconds = needed / proof.per_second
    if seconds <= proof.most_seconds:
        return ""
    return (
        f"{needed:,} good requests prove a rate, which take "
        f"{format_value(seconds, 's')} at {format_value(proof.per_second, '1/s')}"
    )
