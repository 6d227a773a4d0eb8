"""Model of a capacity search: its goal, the loads it asks for, what they show, and its end."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.model.verdict import Outcome

KEPT_FOR_PROOFS = 2
"""Probes that exploring leaves to those that prove."""
UNSETTLED = 2.0
"""Times limit / duration, by which a rate that held may be above the capacity."""


class StopReason(StrEnum):
    """Reason for the end of a search."""

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
class SearchConfig:
    """Configuration of a search. Rates are per second, `precision` and `confidence` fractions.

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
            "most_probes is above 2": self.most_probes > KEPT_FOR_PROOFS,
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
        return min(self.proof_seconds, UNSETTLED * self.limit_seconds / (self.precision / 2))


class Purpose(StrEnum):
    """Purpose of a probe."""

    EXPLORE = "explore"
    """To find the place; it cannot pass."""
    PROVE = "prove"
    """To prove that the SLOs hold."""
    REFUTE = "refute"
    """To prove that they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextProbe:
    """The next probe. It lasts at most `most_seconds`; a pass takes `least_seconds`."""

    per_second: float
    aim: Purpose
    least_seconds: float
    most_seconds: float
    pass_risk: float | None
    fail_risk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Result of a load at one rate. `holds` is the tendency of an inconclusive probe.

    `seconds` is how long it was judged, `reason` why it ended as it did. `p95_seconds` is infinite
    where more than one in twenty got no answer, `good_per_second` the requests within every limit.
    """

    per_second: float
    aim: Purpose
    outcome: Outcome
    holds: bool
    seconds: float
    reason: str
    saturated: bool = False
    requests: int = 0
    failures: int = 0
    offered_per_second: float | None = None
    p50_seconds: float | None = None
    p95_seconds: float | None = None
    good_per_second: float | None = None
    generator_limited: str = ""
    """How the generator fell behind, or empty; such a probe says nothing of the server."""
    unmeasured: str = ""
    """Why nothing is known of the rate at all, or empty."""

    @property
    def good(self) -> bool:
        """True if the SLOs hold by this probe, with confidence or as a tendency."""
        return self.outcome is Outcome.PASS or (self.outcome is not Outcome.FAIL and self.holds)

    def unless(self, why: str) -> "Probe":
        """The same, made to say nothing of the rate, as `why` tells."""
        return replace(
            self, outcome=Outcome.INCONCLUSIVE, reason=why, saturated=False, unmeasured=why
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The end of a search: the capacity lies between `lower` and `upper` with `confidence`.

    `lower` is 0 where no rate was proved, `upper` infinite where none was refuted, and `estimate`
    None where one of the two is missing. `proved` is the rate that held.
    """

    ending: StopReason
    confidence: float
    lower: float
    upper: float
    estimate: float | None
    proved: float | None
    detail: str = ""
