"""Questions that the gates' blocks in the policy ask of a load.

Each question can be asked of a load that ran to its end, and of one that is watched request by
request while it runs (`vllm_rollout.pytest_plugin.judged_load`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vllm_rollout.judge import Verdict
from vllm_rollout.judge.goodput import GoodputLimits, meets_limits
from vllm_rollout.judge.load_capacity import at_expected_rate, capacity_verdict
from vllm_rollout.judge.ordered_verdicts import (
    goodput_verdict_in_order,
    percentile_verdict_in_order,
    rate_verdict_in_order,
)
from vllm_rollout.judge.sequential import SequentialGoodput, SequentialPercentile, SequentialRate
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestRecord
from vllm_rollout.policy import ErrorRate, Gates, Goodput, Latency, LoadCapacity

OneMore = Callable[[RequestRecord], Verdict]
"""Takes in the next request, in the order of sending, and says what follows."""


class LoadQuestion(Protocol):
    """A question to a load; two of the same kind and numbers are equal."""

    @property
    def name(self) -> str:
        """Name for the reader."""

    @property
    def of_time(self) -> bool:
        """True if it is about how long requests take, which a stall makes long for many at once."""

    def whole(self, load: LoadResult, *, confidence: float) -> Verdict:
        """The verdict on a load that ran to its end."""

    def test(
        self, plan: LoadPlan, *, confidence: float, fail_confidence: float, burst: int
    ) -> OneMore:
        """Return a sequential test for `plan`; `burst` requests in a row may be correlated."""


def load_questions(gates: Gates) -> tuple[LoadQuestion, ...]:
    """All that an environment's gates ask of its load."""
    return tuple(_QUESTIONS[type(gate)](gate) for gate in gates.on_load)


@dataclass(frozen=True, slots=True)
class LatencyQuestion:
    """Is a percentile of latency below its limit?"""

    gate: Latency
    of_time = True

    @property
    def name(self) -> str:
        """`P95 latency`."""
        return f"P{self.gate.percentile:g} latency"

    def whole(self, load: LoadResult, *, confidence: float) -> Verdict:
        """By order statistics."""
        return percentile_verdict_in_order(
            load.latencies_in_order,
            percentile=self.gate.percentile,
            limit_seconds=self.gate.limit_seconds,
            confidence=confidence,
            rate_per_second=load.plan.mean_rate_per_second,
        )

    def test(
        self, plan: LoadPlan, *, confidence: float, fail_confidence: float, burst: int
    ) -> OneMore:
        """Return a sequential test of the share of late requests."""
        test = SequentialPercentile(
            percentile=self.gate.percentile,
            limit_seconds=self.gate.limit_seconds,
            confidence=confidence,
            fail_confidence=fail_confidence,
            burst=burst,
            rate_per_second=plan.mean_rate_per_second,
        )

        def one_more(record: RequestRecord) -> Verdict:
            seconds = record.latency_seconds
            if not record.ok or seconds is None:
                return test.update([], 1)
            return test.update([seconds])

        return one_more


@dataclass(frozen=True, slots=True)
class ErrorRateQuestion:
    """Is the share of failed requests below its limit?"""

    gate: ErrorRate
    name = "error rate"
    of_time = False

    def whole(self, load: LoadResult, *, confidence: float) -> Verdict:
        """By Clopper and Pearson."""
        return rate_verdict_in_order(
            load.failed_in_order,
            limit=self.gate.limit,
            confidence=confidence,
            rate_per_second=load.plan.mean_rate_per_second,
        )

    def test(
        self, plan: LoadPlan, *, confidence: float, fail_confidence: float, burst: int
    ) -> OneMore:
        """Return a sequential test of the share of failed requests."""
        test = SequentialRate(
            limit=self.gate.limit,
            confidence=confidence,
            fail_confidence=fail_confidence,
            burst=burst,
            rate_per_second=plan.mean_rate_per_second,
        )
        return lambda r: test.update(int(not r.ok), 1)


@dataclass(frozen=True, slots=True)
class GoodputQuestion:
    """Do enough requests meet every limit at once?"""

    gate: Goodput
    name = "goodput"
    of_time = True

    def whole(self, load: LoadResult, *, confidence: float) -> Verdict:
        """By Clopper and Pearson."""
        return goodput_verdict_in_order(
            self._limits(),
            target=self.gate.target,
            confidence=confidence,
            ttft_seconds=np.array(load.ttft_in_order, dtype=np.float64),
            inter_token_seconds=np.array(load.itl_in_order, dtype=np.float64),
            latency_seconds=load.latencies_in_order,
            rate_per_second=load.plan.mean_rate_per_second,
        )

    def test(
        self, plan: LoadPlan, *, confidence: float, fail_confidence: float, burst: int
    ) -> OneMore:
        """Return a sequential test of the share of requests that miss a limit."""
        limits = self._limits()
        test = SequentialGoodput(
            target=self.gate.target,
            limits=str(limits),
            confidence=confidence,
            fail_confidence=fail_confidence,
            burst=burst,
            rate_per_second=plan.mean_rate_per_second,
        )

        def one_more(record: RequestRecord) -> Verdict:
            times = (
                record.longest_ttft_seconds,
                record.longest_itl_seconds,
                record.latency_seconds,
            )
            ttft, itl, latency = np.array(times, dtype=np.float64)[:, np.newaxis]
            met = meets_limits(
                limits, ttft_seconds=ttft, inter_token_seconds=itl, latency_seconds=latency
            )
            return test.update(record.ok and bool(met.all()))

        return one_more

    def _limits(self) -> GoodputLimits:
        return GoodputLimits(
            ttft_seconds=self.gate.ttft_seconds,
            inter_token_seconds=self.gate.itl_seconds,
            latency_seconds=self.gate.latency_seconds,
        )


@dataclass(frozen=True, slots=True)
class CapacityQuestion:
    """Is the expected rate served?"""

    gate: LoadCapacity
    name = "load capacity"
    of_time = False

    def whole(self, load: LoadResult, *, confidence: float) -> Verdict:
        """By Clopper and Pearson, if the expected rate was offered."""
        return capacity_verdict(
            unserved=load.failures,
            total=load.total,
            offered_per_second=load.offered_per_second,
            expected_per_second=self.gate.expected_rate,
            limit=self.gate.unserved,
            confidence=confidence,
        )

    def test(
        self, plan: LoadPlan, *, confidence: float, fail_confidence: float, burst: int
    ) -> OneMore:
        """Return a sequential test of the unserved share, if the expected rate was sent so far."""
        test = SequentialRate(
            limit=self.gate.unserved,
            confidence=confidence,
            fail_confidence=fail_confidence,
            burst=burst,
            rate_per_second=plan.mean_rate_per_second,
        )
        sent = 0

        def one_more(record: RequestRecord) -> Verdict:
            nonlocal sent
            sent += record.sent is not None
            seconds = record.intended - plan.warmup_seconds
            return at_expected_rate(
                test.update(int(not record.ok), 1),
                offered_per_second=sent / seconds if seconds > 0 else None,
                expected_per_second=self.gate.expected_rate,
                seconds=seconds,
            )

        return one_more


_QUESTIONS: Mapping[type, Callable[[Any], LoadQuestion]] = {
    Latency: LatencyQuestion,
    ErrorRate: ErrorRateQuestion,
    Goodput: GoodputQuestion,
    LoadCapacity: CapacityQuestion,
}
