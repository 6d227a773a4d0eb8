"""What a sequential test does to independent requests, summed over all paths: no simulation."""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.mixture import bet_above, bet_below
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.watched import last_verdict

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
    below, above = bet_below(limit, good), bet_above(limit, bad)
    counts = range(horizon + 1)
    pass_from = [
        bisect_left(counts, threshold, lo=k, key=lambda n, k=k: below.log_stake(k, n, limit))
        for k in range(_MOST_BAD)
    ]
    fail_until = [
        bisect_right(counts, -threshold, lo=k, key=lambda n, k=k: -above.log_stake(k, n, limit)) - 1
        for k in range(_MOST_BAD)
    ]
    return _walk(np.array(pass_from), np.array(fail_until), share, horizon)


def spend_at(limit, spending, *, share, horizon):
    """How a watched load of `horizon` requests ends when `share` of them are bad.

    Bets decide before the end, by `spending`, and the fixed sample at the end.
    """
    below, above = bet_below(limit), bet_above(limit)
    to_pass = -math.log(1 - spending.early_pass_confidence) if spending.passes else math.inf
    to_fail = -math.log(1 - spending.early_fail_confidence)
    k, n = np.arange(_MOST_BAD), range(1, horizon + 1)
    passes = {c: [below.log_stake(int(b), c, limit) >= to_pass for b in k] for c in n}
    fails = {c: [b <= c and above.log_stake(int(b), c, limit) >= to_fail for b in k] for c in n}
    going = np.zeros(_MOST_BAD)
    going[0] = 1
    passed = failed = requests = 0.0
    for count in n:
        requests += going.sum()
        worse = going[:-1] * share
        going *= 1 - share
        going[1:] += worse
        wins, losses = np.array(passes[count]), np.array(fails[count])
        passed, failed = passed + going[wins].sum(), failed + going[losses].sum()
        going[wins | losses] = 0
    undecided = Verdict(outcome=Outcome.INCONCLUSIVE, reason="")
    for bad in np.flatnonzero(going):
        verdict = last_verdict(
            undecided,
            lambda sure, bad=int(bad): rate_verdict(bad, horizon, limit=limit, confidence=sure),
            spending,
        )
        passed += going[bad] * (verdict.outcome is Outcome.PASS)
        failed += going[bad] * (verdict.outcome is Outcome.FAIL)
    return Stopped(float(passed), float(failed), float(requests))


def wald_at(good, bad, *, share, horizon, risk=0.05):
    """How Wald's test of the rate `good` against `bad` ends: pass is for `good`.

    Thresholds are log((1 - risk) / risk) on either side (Wald 1945).
    """
    threshold = math.log((1 - risk) / risk)
    per_bad, per_good = math.log(bad / good), math.log1p(-good) - math.log1p(-bad)
    k = np.arange(_MOST_BAD)
    pass_from = k + np.ceil((threshold + k * per_bad) / per_good - 1e-9).astype(int)
    fail_until = k + np.floor((k * per_bad - threshold) / per_good + 1e-9).astype(int)
    return _walk(pass_from, fail_until, share, horizon)


def _walk(pass_from, fail_until, share, horizon):
    going = np.zeros(_MOST_BAD)
    going[0] = 1
    passed = failed = requests = 0.0
    for n in range(1, horizon + 1):
        requests += going.sum()
        worse = going[:-1] * share
        going *= 1 - share
        going[1:] += worse
        passes, fails = n >= pass_from, n <= fail_until
        passed, failed = passed + going[passes].sum(), failed + going[fails].sum()
        going[passes | fails] = 0
    return Stopped(float(passed), float(failed), float(requests))
