"""The verdict, the result of every gate."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from vllm_rollout.model.errors import ExitCode


class Outcome(StrEnum):
    """Three values: a gate that cannot know says so, and that never promotes."""

    PASS = "pass"  # noqa: S105 - the word, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that ends by it."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.PASS: ExitCode.OK,
    Outcome.FAIL: ExitCode.GATE_FAILED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


class VerdictMethod(StrEnum):
    """How a verdict's bounds follow from its figures."""

    COMPARED = "compared"
    """There is no bound: the measured value is compared with the limit as it is."""
    ORDER_STATISTICS = "order statistics"
    """The bounds of a percentile are latencies at two ranks."""
    BUCKETS = "buckets"
    """The same two ranks; the bounds are the edges of their buckets."""
    CLOPPER_PEARSON = "Clopper-Pearson"
    """The exact bounds of a share."""
    ANYTIME_VALID = "anytime-valid"
    """The confidence sequence of a share, valid however often it is read."""
    TWO_SAMPLES = "two samples"
    """Exact bounds of how far two samples differ."""
    SEARCH = "search"
    """An interval from several loads at different rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An outcome and all that is needed to check it by hand.

    `measured`, `lower`, `upper` and `limit` share `unit` ("s", "ratio", "1/s", "count", or ""
    for a plain yes or no, where they are None). `lower` and `upper` are confidence bounds at
    `confidence` (one-sided each, a fraction) over `n` observations; a bound that does not exist
    for this n is None. `remedy` says what to do when the outcome is not a pass.
    `p_value` is the chance of figures as bad as these or worse if the truth were just at the
    limit, by which fails among several gates are distinguished from chance
    (`judge.multiple_testing`); None where it was not computed.
    `method` is how the bounds were computed, None for a plain fact. `percentile` is the one judged
    (95 for P95), and `block` how many requests in a row count as one; None where that has no
    meaning. Programs go by these fields and never by the words of `reason` and `remedy`.
    """

    outcome: Outcome
    reason: str
    measured: float | None = None
    lower: float | None = None
    upper: float | None = None
    limit: float | None = None
    confidence: float | None = None
    n: int = 0
    remedy: str = ""
    unit: str = ""
    p_value: float | None = None
    method: VerdictMethod | None = None
    percentile: float | None = None
    block: int | None = None

    @property
    def passed(self) -> bool:
        """True if the outcome is a pass."""
        return self.outcome is Outcome.PASS

    def inconclusive_because(self, reason: str, remedy: str = "") -> "Verdict":
        """The same figures, made inconclusive for `reason` (a verdict is only ever weakened)."""
        return replace(self, outcome=Outcome.INCONCLUSIVE, reason=reason, remedy=remedy)

    def without_figures(self) -> "Verdict":
        """Outcome and words alone, for where the figures are not of what is judged."""
        return Verdict(outcome=self.outcome, reason=self.reason, remedy=self.remedy, n=self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoToken(Verdict):
    """Reached where the server gives no token: nothing more need be asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWord(NoToken):
    """Inconclusive for an answer about the key or the address: nothing is known of the build."""


def check(holds: bool | None, reason: str, *, remedy: str = "", n: int = 1) -> Verdict:
    """A verdict about a plain fact: True passes, False fails, None (unknown) is inconclusive."""
    outcome = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.INCONCLUSIVE}[holds]
    return Verdict(
        outcome=outcome, reason=reason, n=n, remedy="" if outcome is Outcome.PASS else remedy
    )


_ORDER = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of many: any fail, else anything inconclusive, else a pass.

    Of none it is inconclusive: nothing was judged.
    """
    return min(outcomes, key=_ORDER.index, default=Outcome.INCONCLUSIVE)
