"""A load watched while it runs, and judged by what was found.

The very tests that may stop a load judge it afterwards, so the verdict on a stopped load is the one
that stopped it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.alpha_spending import (
    AlphaSpending,
    early_verdict,
    last_verdict,
    stopped_verdict,
)
from vllm_rollout.judge.outage import Outage, OutageLimits, OutageWatch, outage_verdict
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestRecord
from vllm_rollout.pytest_plugin.load_questions import LoadQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """Settings of a watched load.

    `burst` requests in a row may share one cause. `wholes` is whether gates judge the whole load
    that cannot judge a part of it: then passes alone do not stop it.
    """

    spending: AlphaSpending
    burst: int
    wholes: bool = False


class WatchedQuestion:
    """One question to the requests of a load as they come."""

    def __init__(self, question: LoadQuestion, plan: LoadPlan, watching: Watching) -> None:
        self.question = question
        self._spending = spending = watching.spending
        confidences = {
            "confidence": spending.early_pass_confidence,
            "fail_confidence": spending.early_fail_confidence,
        }
        self._failing = question.test(plan, burst=watching.burst, **confidences)
        # Stalls yet to come would make requests late in bursts, which a pass has to reckon with;
        # that requests fail in bursts is taken to show, here as at the end.
        burst = watching.burst if question.of_time else 1
        self._passing = question.test(plan, burst=burst, **confidences) if spending.passes else None
        self.verdict: Verdict | None = None

    def take(self, record: RequestRecord) -> None:
        """Take in the next request in the order of sending; nothing, once it is decided."""
        if self.decided:
            return
        passing = self._passing(record) if self._passing else None
        self.verdict = early_verdict(self._failing(record), passing, self._spending)

    @property
    def decided(self) -> bool:
        """True if it has passed or failed."""
        return self.verdict is not None and self.verdict.outcome is not Outcome.INCONCLUSIVE


class LoadWatch:
    """Says when a running load may stop. `why` says so in words; it is empty until then.

    An outage stops it, and nothing else does while there may be one: it fails every gate, and a
    verdict only its own. Without `watching` nothing but an outage stops it.
    """

    def __init__(
        self,
        questions: Sequence[LoadQuestion],
        plan: LoadPlan,
        watching: Watching | None,
        outage: OutageLimits | None = None,
    ) -> None:
        self._asked = [WatchedQuestion(each, plan, watching) for each in questions if watching]
        self._watching = watching
        self._outage = OutageWatch(outage) if outage else None
        self.why = ""

    def enough(self, records: Iterable[RequestRecord]) -> bool:
        """Take in the next requests in order, and say whether to stop."""
        for record in records:
            for asked in self._asked:
                asked.take(record)
            if self._outage:
                self._outage.take(record)
        if self._outage and self._outage.found:
            self.why = "there was an outage"
        elif not (self._outage and self._outage.suspected):
            self._decide()
        return bool(self.why)

    def _decide(self) -> None:
        failed = [a.question.name for a in self._asked if _outcome(a) is Outcome.FAIL]
        if self._watching is None or not self._watching.spending.passes:
            if failed:
                self.why = f"{' and '.join(failed)} had failed"
        elif self._asked and all(asked.decided for asked in self._asked):
            if failed:
                self.why = f"all was decided, and {' and '.join(failed)} had failed"
            elif not self._watching.wholes:
                self.why = "every gate on it had passed"


def _outcome(asked: WatchedQuestion) -> Outcome | None:
    return asked.verdict.outcome if asked.verdict else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedLoad:
    """A load run and how it is judged: by a fixed sample, or, where it was watched, as it was.

    `stopped` says why it was stopped before its end; empty where it was not. `requests_file` is
    where a line for each request was written; empty where the policy asks for none. `cores` are
    those of the machine that made the load; None where pods made it, wherever they were.
    `outage` is one that was found in it: every question fails then. `path_errors` are the
    connectivity errors meanwhile, where requests failed.
    """

    result: LoadResult
    confidence: float
    watching: Watching | None = None
    stopped: str = ""
    outage: Outage | None = None
    requests_file: str = ""
    cores: int | None = None
    path_errors: UnreachableError | None = None

    def verdict(self, question: LoadQuestion) -> Verdict:
        """The verdict on `question`."""
        load, watching = self.result, self.watching
        if outage := self.outage_verdict():
            return outage
        if watching is None:
            return question.whole(load, confidence=self.confidence)
        asked = WatchedQuestion(question, load.plan, watching)
        for record in load.requests:
            asked.take(record)
            if asked.decided:
                break
        early = asked.verdict
        if early is None:
            return question.whole(load, confidence=self.confidence)  # no request: inconclusive
        if self.stopped:
            return stopped_verdict(early, self.stopped)
        return last_verdict(
            early, lambda confidence: question.whole(load, confidence=confidence), watching.spending
        )

    def outage_verdict(self) -> Verdict | None:
        """The fail of every gate on it, if there was an outage."""
        if self.outage is None:
            return None
        load = self.result
        return outage_verdict(self.outage, started_at=load.started_at, n=load.total)


def stop_reason(load: LoadResult, watch: LoadWatch) -> str:
    """`error rate had failed, after 31 of 6,000 requests`; empty for a load that ran to its end."""
    if math.isinf(load.stopped_after_seconds):
        return ""
    planned = load.plan.expected_requests
    return f"{watch.why}, after {load.total:,} of about {planned:,.0f} requests"
