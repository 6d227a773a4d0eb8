"""Sequential test of a share of bad requests, valid however often it is read."""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.effective_sample_size import BadRequests, check_burst
from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below
from vllm_rollout.judge.sample_size import check_confidence, check_limit
from vllm_rollout.model.percentiles import check_percentile
from vllm_rollout.model.verdict import Outcome

# While bursts prevent a verdict, they are measured again with so many more requests.
_MORE_REQUESTS = 1.25


def percentile_rank_at_most(n: int, percentile: float, confidence: float) -> int | None:
    """The rank (1 is the fastest of `n`) whose time bounds a percentile from above, at any time.

    It may be read as often as one likes while requests come in: the bound is that of a confidence
    sequence. None where so few requests bound nothing. Requests are taken to be independent.

    Raises:
        ValueError: a percentile not from 1 to below 100, or a confidence not between 0.5 and 1.
    """
    check_percentile(percentile)
    check_confidence(confidence)
    slower = 1 - percentile / 100
    process, threshold = e_process_below(slower), -math.log1p(-confidence)
    # How many may be as slow as the bound or slower: the e-value falls as they grow.
    allowed = bisect_left(
        range(n + 1), True, key=lambda bad: process.log_e_value(bad, n, slower) < threshold
    )
    return n - allowed + 1 if allowed else None


class AnytimeShare:
    """Two e-processes against `limit`: one shows that the bad share is below it, one above.

    The first to reach 1 / (1 - confidence) decides, once and for good. Over the whole life of the
    stream the chance of a pass, the share being `limit` or more, is at most 1 - confidence, and so
    is the chance of a fail, the share being `limit` or less; where `fail_confidence` is given, a
    fail takes that one.

    Up to `burst` requests in a row may be fully correlated. A run of that many counts as one: the
    e-value is taken to the power 1 / burst. That is never more than an e-process on each run's mean
    would bring, log(1 + m (r - 1)) >= m log(r) being concave in the mean m from 0 to 1
    (Waudby-Smith & Ramdas 2024, JRSS B 86:1, section 4, on bounded means). A run that
    has only begun counts as none for a pass and as a whole one for a fail. Before anything is
    decided, and while longer bursts are found, `block` is what is found: among the bad requests,
    and by `dependence`, which says how many requests count as one for any other reason.
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
        dependence: Callable[[], int] = lambda: 1,
    ) -> None:
        check_confidence(confidence)
        check_confidence(confidence if fail_confidence is None else fail_confidence)
        check_limit(limit)
        self.limit = limit
        self.confidence = confidence
        self.fail_confidence = confidence if fail_confidence is None else fail_confidence
        self.burst = check_burst(burst)
        self.block = self.burst
        self.outcome = Outcome.INCONCLUSIVE
        self.n = 0
        self.bad = 0
        self._worse = 0
        self._where = BadRequests()
        self._dependence = dependence
        self._below, self._above = e_process_below(limit, good), e_process_above(limit, bad)
        self._threshold = -math.log1p(-confidence)
        self._fail_threshold = -math.log1p(-self.fail_confidence)
        # The most by which a good run, and a bad one, can raise the logarithm of an e-value.
        self._good_growth = -math.log1p(math.expm1(min(self._below.log_odds)) * limit)
        self._bad_growth = max(self._above.log_odds)
        self._next_search: float = math.inf
        self._plan(self._threshold, self._fail_threshold)

    def add_counted(self, bad: int, worse: int, total: int) -> None:
        """Take in `total` more requests, in an order that is not known.

        `bad` of them count against a pass, and of those `worse` count for a fail: a latency at
        its limit speaks for neither.
        """
        if bad:
            self._where.add_counted(bad, self.n, total)
        self._take(total, bad, worse)

    def add(self, bad: NDArray[np.bool_], worse: int) -> None:
        """Take in more requests, in order of time."""
        places = self.n + np.flatnonzero(bad)
        self._where.add(places)
        self._take(len(bad), len(places), worse)

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the bad share: the limits that the e-processes would decide for.

        They belong to a confidence sequence: each holds for all times at once.
        """
        for_pass, for_fail = self._runs()
        return (
            self._above.bound(*for_fail, self._fail_threshold),
            self._below.bound(*for_pass, self._threshold),
        )

    @property
    def fail_p_value(self) -> float:
        """1 / the e-value for a fail: valid whenever it is read, by Ville's inequality."""
        _, (worse, begun) = self._runs()
        return min(1.0, math.exp(-self._above.log_e_value(worse, begun, self.limit)))

    def pass_needs(self) -> int:
        """Fewest requests in all that a pass takes, if no more of them are bad."""
        bad, whole = self.bad / self.block, self.n // self.block
        while (short := self._threshold - self._below.log_e_value(bad, whole, self.limit)) > 0:
            whole += max(1, math.floor(short / self._good_growth))
        return whole * self.block

    def _take(self, total: int, bad: int, worse: int) -> None:
        self.n += total
        self.bad += bad
        self._worse += worse
        # Before these nothing can be decided, and most requests cost no more than this.
        if (
            self.n >= self._first_pass
            or self._worse >= self._first_fail
            or self.n >= self._next_search
        ):
            self._weigh()

    def _weigh(self) -> None:
        """Decide, if an e-value is high enough and stays so after a search for bursts."""
        to_pass, to_fail = self._distances()
        if min(to_pass, to_fail) <= 0 or self.n >= self._next_search:
            self.block = max(self.burst, self._where.block_length(self.n), self._dependence())
            longer = self.block > self.burst
            self._next_search = self.n * _MORE_REQUESTS if longer else math.inf
            to_pass, to_fail = self._distances()
        if to_pass <= 0:
            self.outcome = Outcome.PASS
        elif to_fail <= 0:
            self.outcome = Outcome.FAIL
        self._plan(to_pass, to_fail)

    def _distances(self) -> tuple[float, float]:
        """Return how far the logarithms of the two e-values are from deciding."""
        (bad, whole), (worse, begun) = self._runs()
        return (
            self._threshold - self._below.log_e_value(bad, whole, self.limit),
            self._fail_threshold - self._above.log_e_value(worse, begun, self.limit),
        )

    def _runs(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """Bad runs and all runs, as they count for a pass and as they count for a fail."""
        return (
            (self.bad / self.block, self.n // self.block),
            (self._worse / self.block, -(-self.n // self.block)),
        )

    def _plan(self, to_pass: float, to_fail: float) -> None:
        """Plan the next evaluation, by the most that an e-value can grow."""
        runs = self.n // self.block + math.floor(to_pass / self._good_growth)
        self._first_pass = max(self.n + 1, runs * self.block)
        more = math.floor(to_fail / self._bad_growth * self.block)
        self._first_fail = self._worse + max(1, more)
