"""Verdicts of sequential tests, in words and figures."""

from vllm_rollout.judge.anytime_valid import AnytimeShare
from vllm_rollout.judge.messages import bound_text, may_share_text, worth_text
from vllm_rollout.judge.sample_size import format_confidence, more_load
from vllm_rollout.model.units import of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

# Bounds are computed again with so many more requests than at the last update, and when they
# decide: often enough to be of use, and seldom enough to cost nothing.
_MORE_REQUESTS, _MORE_AT_LEAST = 0.25, 16


class VerdictFormatter:
    """Turns the state of a sequential test into verdicts, and keeps the final one.

    Read with `test`'s counts in them, its verdicts say that `seen` happened to so many requests,
    that so many `are` it (a verb), and what that is held `against`; `remedy` is that of a fail.
    """

    def __init__(
        self,
        test: AnytimeShare,
        rate_per_second: float | None,
        *,
        seen: str,
        are: str,
        against: str,
        remedy: str,
        percentile: float | None = None,
    ) -> None:
        self.test = test
        self.final: Verdict | None = None
        self._rate_per_second = rate_per_second
        self._seen, self._are, self._against, self._fail_remedy = seen, are, against, remedy
        self._next_update = 1
        self._lower, self._upper, self._block = 0.0, 1.0, test.block
        self._percentile = percentile
        self._tail = self._remedy = ""
        self._nothing = Verdict(
            outcome=Outcome.INCONCLUSIVE,
            reason="no request was judged",
            limit=test.limit,
            confidence=test.confidence,
            remedy=f"Check that the load reaches the server. {self._needs()}",
            unit="ratio",
            method=VerdictMethod.ANYTIME_VALID,
            percentile=percentile,
            block=test.block,
        )

    def verdict(self) -> Verdict:
        """Return the verdict on the requests so far."""
        test = self.test
        if test.n == 0:
            return self._nothing
        if test.n >= self._next_update or test.outcome is not Outcome.INCONCLUSIVE:
            self._next_update = test.n + _MORE_AT_LEAST + int(test.n * _MORE_REQUESTS)
            self._update()
        verdict = Verdict(
            outcome=test.outcome,
            reason=f"{of_total(test.bad, test.n, 'request')} {self._seen}{self._tail}",
            measured=test.bad / test.n,
            lower=self._lower,
            upper=self._upper,
            limit=test.limit,
            confidence=self._confidence(),
            n=test.n,
            remedy=self._remedy,
            unit="ratio",
            p_value=test.fail_p_value if test.outcome is Outcome.FAIL else None,
            method=VerdictMethod.ANYTIME_VALID,
            percentile=self._percentile,
            block=self._block,
        )
        if test.outcome is not Outcome.INCONCLUSIVE:
            self.final = verdict
        return verdict

    def give_up(self, reason: str, remedy: str) -> Verdict:
        """End the test of a stream of which a part cannot be read: the final verdict."""
        self.final = self.verdict().inconclusive_because(reason, remedy)
        return self.final

    def _update(self) -> None:
        """Compute the bounds and their text; between two updates only the counts change."""
        test = self.test
        self._lower, self._upper = test.bounds()
        self._block = test.block
        if test.outcome is Outcome.PASS:
            bound, self._remedy = f"at most {bound_text(self._upper)} {self._are}", ""
        elif test.outcome is Outcome.FAIL:
            bound = f"at least {bound_text(self._lower)} {self._are}"
            self._remedy = self._fail_remedy
        else:
            bound = f"{bound_text(self._lower)} to {bound_text(self._upper)} may {self._are}"
            self._remedy = self._needs()
        sure = f"at {format_confidence(self._confidence())} confidence whenever looked at"
        self._tail = f": {bound}, {sure} {self._against}{self._bursts()}"

    def _confidence(self) -> float:
        """Confidence of the outcome; a fail has its own, by which its bound is computed."""
        test = self.test
        return test.fail_confidence if test.outcome is Outcome.FAIL else test.confidence

    def _bursts(self) -> str:
        test = self.test
        if test.block == 1:
            return ""
        why = "they came in bursts" if test.block > test.burst else may_share_text(test.burst)
        return f"; {why}, so {worth_text(test.block)}"

    def _needs(self) -> str:
        needed = self.test.pass_needs()
        more = more_load(needed, self._rate_per_second)
        return f"A pass takes at least {needed:,} requests in all: {more}."
