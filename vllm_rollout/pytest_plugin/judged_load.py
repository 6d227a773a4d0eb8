"""A load watched while it runs, and judged by what was found.

The very tests that may stop a load judge it afterwards, so the verdict on a stopped load is the one
that stopped it.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.alpha_spending import (
    AlphaSpending,
    early_verdict,
    last_verdict,
    stopped_verdict,
)
from vllm_rollout.judge.generator import despite_stalls
from vllm_rollout.judge.messages import with_failures
from vllm_rollout.judge.outage import Outage, OutageLimits, OutageWatch, outage_verdict
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_figures import FailureKind, LoadSummary
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestRecord
from vllm_rollout.pytest_plugin.load_questions import LoadQuestion
from vllm_rollout.report.load_summary import summarize_load


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
        # No fail may rest on what the generator did, and no pass either.
        self.verdict = early_verdict(self._failing(record.at_best), passing, self._spending)

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
        self.watching = watching
        self.why = ""
        self._plan = plan
        self._outage = OutageWatch(outage) if outage else None
        self._asked = [WatchedQuestion(each, plan, watching) for each in questions if watching]
        self._taken = -1

    def verdict(self, question: LoadQuestion, requests: Iterable[RequestRecord]) -> Verdict | None:
        """The verdict on `requests`, those watched and the rest; None where there are none."""
        asked = next((each for each in self._asked if each.question == question), None)
        if asked is None and self.watching:
            asked = WatchedQuestion(question, self._plan, self.watching)
            for record in requests:
                asked.take(record)
        return asked.verdict if asked else None

    def end(self, requests: Iterable[RequestRecord]) -> None:
        """Take in those of the load's requests that ended after those watched."""
        rest = [record for record in requests if record.number > self._taken]
        for record in rest:
            for asked in self._asked:
                asked.take(record)

    def enough(self, records: Iterable[RequestRecord]) -> bool:
        """Take in the next requests in order, and say whether to stop."""
        for record in records:
            self._taken = record.number
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
        if self.watching is None or not self.watching.spending.passes:
            if failed:
                self.why = f"{' and '.join(failed)} had failed"
        elif self._asked and all(asked.decided for asked in self._asked):
            if failed:
                self.why = f"all was decided, and {' and '.join(failed)} had failed"
            elif not self.watching.wholes:
                self.why = "every gate on it had passed"


def _outcome(asked: WatchedQuestion) -> Outcome | None:
    return asked.verdict.outcome if asked.verdict else None


@dataclass(frozen=True, kw_only=True)
class JudgedLoad:
    """A load run and how it is judged: by a fixed sample, or, where it was watched, as it was.

    `watch` has taken in all of it. `stopped` says why it was stopped before its end; empty where it
    was not. `outage` is one that was found in it: every question fails then. `requests_file` is
    where a line for each request was written; empty where the policy asks for none. `cores` are
    those of the machine that made the load; None where pods made it, wherever they were.
    `path_errors` are the connectivity errors meanwhile, where requests failed.
    """

    result: LoadResult
    confidence: float
    watch: LoadWatch | None = None
    stopped: str = ""
    outage: Outage | None = None
    requests_file: str = ""
    cores: int | None = None
    path_errors: UnreachableError | None = None

    @cached_property
    def summary(self) -> LoadSummary:
        """Its figures for a report."""
        name = Path(self.requests_file).name if self.requests_file else ""
        return summarize_load(self.result, stopped=self.stopped, requests_file=name)

    @cached_property
    def failure_kinds(self) -> tuple[FailureKind, ...]:
        """The most frequent kinds of failed requests."""
        return self.result.failure_kinds

    def verdict(self, question: LoadQuestion) -> Verdict:
        """The verdict on `question`, with what most of the failed requests failed of."""
        if outage := self.outage_verdict():
            return outage

        def of_the_answered() -> Verdict:
            answered = tuple(request for request in self.result.requests if request.ok)
            load = dataclasses.replace(self.result, requests=answered)
            return question.whole(load, confidence=self.confidence)

        verdict = self._verdict(question)
        return with_failures(
            verdict, self.failure_kinds, failures=self.result.failures, alone=of_the_answered
        )

    def _verdict(self, question: LoadQuestion) -> Verdict:
        load = self.result
        watching = self.watch.watching if self.watch else None

        def whole(confidence: float) -> Verdict:
            return despite_stalls(
                question.whole(load, confidence=confidence),
                lambda: question.whole(load.at_best, confidence=confidence),
                stalled=load.stalled,
            )

        early = self.watch.verdict(question, load.requests) if self.watch and watching else None
        if watching is None or early is None:
            return whole(self.confidence)
        if self.stopped:
            return stopped_verdict(early, self.stopped)
        return last_verdict(early, whole, watching.spending)

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
    of = "" if planned is None else f" of about {planned:,.0f}"
    return f"{watch.why}, after {load.total:,}{of} requests"
