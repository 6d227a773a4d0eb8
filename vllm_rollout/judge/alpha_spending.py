"""Alpha spending: verdicts on a load that is watched while it runs, and judged again at its end.

A verdict that may be reached before the end, by a sequential test, and again at the end, by a
fixed sample, has two chances to be wrong. So each occasion gets a part of the risk, and by the
union bound the parts add up to no more than the whole, however the two depend on each other (the
idea of alpha spending, Lan & DeMets 1983, Biometrika 70:659, with a part that is valid whenever it
is spent).

*Fails* are worth reaching early: a bad build need not be loaded for ten minutes. *Passes* keep the
whole risk for the end, unless they may be reached early too (`passes`): a pass at the end is then
what it would be without any watching, for to stop at a fail only takes passes away.

A fail's p-value, by which it has to stand among several (`judge.multiple_testing`), is the smaller
of those of the two occasions, each over its part (Bonferroni's rule with weights).

A gate that is inconclusive and asked again has further occasions, `RepeatedGates`: the first has
90% of the risk, the others that fit before the deadline share the rest alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vllm_rollout.judge.multiple_testing import Method, family_confidence
from vllm_rollout.judge.sample_size import check_confidence
from vllm_rollout.model.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaSpending:
    """Split of a verdict's risk, 1 - `confidence`: the part `early` is for verdicts before the end.

    A fail stops the load for all, so it has to stand among `gates` at once, by `method`.

    Raises:
        ValueError: a confidence not between 0.5 and 1, `early` not between 0 and 1, no gate, or an
            unknown method.
    """

    confidence: float
    early: float
    passes: bool = False
    gates: int = 1
    method: Method = "holm"

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        if not 0 < self.early < 1:
            raise ValueError(f"early must lie between 0 and 1, not {self.early}")
        family_confidence(self.confidence, self.gates, self.method)

    @property
    def early_pass_confidence(self) -> float:
        """Confidence of a pass before the end."""
        return 1 - (1 - self.confidence) * self.early

    @property
    def early_fail_confidence(self) -> float:
        """Confidence of a fail before the end."""
        alone = family_confidence(self.confidence, self.gates, self.method)
        return 1 - (1 - alone) * self.early

    @property
    def last_pass_confidence(self) -> float:
        """Confidence of a pass at the end."""
        return self.last_fail_confidence if self.passes else self.confidence

    @property
    def last_fail_confidence(self) -> float:
        """Confidence of a fail at the end, if it is the only one."""
        return 1 - (1 - self.confidence) * (1 - self.early)


_RISK_OF_LATER_ASKS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedGates:
    """Confidence of gates that are asked once, and while inconclusive at most `more` times again.

    Of the risk a = 1 - `confidence` the first ask has 0.9 a, and each further one 0.1 a / `more`:
    by the union bound (Bonferroni 1936; the spending of Lan & DeMets 1983, planned before)
    the chance that any of them passes wrongly is at most a, and so is that of a wrong fail. It does
    not matter that they may be of the same requests, or that one only follows where those before
    did not decide. The first has most of it, for nearly always it decides.

    Raises:
        ValueError: a confidence not between 0.5 and 1, a negative number of asks.
    """

    confidence: float
    more: int

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        if self.more < 0:
            raise ValueError(f"gates cannot be asked {self.more} more times")

    @property
    def first(self) -> float:
        """Confidence of the first ask."""
        return self.confidence + (1 - self.confidence) * _RISK_OF_LATER_ASKS * bool(self.more)

    @property
    def again(self) -> float:
        """Confidence of each further ask; of the first where there is none."""
        return (
            1 - (1 - self.confidence) * _RISK_OF_LATER_ASKS / self.more if self.more else self.first
        )


def early_verdict(failing: Verdict, passing: Verdict | None, spending: AlphaSpending) -> Verdict:
    """Return the verdict of a watched load before its end.

    `failing` and `passing` are of two sequential tests of the same requests, one for fails and one
    for passes (None where passes are not reached early). Where both have decided, the fail
    stands.
    """
    if failing.outcome is Outcome.FAIL:
        p = 1 - failing.confidence if failing.confidence is not None else 1.0
        p = p if failing.p_value is None else failing.p_value
        return replace(failing, p_value=min(1.0, p / spending.early))
    if passing is not None and passing.passed:
        return passing
    shown = failing if passing is None else passing
    return replace(shown, outcome=Outcome.INCONCLUSIVE, p_value=None)


def last_verdict(
    early: Verdict, at_confidence: Callable[[float], Verdict], spending: AlphaSpending
) -> Verdict:
    """Return the verdict at the end: the `early` one if it decided, else that of the fixed sample.

    `at_confidence` judges the whole load at a confidence.
    """
    if early.outcome is not Outcome.INCONCLUSIVE:
        return early
    verdict = at_confidence(spending.last_pass_confidence)
    if verdict.outcome is Outcome.FAIL:
        verdict = at_confidence(spending.last_fail_confidence)
    if verdict.p_value is None:
        return verdict
    return replace(verdict, p_value=min(1.0, verdict.p_value / (1 - spending.early)))


def stopped_verdict(early: Verdict, why: str) -> Verdict:
    """Return the verdict of a load stopped early because of `why`: only an early decision counts.

    The fixed sample may not judge it: when it was stopped depends on what it showed.
    """
    if early.outcome is not Outcome.INCONCLUSIVE:
        return early
    return early.inconclusive_because(
        f"not decided when the load was stopped ({why}): {early.reason}",
        "Fix the failed gate and run the gates again, or let the load run to its end with "
        "`load.early_stop: off`.",
    )
