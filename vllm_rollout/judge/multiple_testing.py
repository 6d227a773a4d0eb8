"""Multiple testing: the family-wise error rate of a run's gates.

Two mistakes are possible, and only one of them grows with the number of gates.

*A bad build is promoted.* That takes a pass of every gate, the one that the build breaks included,
so the chance is at most that one gate's 1 - confidence, however many gates there are and however
they depend on each other (the intersection-union test: Berger 1982, Technometrics 24:295). Passes
need no correction, and get none.

*A good build is blamed.* One wrong fail among many is enough: twenty independent gates at 95%
blame a build that keeps every limit up to 64% of the time. So a fail has to be sure enough to
stand among all the gates that might have failed; one that is not is made inconclusive, which does
not promote either. By the step-down rule of Holm 1979 (Scandinavian Journal of Statistics 6:65)
the chance that any fail that stands is wrong is at most 1 - confidence, however the gates depend
on each other. Bonferroni's rule keeps the same risk and lets fewer fails stand.
"""

from collections.abc import Sequence
from typing import Literal

from vllm_rollout.judge.sample_size import check_confidence
from vllm_rollout.model.units import counted, format_share
from vllm_rollout.model.verdict import Outcome, Verdict

Method = Literal["holm", "bonferroni", "none"]
"""How the fails of a run share one risk; with "none" each has its own."""


def family_confidence(confidence: float, gates: int, method: Method = "holm") -> float:
    """The confidence that a fail needs to stand while `gates` gates may still fail wrongly.

    Bonferroni asks it of every fail, with all gates counted; Holm of the surest fail, and then of
    the next with one gate fewer, until one does not have it.

    Raises:
        ValueError: a confidence not between 0.5 and 1, no gate, or an unknown method.
    """
    check_confidence(confidence)
    if gates < 1:
        raise ValueError(f"a family has at least one gate, not {gates}")
    if method == "none":
        return confidence
    if method not in ("holm", "bonferroni"):
        raise ValueError(f"method must be holm, bonferroni or none, not {method!r}")
    return 1 - (1 - confidence) / gates


def judge_family(
    verdicts: Sequence[Verdict], *, confidence: float, method: Method = "holm"
) -> tuple[Verdict, ...]:
    """The verdicts of one run, those fails made inconclusive that may be chance among so many.

    A fail without a p-value is taken to be just as sure as its own confidence. Verdicts without a
    confidence are plain facts: they are no part of the family and stay as they are, as do all but
    fails.

    Raises:
        ValueError: a confidence not between 0.5 and 1, a p-value not from 0 to 1, or an unknown
            method.
    """
    check_confidence(confidence)
    members = sum(verdict.confidence is not None for verdict in verdicts)
    fails = sorted(
        (_p_value(verdict, verdict.confidence), place)
        for place, verdict in enumerate(verdicts)
        if verdict.outcome is Outcome.FAIL and verdict.confidence is not None
    )
    judged = list(verdicts)
    in_question = members
    for p, place in fails:
        needed = family_confidence(confidence, in_question, method)
        if p <= 1 - needed:
            if method == "holm":
                in_question -= 1
        else:
            judged[place] = verdicts[place].inconclusive_because(
                f"{verdicts[place].reason}; among {counted(members, 'gate')} a fail has to be "
                f"{_share(needed)} sure, and this one is {_share(1 - p)}",
                "Measure again, and for longer: a limit that is really broken will show.",
            )
    return tuple(judged)


def _p_value(verdict: Verdict, confidence: float) -> float:
    if verdict.p_value is None:
        return 1 - confidence
    if not 0 <= verdict.p_value <= 1:
        raise ValueError(f"a p-value lies from 0 to 1, unlike {verdict.p_value}")
    return verdict.p_value


def _share(fraction: float) -> str:
    return format_share(float(f"{fraction:.5g}"))
