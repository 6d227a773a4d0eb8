"""The search ends, soon, with an interval that covers the true capacity as often as it says."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.queueing import Queue, search

from vllm_rollout.capacity.judge import next_step
from vllm_rollout.capacity.model import (
    Capacity,
    NextProbe,
    Probe,
    Purpose,
    SearchConfig,
    StopReason,
)
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.model.verdict import Outcome


def goal(**changes: object) -> SearchConfig:
    values: dict[str, object] = {
        "slos": Slos(latency_seconds=3.0, error_limit=0.01),
        "start_per_second": 10,
        "max_per_second": 1000,
        "precision": 0.1,
        "confidence": 0.95,
        "most_probes": 16,
        "limit_seconds": 3.0,
        "probe_seconds": 10,
        "proof_seconds": 600,
    }
    return SearchConfig(**{**values, **changes})  # type: ignore[arg-type]


def answer(ask: NextProbe, **found: object) -> Probe:
    values: dict[str, object] = {
        "per_second": ask.per_second,
        "aim": ask.aim,
        "outcome": Outcome.INCONCLUSIVE,
        "holds": True,
        "seconds": ask.most_seconds,
        "reason": "",
    }
    return Probe(**{**values, **found})  # type: ignore[arg-type]


def threshold(capacity: float) -> Callable[[NextProbe], Probe]:
    """A service that can be told apart at once on either side of its capacity."""

    def send(ask: NextProbe) -> Probe:
        if ask.per_second > capacity:
            return answer(ask, outcome=Outcome.FAIL, holds=False)
        return answer(
            ask, outcome=Outcome.INCONCLUSIVE if ask.aim is Purpose.EXPLORE else Outcome.PASS
        )

    return send


def conducted(
    wanted: SearchConfig, send: Callable[[NextProbe], Probe]
) -> tuple[Capacity, list[Probe]]:
    probes: list[Probe] = []
    while isinstance(step := next_step(wanted, probes), NextProbe):
        probes.append(send(step))
    return step, probes


@pytest.mark.parametrize("capacity", [2.3, 9.9, 41.3, 700.0])
def test_a_clear_service_is_found_to_the_precision_in_few_probes(capacity: float) -> None:
    found, probes = conducted(goal(), threshold(capacity))
    assert found.ending is StopReason.FOUND
    assert found.lower <= capacity <= found.upper
    assert found.estimate == pytest.approx(capacity, rel=0.06)
    assert found.upper / found.lower <= 1.11
    assert len(probes) <= 14
    # The last is the one proof, after the cheap ones.
    assert [probe.aim for probe in probes].count(Purpose.PROVE) == 1


@pytest.mark.parametrize(
    "queue",
    [Queue(1, 0.025), Queue(64, 1.0, "constant"), Queue(32, 0.8, error_rate=0.001)],
    ids=["one server", "64 servers", "errors too"],
)
def test_the_interval_covers_the_true_capacity_of_a_queue(queue: Queue) -> None:
    """Eight searches each; benchmarks/capacity_coverage.py makes hundreds."""
    truth = queue.capacity(3.0)
    covered = []
    for seed in range(8):
        found, probes = search(queue, goal(proof_seconds=300), np.random.default_rng(seed))
        covered.append(found.lower <= truth <= found.upper)
        assert len(probes) <= 16
    assert sum(covered) >= 7


def test_risks_add_up_to_no_more_than_the_confidence_leaves() -> None:
    wanted = goal()
    fails = wanted.most_probes * wanted.fail_risk
    passes = sum(wanted.pass_risk(earlier) for earlier in range(wanted.most_probes))
    assert fails + passes <= 1 - wanted.confidence


def test_a_rate_that_held_for_a_time_is_worth_less_than_itself() -> None:
    """An excess too small to show in that time cannot be excluded."""
    found, probes = conducted(goal(precision=0.5), threshold(35.0))
    proof = probes[-1]
    assert proof.outcome is Outcome.PASS
    assert found.lower == pytest.approx(proof.per_second / (1 + 2 * 3.0 / proof.seconds))


def test_what_holds_at_no_rate_ends_below_the_lowest() -> None:
    found, probes = conducted(goal(), threshold(0.0))
    assert found.ending is StopReason.BELOW
    assert (found.lower, found.estimate) == (0.0, None)
    assert found.upper == min(probe.per_second for probe in probes)
    assert len(probes) <= 6


def test_what_holds_at_the_highest_rate_is_at_least_that_and_no_more_is_sent() -> None:
    found, probes = conducted(goal(max_per_second=50), threshold(math.inf))
    assert found.ending is StopReason.AT_LEAST
    assert found.proved == 50
    assert found.upper == math.inf
    assert max(probe.per_second for probe in probes) == 50


def test_a_generator_that_is_at_its_end_ends_the_search_with_what_it_could_send() -> None:
    """Above 30/s nothing is said of the server: neither that it holds nor that it fails."""

    def send(ask: NextProbe) -> Probe:
        if ask.per_second > 30:
            return answer(ask, generator_limited="requests left 0.4 s late")
        return threshold(math.inf)(ask)

    found, probes = conducted(goal(), send)
    assert found.ending is StopReason.GENERATOR
    assert found.detail == "requests left 0.4 s late"
    assert found.proved is not None
    assert 20 <= found.proved <= 30
    assert found.upper == math.inf
    assert len(probes) <= 6


def test_a_generator_that_cannot_send_half_of_the_first_rate_is_not_tried_ever_lower() -> None:
    found, probes = conducted(goal(), lambda ask: answer(ask, generator_limited="it lagged"))
    assert (found.ending, found.detail) == (StopReason.GENERATOR, "it lagged")
    assert (found.lower, found.upper) == (0, math.inf)
    assert len(probes) <= 3


def test_undecided_proofs_widen_the_interval_and_never_pass() -> None:
    """Between 30 and 45 nothing can be shown; the ends are rates at which something was."""

    def send(ask: NextProbe) -> Probe:
        if 30 < ask.per_second < 45:
            return answer(ask, holds=ask.per_second < 38)
        return threshold(37.0)(ask)

    found, _ = conducted(goal(), send)
    assert found.ending in (StopReason.FOUND, StopReason.PROBES)
    assert 0 < found.lower <= 30
    assert found.upper >= 45


def test_no_proof_is_sent_that_cannot_prove_anything() -> None:
    found, probes = conducted(
        goal(slos=Slos(error_limit=0.0001), proof_seconds=60), threshold(20.0)
    )
    assert found.ending is StopReason.UNPROVED
    assert "requests prove a rate" in found.detail
    assert {probe.aim for probe in probes} == {Purpose.EXPLORE}


def test_what_cannot_be_measured_ends_the_search() -> None:
    found, probes = conducted(goal(), lambda ask: answer(ask, unmeasured="a worker died"))
    assert (found.ending, found.detail, len(probes)) == (StopReason.UNMEASURED, "a worker died", 1)
    assert (found.lower, found.upper) == (0.0, math.inf)


def test_a_service_that_holds_above_a_rate_where_it_failed_is_unsteady() -> None:
    """The interval has both rates in it, and the estimate promises nothing."""
    ask = NextProbe(
        per_second=20,
        aim=Purpose.PROVE,
        least_seconds=60,
        most_seconds=60,
        pass_risk=0.01,
        fail_risk=0.01,
    )
    probes = [answer(ask, outcome=Outcome.PASS), answer(ask, outcome=Outcome.FAIL, per_second=15)]
    found = next_step(goal(), probes)
    assert isinstance(found, Capacity)
    assert found.ending is StopReason.UNSTEADY
    assert found.lower <= 15 < 20 <= found.upper


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Outcome)),
            st.booleans(),
            st.sampled_from(["", "", "", "", "the generator lagged"]),
        ),
        min_size=16,
        max_size=16,
    )
)
def test_whatever_probes_say_the_search_ends_and_claims_only_what_was_shown(
    story: list[tuple[Outcome, bool, str]],
) -> None:
    told = iter(story)

    def send(ask: NextProbe) -> Probe:
        outcome, holds, limited = next(told)
        if limited or (ask.aim is Purpose.EXPLORE and outcome is Outcome.PASS):
            outcome = Outcome.INCONCLUSIVE
        return answer(ask, outcome=outcome, holds=holds, generator_limited=limited)

    wanted = goal()
    found, probes = conducted(wanted, send)
    assert len(probes) <= wanted.most_probes
    assert all(0 < probe.per_second <= wanted.max_per_second for probe in probes)
    passed = [p.per_second for p in probes if p.outcome is Outcome.PASS]
    failed = [p.per_second for p in probes if p.outcome is Outcome.FAIL]
    assert found.lower <= max(passed, default=0.0)
    assert (found.lower > 0) == bool(passed)
    assert (found.upper < math.inf) == bool(failed)
    assert found.lower <= found.upper
    assert found.estimate is None or found.lower <= found.estimate <= found.upper


@pytest.mark.parametrize(
    "changes",
    [
        {"start_per_second": 0},
        {"start_per_second": 2000},
        {"precision": 0},
        {"confidence": 1},
        {"most_probes": 2},
        {"limit_seconds": math.inf},
        {"probe_seconds": 700},
    ],
)
def test_numbers_that_no_search_can_be_made_of_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="it must hold that"):
        goal(**changes)
