"""One rate's verdict: nothing passes that was not seen to hold, to the end of the load."""

import math

import numpy as np
import pytest

from vllm_rollout.capacity.rate_probe import Answers, RateProbe, Slos
from vllm_rollout.judge.goodput import GoodputLimits

SLOS = Slos(latency_seconds=3.0, error_limit=0.05)
ENOUGH = SLOS.requests_to_pass(0.01)


def answers(*latencies: float, failed: tuple[int, ...] = ()) -> Answers:
    """Requests with these latencies, those at `failed` without a valid answer."""
    seconds = np.array(latencies)
    lost = np.zeros(seconds.size, dtype=np.bool_)
    lost[list(failed)] = True
    return Answers(
        latency_seconds=seconds,
        failed=lost,
        ttft_seconds=seconds / 2,
        inter_token_seconds=seconds / 100,
    )


def probe(slos: Slos = SLOS, *, pass_risk: float | None = 0.01) -> RateProbe:
    return RateProbe(slos, pass_risk=pass_risk, fail_risk=0.002)


def test_no_request_passes_nothing_and_holds_nothing() -> None:
    judge = probe()
    judge.add(answers())
    assert not judge.passed
    assert not judge.holds_so_far
    assert not judge.failed


def test_a_pass_takes_as_many_requests_as_it_says_and_every_slo() -> None:
    judge = probe()
    judge.add(answers(*[0.2] * (ENOUGH - 1)))
    assert judge.holds_so_far
    assert not judge.passed
    judge.add(answers(0.2))
    assert judge.passed
    errors = probe()
    errors.add(answers(*[0.2] * ENOUGH, failed=tuple(range(0, ENOUGH, 25))))  # 4%: too near 5%
    assert not errors.passed


def test_a_probe_that_only_looks_never_passes() -> None:
    judge = probe(pass_risk=None)
    judge.add(answers(*[0.2] * (5 * ENOUGH)))
    assert judge.holds_so_far
    assert not judge.passed


def test_one_that_falls_behind_does_not_pass_for_having_been_good_at_first() -> None:
    """The test of all requests had passed already; the later half speaks against it."""
    judge = probe()
    judge.add(answers(*[0.2] * (2 * ENOUGH)))
    assert judge.passed
    judge.add(answers(*[3.5] * 200))
    assert not judge.passed
    assert judge.doubts == ("P95 below 3 s",)


def test_failed_requests_are_late_too_and_the_reason_counts_them() -> None:
    judge = probe(Slos(latency_seconds=3.0))
    judge.add(answers(*[0.01] * 200, failed=tuple(range(200))))
    assert judge.failed == "P95 below 3 s: 200 of 200 requests missed it"


@pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf])
def test_a_time_that_is_none_never_passes(bad: float) -> None:
    judge = probe(Slos(latency_seconds=3.0))
    judge.add(answers(bad, *[0.2] * (3 * ENOUGH)))
    assert not judge.passed


def test_goodput_takes_every_limit_and_an_answer() -> None:
    slos = Slos(goodput=GoodputLimits(ttft_seconds=1.0, latency_seconds=3.0), goodput_target=0.9)
    assert slos.slow_seconds == 3.0
    good = answers(0.5, 2.5, 3.5, 0.5, failed=(3,)).good(slos)
    assert good.tolist() == [True, False, False, False]  # 2.5 s: the first token took 1.25 s
    judge = probe(slos)
    judge.add(answers(*[2.5] * 100))
    assert judge.failed.startswith("goodput above 90%")


def test_an_slo_there_must_be() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Slos()
