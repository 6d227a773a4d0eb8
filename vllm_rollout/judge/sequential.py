"""Sequential verdicts while the load runs, after every request, at the risk of a single test."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.anytime_valid import AnytimeShare
from vllm_rollout.judge.effective_sample_size import LatestLatencies
from vllm_rollout.judge.messages import FIX_FAILURES, FIX_MISSES, FIX_SLOWNESS
from vllm_rollout.judge.sample_size import check_limit_seconds, check_target
from vllm_rollout.judge.sequential_verdict import VerdictFormatter
from vllm_rollout.model.percentiles import check_percentile
from vllm_rollout.model.units import format_share, format_value
from vllm_rollout.model.verdict import Verdict

_BURST_OF_LATENCIES = 10
"""Requests that one stall may delay unless given otherwise: a second of the workflow's 10/s."""


class SequentialRate:
    """Judge a stream's share of failed requests against `limit`, a fraction to stay below.

    `update` may be called after every request or every batch. Over the whole life of the test the
    chance of a pass at a true share of `limit` or more is at most 1 - `confidence`, and so is the
    chance of a fail at `limit` or less. The first verdict that decides is final: every later
    `update` returns it as it was, and its counts are left out. A new question takes a new test.

    Where the policy names the share expected of a `good` service or of a `bad` one, services like
    them are distinguished in the fewest requests; any other share is still found, a little later. A
    fail that has to stand among several (`judge.multiple_testing`) takes its own `fail_confidence`.

    Requests are taken to be independent, up to `burst` of them in a row excepted, which may fail
    together for one cause. Where failures are seen to come in longer bursts, as many requests as
    count for one are counted as one, and the reason says so; but bursts that have not come yet
    cannot be seen, and only `burst` guards against them. `rate_per_second` is the load's, to name
    the duration a pass would take.

    Until it is decided, a verdict's bounds are those of the latest look (each after a quarter more
    requests): they belong to a confidence sequence, and hold as they are.

    Raises:
        ValueError: a limit outside 0 to 1 or at 0, a confidence not between 0.5 and 1, `good` not
            between 0 and the limit, `bad` not between the limit and 1, or `burst` below 1.
    """

    def __init__(
        self,
        *,
        limit: float,
        confidence: float,
        good: float | None = None,
        bad: float | None = None,
        fail_confidence: float | None = None,
        burst: int = 1,
        rate_per_second: float | None = None,
    ) -> None:
        test = AnytimeShare(
            limit=limit,
            confidence=confidence,
            good=good,
            bad=bad,
            fail_confidence=fail_confidence,
            burst=burst,
        )
        self._speaker = VerdictFormatter(
            test,
            rate_per_second,
            seen="failed",
            are="fail",
            against=f"(limit: below {format_share(float(limit))})",
            remedy=FIX_FAILURES,
        )

    def update(self, failures: int, total: int) -> Verdict:
        """Take in a batch, `failures` of `total` more requests, and say what follows.

        A count that is not a finite number leaves the test inconclusive for good: its evidence is
        lost.

        Raises:
            ValueError: more failures than requests, or a negative or fractional count.
        """
        speaker = self._speaker
        if speaker.final:
            return speaker.final
        if not (math.isfinite(failures) and math.isfinite(total)):
            return speaker.give_up(
                f"the counts cannot be used: {failures} failures of {total} requests",
                "Find out why the counter reads no finite number, and begin a new test.",
            )
        failed, requests = int(failures), int(total)
        if not 0 <= failed <= requests or failed != failures or requests != total:
            raise ValueError(f"not a count of failures among requests: {failures} of {total}")
        speaker.test.add_counted(failed, failed, requests)
        return speaker.verdict()


class SequentialPercentile:
    """Judge a percentile (95 for P95) of a stream's latencies against `limit_seconds`.

    P95 is below 3 s if fewer than 5% of the requests take 3 s or longer, and above it if more
    than 5% take longer than 3 s: that share is what is judged, as `SequentialRate` judges the
    share that failed, with the same risks, the same finality and the same bounds. So `measured`,
    `lower`, `upper` and `limit` of the verdict are shares of late requests, and `good` and `bad`
    are the shares expected of a good and of a bad service.

    Latencies come in bursts as a rule: one stall delays all requests it meets. `burst`, how many
    that may be, is the load's rate times the longest stall to be reckoned with; a pass takes that
    many times the requests. Independent requests have a `burst` of 1.

    Raises:
        ValueError: a percentile not from 1 to below 100, a limit that is not a positive time, or
            what `SequentialRate` raises.
    """

    def __init__(
        self,
        *,
        percentile: float,
        limit_seconds: float,
        confidence: float,
        good: float | None = None,
        bad: float | None = None,
        fail_confidence: float | None = None,
        burst: int = _BURST_OF_LATENCIES,
        rate_per_second: float | None = None,
    ) -> None:
        check_percentile(percentile)
        check_limit_seconds(limit_seconds)
        # Exactly the decimal that was written: 1 - 0.95 is a little more than 0.05.
        share = float(1 - Fraction(str(percentile)) / 100)
        time = format_value(limit_seconds, "s")
        self._limit_seconds = limit_seconds
        self._latest = latest = LatestLatencies()
        self._speaker = VerdictFormatter(
            AnytimeShare(
                limit=share,
                confidence=confidence,
                good=good,
                bad=bad,
                fail_confidence=fail_confidence,
                burst=burst,
                dependence=lambda: latest.block_length(percentile, limit_seconds),
            ),
            rate_per_second,
            seen=f"failed or took {time} or longer",
            are="do",
            against=f"(limit: P{percentile:g} below {time}, so below {format_share(share)})",
            remedy=FIX_SLOWNESS,
            percentile=float(percentile),
        )

    def update(
        self, latencies_seconds: Sequence[float] | NDArray[np.float64], censored: int = 0
    ) -> Verdict:
        """Take in a batch, latencies in the order of sending, and say what follows.

        `censored` more requests had no answer: they count as late, and as spread over the batch.
        A latency that is NaN, infinite or negative leaves the test inconclusive for good.

        Raises:
            ValueError: a negative or fractional `censored`, or latencies that are not one row.
        """
        speaker = self._speaker
        if speaker.final:
            return speaker.final
        if not censored >= 0 or censored % 1:
            raise ValueError(f"censored must be a number of requests, not {censored}")
        limit = self._limit_seconds
        if len(latencies_seconds) == 1 and not censored:
            seconds = latencies_seconds[0]  # the commonest batch is not worth an array
            if isinstance(seconds, float) and 0 <= seconds < math.inf:
                self._latest.add_one(seconds)
                speaker.test.add_counted(seconds >= limit, seconds > limit, 1)
                return speaker.verdict()
        values = np.asarray(latencies_seconds, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"latencies must be one row of numbers, not {values.ndim} dimensions")
        # One NaN makes both extremes NaN, and no comparison with NaN holds.
        if values.size and not (values.min() >= 0 and values.max() < math.inf):
            return speaker.give_up(
                "some latencies are not a time (NaN, infinite or negative)",
                "Fix the clock or the parser that measured them, and begin a new test; a request "
                "without an answer belongs in `censored`.",
            )
        if censored:
            among = (np.arange(censored) + 0.5) * (len(values) / censored)
            values = np.insert(values, among.astype(np.int64), math.inf)
        self._latest.add(values)
        speaker.test.add(values >= limit, int(np.count_nonzero(values > limit)))
        return speaker.verdict()


class SequentialGoodput:
    """Judge the share of a stream's requests that meet every limit, to be above `target`.

    The share that misses one is what is judged, as `SequentialRate` judges the share that failed,
    with the same risks and the same finality; the verdict's figures are those of the requests that
    meet all. `limits` says in words what they are.

    Raises:
        ValueError: a target not between 0 and 1, or what `SequentialRate` raises.
    """

    def __init__(
        self,
        *,
        target: float,
        limits: str,
        confidence: float,
        fail_confidence: float | None = None,
        burst: int = 1,
        rate_per_second: float | None = None,
    ) -> None:
        check_target(target)
        self._target = target
        self._speaker = VerdictFormatter(
            AnytimeShare(
                limit=1 - target,
                confidence=confidence,
                fail_confidence=fail_confidence,
                burst=burst,
            ),
            rate_per_second,
            seen=f"missed a limit ({limits})",
            are="do",
            against=f"(limit: more than {format_share(target)} meet all)",
            remedy=FIX_MISSES,
        )

    def update(self, met: bool) -> Verdict:
        """Take in one more request, whether it met every limit, and say what follows."""
        speaker = self._speaker
        if not speaker.final:
            speaker.test.add_counted(int(not met), int(not met), 1)
        missed = speaker.final or speaker.verdict()
        figures = (missed.measured, missed.upper, missed.lower)
        measured, lower, upper = (None if share is None else 1 - share for share in figures)
        return replace(missed, measured=measured, lower=lower, upper=upper, limit=self._target)
