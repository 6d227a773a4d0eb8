"""The highest rate at which the SLOs hold, from short loads at one rate each.

It is taken that more load never makes the SLOs easier to hold: they hold up to some rate, the
capacity, and not above it. So one rate that surely holds and one that surely does not are an
interval for the capacity. The search first looks for the place with probes that are too short to
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
from dataclasses import dataclass
from enum import StrEnum

from vllm_rollout.judge.rate_probe import Slos
from vllm_rollout.judge.verdict import Outcome
from vllm_rollout.units import format_value

_STEP_UP = 2.0
_MOST_HALVINGS = 5
"""Below the first rate by this power of 2 no service is looked for."""
_KEPT_FOR_PROOFS = 2
_MOST_UNPROVED = 4
"""Where so many rates held and could not be proved, a lower one would not be either."""
_UNSETTLED = 2.0
"""Times limit / duration, by which a rate that held may be above the capacity."""


class Ending(StrEnum):
    """Why a search ended."""

    FOUND = "found"
    """Both ends of the interval were shown."""
    AT_LEAST = "at least"
    """The highest rate that may be sent holds."""
    BELOW = "below"
    """Not even the lowest rate that was tried holds."""
    GENERATOR = "generator"
    """The generator could not send more."""
    PROBES = "probes"
    """No more probes may be sent."""
    UNPROVED = "unproved"
    """Rates held, and the longest load was too short to prove any."""
    UNSTEADY = "unsteady"
    """A rate did not hold and a higher one did."""
    UNMEASURED = "unmeasured"
    """A probe could not be measured."""
    NOT_RECOVERED = "not recovered"
    """The server did not become idle again."""
    CHANGED = "changed"
    """Another build or revision appeared."""
    INTERRUPTED = "interrupted"
    """Ctrl-C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is searched. Rates are per second, `precision` and `confidence` fractions.

    `limit_seconds` is the time beyond which a request is late by the `slos`, or given up;
    `probe_seconds` is how long the shortest probe lasts, `proof_seconds` the longest.

    Raises:
        ValueError: a value with which nothing can be searched.
    """

    slos: Slos
    start_per_second: float
    max_per_second: float
    precision: float
    confidence: float
    most_probes: int
    limit_seconds: float
    probe_seconds: float
    proof_seconds: float

    def __post_init__(self) -> None:
        sound = {
            "start_per_second is above 0 and at most max_per_second": 0
            < self.start_per_second
            <= self.max_per_second
            < math.inf,
            "precision lies between 0 and 1": 0 < self.precision < 1,
            "confidence lies between 0.5 and 1": 0.5 < self.confidence < 1,
            "most_probes is above 2": self.most_probes > _KEPT_FOR_PROOFS,
            "limit_seconds is a positive time": 0 < self.limit_seconds < math.inf,
            "probe_seconds is above 0, and proof_seconds not below it": 0
            < self.probe_seconds
            <= self.proof_seconds
            < math.inf,
        }
        broken = [rule for rule, holds in sound.items() if not holds]
        if broken:
            raise ValueError(f"it must hold that {'; that '.join(broken)}")

    @property
    def step(self) -> float:
        """Ratio of two rates between which no third is looked for."""
        return 1 + self.precision / 2

    @property
    def fail_risk(self) -> float:
        """Chance that one probe wrongly fails."""
        return (1 - self.confidence) / 2 / self.most_probes

    def pass_risk(self, earlier: int) -> float:
        """Chance that an attempt to prove a rate is wrong, after so many `earlier` ones."""
        return (1 - self.confidence) / 4 / 2.0**earlier

    @property
    def proved_after_seconds(self) -> float:
        """How long a rate must hold at least to be proved."""
        return min(self.proof_seconds, _UNSETTLED * self.limit_seconds / (self.precision / 2))


class Aim(StrEnum):
    """What a probe is for."""

    EXPLORE = "explore"
    """To find the place; it cannot pass."""
    PROVE = "prove"
    """To prove that the SLOs hold."""
    REFUTE = "refute"
    """To prove that they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The next probe. It lasts at most `most_seconds`; a pass takes `least_seconds`."""

    per_second: float
    aim: Aim
    least_seconds: float
    most_seconds: float
    pass_risk: float | None
    fail_risk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found at one rate. `holds` is what an inconclusive probe leans to.

    `seconds` is how long it was judged, `reason` why it ended as it did. `p95_seconds` is infinite
    where more than one in twenty got no answer, `good_per_second` the requests within every limit.
    """

    per_second: float
    aim: Aim
    outcome: Outcome
    holds: bool
    seconds: float
    reason: str
    saturated: bool = False
    requests: int = 0
    failures: int = 0
    offered_per_second: float = math.nan
    p50_seconds: float = math.nan
    p95_seconds: float = math.nan
    good_per_second: float = math.nan
    generator_limited: str = ""
    """How the generator fell behind, or empty; such a probe says nothing of the server."""
    unmeasured: str = ""
    """Why nothing can be said of the rate at all, or empty."""

    @property
    def good(self) -> bool:
        """Whether the SLOs hold by this probe, surely or so far."""
        return self.outcome is Outcome.PASS or (self.outcome is not Outcome.FAIL and self.holds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The end of a search: the capacity lies between `lower` and `upper` with `confidence`.

    `lower` is 0 where no rate was proved, `upper` infinite where none was refuted, and `estimate`
    None where one of the two is missing. `proved` is the rate that held.
    """

    ending: Ending
    confidence: float
    lower: float
    upper: float
    estimate: float | None
    proved: float | None
    detail: str = ""


def next_step(goal: Goal, probes: Sequence[Probe]) -> Ask | Capacity:
    """What follows from the probes so far: the next one, or the end."""
    if probes and probes[-1].unmeasured:
        return conclude(goal, probes, Ending.UNMEASURED, probes[-1].unmeasured)
    seen = _Seen(goal, probes)
    if seen.proved >= seen.refuted:
        return conclude(
            goal,
            probes,
            Ending.UNSTEADY,
            f"it did not hold at {seen.refuted:.4g}/s and did at {seen.proved:.4g}/s",
        )
    if len(probes) >= goal.most_probes:
        return conclude(goal, probes, Ending.PROBES)
    left = goal.most_probes - len(probes)
    rate = seen.explored()
    if rate is not None and (left > _KEPT_FOR_PROOFS or not seen.good):
        return _explore(goal, rate, seen.good)
    target = seen.to_prove()
    if target is not None:
        proof = _prove(goal, probes, target, Aim.PROVE)
        if seen.hopeless or (short := _too_short(goal, proof)):
            return conclude(goal, probes, Ending.UNPROVED, "" if seen.hopeless else short)
        return proof
    if seen.good >= goal.max_per_second:
        return conclude(goal, probes, Ending.AT_LEAST)
    if seen.limited:
        return conclude(goal, probes, Ending.GENERATOR, seen.limited)
    target = seen.to_refute()
    if target is not None:
        return _prove(goal, probes, target, Aim.REFUTE)
    return conclude(goal, probes, Ending.FOUND if seen.good else Ending.BELOW)


def conclude(goal: Goal, probes: Sequence[Probe], ending: Ending, detail: str = "") -> Capacity:
    """The interval that the probes so far give, however the search ended."""
    seen = _Seen(goal, probes)
    lower = max(
        (
            p.per_second / (1 + _UNSETTLED * goal.limit_seconds / p.seconds)
            for p in probes
            if p.outcome is Outcome.PASS
        ),
        default=0.0,
    )
    upper = seen.refuted
    if ending is Ending.UNSTEADY:
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
    """The probes' story: which rates hold, which do not, and what is tried already.

    Of several probes at one rate the one that decided counts, else the latest.
    """

    def __init__(self, goal: Goal, probes: Sequence[Probe]) -> None:
        self._goal = goal
        self.limited = next((p.generator_limited for p in probes if p.generator_limited), "")
        self._ceiling = min(
            [goal.max_per_second]
            + [p.per_second / math.sqrt(_STEP_UP) for p in probes if p.generator_limited]
        )
        told = [p for p in probes if not p.generator_limited]
        decided = [p for p in told if p.outcome is not Outcome.INCONCLUSIVE]
        latest = {p.per_second: p for p in [*told, *decided]}
        self.proved = max((p.per_second for p in told if p.outcome is Outcome.PASS), default=0.0)
        self.refuted = min(
            (p.per_second for p in told if p.outcome is Outcome.FAIL), default=math.inf
        )
        self.bad = min(
            (p.per_second for p in latest.values() if not p.good and p.per_second > self.proved),
            default=math.inf,
        )
        self.good = max(
            [self.proved]
            + [p.per_second for p in latest.values() if p.good and p.per_second < self.bad]
        )
        self._told = told
        self._unproved = [
            p.per_second for p in told if p.aim is Aim.PROVE and p.outcome is not Outcome.PASS
        ]
        self._unrefuted = [
            p.per_second for p in told if p.aim is Aim.REFUTE and p.outcome is not Outcome.FAIL
        ]

    @property
    def hopeless(self) -> bool:
        """Whether too many attempts to prove a rate were undecided."""
        undecided = [
            p for p in self._told if p.aim is Aim.PROVE and p.outcome is Outcome.INCONCLUSIVE
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
            bad = (p.per_second for p in self._told if not p.good and p.per_second > beyond)
            rate = min(bad, default=math.inf)
        return rate if rate * (1 + 1e-9) < self.refuted else None

    def _stride(self, missed: Sequence[float]) -> float:
        """The ratio to go on by after so many attempts that did not decide: ever wider ones."""
        return math.pow(1 + self._goal.precision, max(1, len(missed) - 1))


def _explore(goal: Goal, per_second: float, good: float) -> Ask:
    """A probe long enough to show an excess as large as the step from a rate that holds."""
    step = per_second / good if good else _STEP_UP
    shows = goal.limit_seconds / (step - 1) if step > 1 else 0.0
    seconds = max(
        goal.probe_seconds,
        min(shows, goal.proved_after_seconds),
        min(goal.slos.fewest_requests / per_second, goal.proof_seconds),
    )
    return Ask(
        per_second=per_second,
        aim=Aim.EXPLORE,
        least_seconds=seconds,
        most_seconds=seconds,
        pass_risk=None,
        fail_risk=goal.fail_risk,
    )


def _prove(goal: Goal, probes: Sequence[Probe], per_second: float, aim: Aim) -> Ask:
    return Ask(
        per_second=per_second,
        aim=aim,
        least_seconds=goal.proved_after_seconds,
        most_seconds=goal.proof_seconds,
        pass_risk=goal.pass_risk(sum(probe.aim is not Aim.EXPLORE for probe in probes)),
        fail_risk=goal.fail_risk,
    )


def _too_short(goal: Goal, proof: Ask) -> str:
    """Why no load at the rate can prove it, or ""."""
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
