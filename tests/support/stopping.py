"""What a sequential test does to independent requests, summed over all paths: no simulation."""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.signal import lfilter

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.alpha_spending import last_verdict
from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below
from vllm_rollout.judge.rate import rate_verdict

# A limit, with the rates that are expected of a good service and of a bad one.
LIMITS = {0.001: (0.0001, 0.005), 0.01: (0.001, 0.05), 0.05: (0.01, 0.1)}

_MOST_BAD = 250


@dataclass(frozen=True, slots=True)
class Stopped:
    """Chances of a pass and of a fail up to the horizon, and the mean number of requests."""

    passed: float
    failed: float
    requests: float


def stop_at(limit, good=None, bad=None, *, share, horizon, confidence=0.95):
    """How the suite's test of `limit` ends when `share` of the requests are bad."""
    threshold = -math.log(1 - confidence)
    stopped, _ = _walk(
        *_decided(limit, good, bad, to_pass=threshold, to_fail=threshold, horizon=horizon),
        share,
        horizon,
    )
    return stopped


def spend_at(limit, spending, *, share, horizon):
    """How a watched load of `horizon` requests ends when `share` of them are bad.

    Bets decide before the end, by `spending`, and the fixed sample at the end.
    """
    to_pass = -math.log(1 - spending.early_pass_confidence) if spending.passes else math.inf
    to_fail = -math.log(1 - spending.early_fail_confidence)
    boundaries = _decided(limit, None, None, to_pass=to_pass, to_fail=to_fail, horizon=horizon)
    stopped, going = _walk(*boundaries, share, horizon)
    passed, failed = stopped.passed, stopped.failed
    undecided = Verdict(outcome=Outcome.INCONCLUSIVE, reason="")
    for bad in np.flatnonzero(going):
        verdict = last_verdict(
            undecided,
            lambda sure, bad=int(bad): rate_verdict(bad, horizon, limit=limit, confidence=sure),
            spending,
        )
        passed += going[bad] * (verdict.outcome is Outcome.PASS)
        failed += going[bad] * (verdict.outcome is Outcome.FAIL)
    return Stopped(float(passed), float(failed), stopped.requests)


def wald_at(good, bad, *, share, horizon, risk=0.05):
    """How Wald's test of the rate `good` against `bad` ends: pass is for `good`.

    Thresholds are log((1 - risk) / risk) on either side (Wald 1945).
    """
    threshold = math.log((1 - risk) / risk)
    per_bad, per_good = math.log(bad / good), math.log1p(-good) - math.log1p(-bad)
    k = np.arange(_MOST_BAD)
    pass_from = k + np.ceil((threshold + k * per_bad) / per_good - 1e-9).astype(int)
    fail_until = k + np.floor((k * per_bad - threshold) / per_good + 1e-9).astype(int)
    return _walk(pass_from, fail_until, share, horizon)[0]


@cache
def _decided(limit, good, bad, *, to_pass, to_fail, horizon):
    """After how many requests, by bad ones, the e-processes pass (earliest) and fail (latest).

    The e-values rise with each good request, and fall with it: they are bisected.
    """
    below, above = e_process_below(limit, good), e_process_above(limit, bad)
    counts = range(horizon + 1)
    pass_from = [
        bisect_left(counts, to_pass, lo=k, key=lambda n, k=k: below.log_e_value(k, n, limit))
        for k in range(_MOST_BAD)
    ]
    fail_until = [
        bisect_right(counts, -to_fail, lo=k, key=lambda n, k=k: -above.log_e_value(k, n, limit)) - 1
        for k in range(_MOST_BAD)
    ]
    return np.array(pass_from), np.array(fail_until)


def _walk(pass_from, fail_until, share, horizon):
    """How paths end, and how likely each number of bad requests is, undecided at the horizon.

    Of the paths with k bad requests: how likely one arrives there at each request (from those with
    one fewer), and is still there at each later one.
    """
    n = np.arange(horizon + 1)
    going, left = np.zeros(horizon + 1), np.zeros(_MOST_BAD)
    passed = failed = requests = 0.0
    for k in range(_MOST_BAD):
        arrived = np.append(0.0, going[:-1] * share) if k else 1.0 * (n == 0)
        fails = n <= fail_until[k]
        failed += arrived[fails].sum()
        going = lfilter([1.0], [1.0, share - 1], np.where(fails, 0.0, arrived))
        passed += going[pass_from[k] : pass_from[k] + 1].sum()
        going[pass_from[k] :] = 0.0
        requests += going[:-1].sum()
        left[k] = going[-1]
    return Stopped(float(passed), float(failed), float(requests)), left
