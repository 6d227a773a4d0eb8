"""Evidence against a share, valid whenever it is read: a mixture SPRT, which is an e-process.

For an alternative share q, each request multiplies the e-value against `share` by

    (q / share) if the request is bad, ((1 - q) / (1 - share)) if not,

the likelihood ratio of q. If the true share is `share`, or lies on the other side of it than q,
the e-value is a nonnegative supermartingale that begins at 1, and

    P(the e-value ever reaches 1 / alpha) <= alpha      (Ville 1939; Robbins 1970, Ann. Math. Stat.
                                                         41:1397, eq. 1)

so it may be read as often as one likes. A single q is Wald's one-sided sequential test
(Wald 1945, Ann. Math. Stat. 16:117); a weighted sum over several is again an e-process (the
section 3) and does nearly as well as the best of them, at the price of log(1 / weight).

The alternatives are written as odds ratios r to `share`, so one mixture serves every share: the
e-value after `bad` of `n` is sum of w r^bad / (1 + (r - 1) share)^n. That is monotone in `share`,
and solving it for the share at which the e-value is 1 / alpha gives a confidence sequence: bounds
that hold at all times at once.
"""

import math
from collections.abc import Sequence

# Odds ratios exp(±3), exp(±1.5), exp(±0.75) …: strong alternatives are met in few requests, where
# the price of a small weight would show; weak ones take many, where it does not.
_STRONGEST = 3.0
_ALTERNATIVES = 11
_DECAY = 0.6
# Weight of the rate that the policy names; the rest still finds any other.
_NAMED = 0.8


class Mixture:
    """A weighted e-process; its alternatives are all below the share judged, or all above it."""

    def __init__(self, weights: Sequence[float], log_odds: Sequence[float]) -> None:
        whole = sum(weights)
        self.log_odds = tuple(log_odds)
        self._terms = [
            (math.log(weight / whole), odds, math.expm1(odds))
            for weight, odds in zip(weights, log_odds, strict=True)
        ]

    def log_e_value(self, bad: float, n: float, share: float) -> float:
        """Natural logarithm of the e-value after `bad` of `n`, against `share`.

        Computed from logarithms throughout: no count is too large. `share` lies from 0 to 1.
        """
        log1p, exp = math.log1p, math.exp
        terms = [
            weight + bad * odds - n * log1p(excess * share) for weight, odds, excess in self._terms
        ]
        most = max(terms)
        return most + math.log(sum([exp(term - most) for term in terms]))

    def bound(self, bad: float, n: float, log_threshold: float) -> float:
        """The share at which the e-value is at the threshold: all beyond it are refuted.

        An upper bound if the alternatives are shares below, a lower bound if they are above.
        """
        from scipy.optimize import brentq

        below = self.log_odds[0] < 0
        nothing = 1.0 if below else 0.0  # what every count agrees with

        def excess(share: float) -> float:
            return self.log_e_value(bad, n, share) - log_threshold

        if excess(nothing) <= 0:
            return nothing
        return float(brentq(excess, 0.0, 1.0, xtol=1e-15, rtol=1e-9))


def e_process_below(limit: float, named: float | None = None) -> Mixture:
    """E-process for a share below `limit`; most weight is on the share `named`, if one is.

    Raises:
        ValueError: `named` is not between 0 and `limit`.
    """
    if named is not None and not 0 < named < limit:
        raise ValueError(f"good must lie between 0 and the limit of {limit}, not {named}")
    return _mixture(-1.0, limit, named)


def e_process_above(limit: float, named: float | None = None) -> Mixture:
    """E-process for a share above `limit`; most weight is on the share `named`, if one is.

    Raises:
        ValueError: `named` is not between `limit` and 1.
    """
    if named is not None and not limit < named < 1:
        raise ValueError(f"bad must lie between the limit of {limit} and 1, not {named}")
    return _mixture(1.0, limit, named)


def _mixture(sign: float, limit: float, named: float | None) -> Mixture:
    odds = [sign * _STRONGEST * 0.5**i for i in range(_ALTERNATIVES)]
    weights = [_DECAY**i for i in range(_ALTERNATIVES)]
    rest = sum(weights)
    # At a limit of 1 every share is infinitely far from it in odds, and needs no name.
    if named is not None and limit < 1:
        odds.append(_log_odds(named) - _log_odds(limit))
        weights.append(rest * _NAMED / (1 - _NAMED))
    return Mixture(weights, odds)


def _log_odds(share: float) -> float:
    return math.log(share) - math.log1p(-share)
