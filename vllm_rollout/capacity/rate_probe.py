"""Test of the SLOs at one rate, request by request while a short load is sent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.anytime_valid import AnytimeShare
from vllm_rollout.judge.binomial import chance_above
from vllm_rollout.judge.goodput import GoodputLimits, meets_limits
from vllm_rollout.judge.sample_size import requests_needed, requests_needed_for_percentile
from vllm_rollout.judge.sequential import SequentialPercentile, SequentialRate
from vllm_rollout.model.units import format_share, format_value, of_total
from vllm_rollout.model.verdict import Outcome

_BURST = 10
"""Requests in a row that one stall may make late: they count as one."""
_NEVER = 1 - 1e-12
"""The confidence of a side of a test that is not asked for: no load reaches it."""
_NO_ANSWER_SECONDS = 1e9
"""Stands for the latency of a request without an answer: slower than any other."""
_UNLIKELY = 0.1
"""A probe leans to a fail when at the limit itself so many bad requests would be rarer."""
_USUAL = 0.95
"""Confidence at which fewest requests are counted; nothing is judged at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slos:
    """SLOs to hold at a rate, from the policy's gates; None is not asked.

    `error_limit` is a share of requests that may fail, `goodput_target` the share that must meet
    all of `goodput`.

    Raises:
        ValueError: nothing is asked.
    """

    percentile: float = 95.0
    latency_seconds: float | None = None
    error_limit: float | None = None
    goodput: GoodputLimits | None = None
    goodput_target: float = 0.0

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError("give at least one of latency, error rate and goodput")

    @property
    def asked(self) -> tuple[str, ...]:
        """Each SLO in words: `P95 below 3 s`."""
        words = []
        if self.latency_seconds is not None:
            limit = format_value(self.latency_seconds, "s")
            words.append(f"P{self.percentile:g} below {limit}")
        if self.error_limit is not None:
            words.append(f"error rate below {format_share(self.error_limit)}")
        if self.goodput is not None:
            words.append(f"goodput above {format_share(self.goodput_target)}")
        return tuple(words)

    @property
    def slow_seconds(self) -> float | None:
        """The time beyond which a request is late; None where no SLO is about time."""
        if self.latency_seconds is not None or self.goodput is None:
            return self.latency_seconds
        return max(self.goodput.asked.values())

    @property
    def fewest_requests(self) -> int:
        """Requests below which nothing is known of latencies, or of goodput."""
        if self.latency_seconds is not None:
            return requests_needed_for_percentile(self.percentile, _USUAL)
        return requests_needed(1 - self.goodput_target, _USUAL) if self.goodput else 1

    def requests_to_pass(self, risk: float) -> int:
        """Requests that a pass takes at least, with a chance of at most `risk` to be wrong."""
        shares = [] if self.latency_seconds is None else [(1 - self.percentile / 100, _BURST)]
        shares += [] if self.error_limit is None else [(self.error_limit, 1)]
        shares += [] if self.goodput is None else [(1 - self.goodput_target, 1)]
        return max(
            AnytimeShare(limit=limit, confidence=1 - risk, burst=burst).pass_needs()
            for limit, burst in shares
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Requests in the order of sending, one row of each: seconds, NaN or infinite without answer.

    `failed` says which got no whole, valid answer.
    """

    latency_seconds: NDArray[np.float64]
    failed: NDArray[np.bool_]
    ttft_seconds: NDArray[np.float64]
    inter_token_seconds: NDArray[np.float64]

    def good(self, slos: Slos) -> NDArray[np.bool_]:
        """Return which requests were answered within every limit on their time."""
        good = ~self.failed
        if slos.latency_seconds is not None:
            good &= self.latency_seconds < slos.latency_seconds
        if slos.goodput is not None:
            good &= self.meets(slos.goodput)
        return good

    def meets(self, limits: GoodputLimits) -> NDArray[np.bool_]:
        """Return which requests meet the limits of goodput; one without an answer does not."""
        return ~self.failed & meets_limits(
            limits,
            ttft_seconds=self.ttft_seconds,
            inter_token_seconds=self.inter_token_seconds,
            latency_seconds=self.latency_seconds,
        )


class _Question:
    """One SLO, as a share of bad requests: asked for a pass and for a fail by tests of their own.

    The test for a fail goes on after a pass was found, and the other way round.
    """

    def __init__(
        self,
        words: str,
        limit: float,
        passes: SequentialRate | SequentialPercentile,
        fails: SequentialRate | SequentialPercentile,
    ) -> None:
        self.words = words
        self.limit = limit
        self.tests = (passes, fails)
        self.passed = self.failed = False
        self.bad: list[NDArray[np.bool_]] = []

    def add(self, bad: NDArray[np.bool_], latency_seconds: NDArray[np.float64]) -> None:
        self.bad.append(bad)
        for test in self.tests:
            if isinstance(test, SequentialPercentile):
                verdict = test.update(latency_seconds)
            else:
                for each in bad:
                    verdict = test.update(int(each), 1)
            self.passed |= verdict.outcome is Outcome.PASS
            self.failed |= verdict.outcome is Outcome.FAIL

    @property
    def figures(self) -> str:
        """`P95 below 3 s: 55 of 56 requests missed it`."""
        bad = sum(int(np.count_nonzero(row)) for row in self.bad)
        total = sum(row.size for row in self.bad)
        return f"{self.words}: {of_total(bad, total, 'request')} missed it"

    def plausible(self) -> bool:
        """Return True if neither all requests nor the later half of them speak against the SLO."""
        bad = np.concatenate(self.bad) if self.bad else np.zeros(0, dtype=np.bool_)
        return bool(bad.size) and self._likely(bad) and self._likely(bad[bad.size // 2 :])

    def _likely(self, bad: NDArray[np.bool_]) -> bool:
        count = int(np.count_nonzero(bad))
        return not count or chance_above(count - 1, bad.size, self.limit) >= _UNLIKELY


class RateProbe:
    """Judges a load at one rate against `slos`, while it is sent.

    `pass_risk` is the chance of a wrong pass, None where no pass is looked for; `fail_risk` that of
    a wrong fail, all SLOs together. A pass takes all SLOs: it is wrong only if the very SLO that
    does not hold is passed, so it needs no correction. It also takes that neither the whole load
    nor its later half speaks against any: a service that falls behind is good at first.
    """

    def __init__(self, slos: Slos, *, pass_risk: float | None, fail_risk: float) -> None:
        self._slos = slos
        # Confidence of a pass and of a fail, of the test for each.
        passes = _NEVER if pass_risk is None else 1 - pass_risk, _NEVER
        fails = _NEVER, 1 - fail_risk / len(slos.asked)
        words = iter(slos.asked)
        self._questions: list[_Question] = []
        if slos.latency_seconds is not None:
            percentile, limit = slos.percentile, slos.latency_seconds
            late = (
                SequentialPercentile(
                    percentile=percentile,
                    limit_seconds=limit,
                    confidence=confidence,
                    fail_confidence=fail_confidence,
                    burst=_BURST,
                )
                for confidence, fail_confidence in (passes, fails)
            )
            self._questions.append(_Question(next(words), 1 - percentile / 100, *late))
        for share in (slos.error_limit, 1 - slos.goodput_target if slos.goodput else None):
            if share is not None:
                tests = (
                    SequentialRate(
                        limit=share, confidence=confidence, fail_confidence=fail_confidence
                    )
                    for confidence, fail_confidence in (passes, fails)
                )
                self._questions.append(_Question(next(words), share, *tests))

    def add(self, answers: Answers) -> None:
        """Take in more requests, which follow those before in the order of sending."""
        if not answers.failed.size:
            return
        slos = self._slos
        latencies = np.where(answers.failed, _NO_ANSWER_SECONDS, answers.latency_seconds)
        rows = []
        if slos.latency_seconds is not None:
            rows.append(latencies >= slos.latency_seconds)
        if slos.error_limit is not None:
            rows.append(answers.failed)
        if slos.goodput is not None:
            rows.append(~answers.meets(slos.goodput))
        for question, bad in zip(self._questions, rows, strict=True):
            question.add(bad, latencies)

    @property
    def failed(self) -> str:
        """Why an SLO does not hold, with confidence, or ""."""
        return "; ".join(q.figures for q in self._questions if q.failed)

    @property
    def passed(self) -> bool:
        """True if every SLO holds with confidence, by all requests so far."""
        return all(q.passed for q in self._questions) and self.holds_so_far and not self.failed

    @property
    def holds_so_far(self) -> bool:
        """True if nothing speaks against any SLO; False without requests."""
        return all(q.plausible() for q in self._questions)

    @property
    def doubts(self) -> tuple[str, ...]:
        """The SLOs that something speaks against."""
        return tuple(q.words for q in self._questions if not q.plausible())
