"""Triggers and gates on resources: what was sampled decides, and what is not known does not."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.resources import resource_verdict
from vllm_rollout.judge.rollback_triggers import Found, Triggers
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.observation import FiguresRead, Observation, ProbeSample
from vllm_rollout.policy import load_policy
from vllm_rollout.policy.validation_errors import PolicyError

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WELL = Observation(
    probes=ProbeSample(total=10, failures=0, latencies_seconds=(0.1,) * 10, healthy=True),
    replicas=[Replica(name="r", phase="Running", ready=True, restarts=0)],
)
LIMITS: dict[str, Any] = {
    "triggers.gpu_memory": {"above": "90%", "for": "1m"},
    "triggers.kv_cache": {"above": "90%", "for": "1m"},
    "triggers.queue": {"above": 100, "for": "1m"},
}


def read(seconds: float, *, age: float = 0, **figures: float | Figure | None) -> FiguresRead:
    """A reading so many seconds after noon; a number is a value that was sampled `age` before."""
    at = NOON + timedelta(seconds=seconds)
    given = {"gpu_memory": 40.0, "kv_cache": 0.5, "queue": 3.0} | figures
    return FiguresRead(
        at=at,
        figures={
            FigureName(name): value
            if isinstance(value, Figure)
            else Figure(value=value, of=80, source="DCGM", at=at - timedelta(seconds=age))
            for name, value in given.items()
            if value is not None
        },
    )


def found_of(*readings: FiguresRead | None, step: float = 5) -> Found:
    """What the triggers have found after these readings, each so many seconds after the last."""
    triggers = Triggers(load_policy(None, overrides=LIMITS), spike_until=None)
    found = Found()
    for number, each in enumerate(readings):
        found = triggers.step(number * step, replace(WELL, figures=(each,) if each else ()))
        if found.fired:
            break
    return found


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"gpu_memory": 76.0}, "use of GPU memory: 95%, above 90% for 1m5s"),
        ({"kv_cache": 0.97}, "use of the KV cache: 97%, above 90% for 1m5s"),
        ({"queue": 101.0}, "requests waiting: 101, above 100 for 1m5s"),
    ],
)
def test_what_stays_above_its_limit_fires(bad: dict[str, Any], words: str) -> None:
    assert found_of(*(read(5 * n, **bad) for n in range(20))).fired.startswith(words)
    assert found_of(*(read(5 * n) for n in range(20))).fired == ""
    falls = [read(5 * n, **(bad if n % 12 else {})) for n in range(60)]  # as by a restart
    assert found_of(*falls).fired == ""
    short = found_of(*(read(5 * n, **bad) for n in range(4)))
    assert (short.fired, short.pending[0].startswith(words[:10])) == ("", True)


def test_a_sample_that_is_read_again_counts_once_and_then_is_blind() -> None:
    frozen = [read(5 * n, age=5 * n, kv_cache=0.97) for n in range(40)]

    found = found_of(*frozen)

    assert (found.fired, found.nothing) == ("", False)
    assert "use of the KV cache" in found.blind
    assert "the newest sample of DCGM is 3m15s old" in found.unknown


def test_a_sample_that_is_older_than_the_last_is_no_newer_one_and_no_new_beginning() -> None:
    # Scraped every 15 s and read every 5 s; a clock is read to some milliseconds, and of a server
    # that came later the newest sample may be older.
    ages = (0, 5.02, 12)
    full = [read(5 * n, age=ages[n % 3], kv_cache=0.97) for n in range(20)]
    assert found_of(*full).fired.startswith("use of the KV cache: 97%, above 90% for 1m")
    assert "no newer sample" in found_of(*full[:2], *[full[1]] * 30).unknown
    set_back = [read(5 * n - 600 * (n > 5), kv_cache=0.97) for n in range(12)]
    assert found_of(*set_back).fired == ""


def test_time_between_samples_counts_and_not_when_they_were_read() -> None:
    late = [read(60 * n, age=59 * n, kv_cache=0.97) for n in range(3)]  # a second apart
    assert found_of(*late, step=60).fired == ""


@pytest.mark.parametrize(
    "unknown",
    [
        Figure(unknown="no pod answered /metrics"),
        Figure(value=math.nan, source="a pod", at=NOON),
        Figure(value=math.inf, source="a pod", at=NOON),
        Figure(value=-1.0, source="a pod", at=NOON),
        Figure(value=97.0, source="a pod", at=NOON),  # a percentage where a fraction is meant
        Figure(value=0.97, source="a pod"),
        Figure(value=0.97, source="a pod", at=NOON - 3 * MINUTE),
        Figure(value=0.97, source="a pod", at=NOON + 10 * MINUTE),
        None,
    ],
)
def test_what_is_not_known_fires_nothing_and_is_blind_with_its_reason(
    unknown: Figure | None,
) -> None:
    found = found_of(*(read(5 * n, kv_cache=unknown) for n in range(30)))

    assert found.fired == ""
    assert found.blind == ("use of the KV cache",)
    verdict = resource_verdict(
        FigureName.KV_CACHE, [read(145, kv_cache=unknown)] * 3, limit=0.9, longest=2 * MINUTE
    )
    assert (verdict.outcome, verdict.n, verdict.measured) == (Outcome.INCONCLUSIVE, 0, None)
    assert found.unknown
    assert found.unknown in verdict.reason
    assert "/metrics" in verdict.remedy


def test_without_a_reading_all_of_them_are_blind_and_those_before_a_gap_are_void() -> None:
    assert len(found_of(*[None] * 30).blind) == len(LIMITS)
    # A first sample may come for as long as a gap may be, and no step goes on meanwhile.
    begun = found_of(*[None] * 20)
    assert (begun.blind, len(begun.pending), begun.unknown) == ((), len(LIMITS), "")
    assert "nothing was read yet" in begun.pending[0]
    bad = [read(5 * n, kv_cache=0.97) for n in range(12)]
    again = [read(5 * n, kv_cache=0.97) for n in range(52, 60)]
    assert found_of(*bad, *[None] * 40, *again).fired == ""


def test_gpu_memory_without_its_whole_is_not_known() -> None:
    part = Figure(value=70.0, source="DCGM", at=NOON)
    (unknown,) = found_of(read(0, gpu_memory=part)).pending
    assert unknown == "use of GPU memory: not known yet: DCGM does not say how much there is"


def test_triggers_are_off_by_default_and_a_limit_that_nothing_reaches_is_refused() -> None:
    assert load_policy(None).triggers.resources == {}
    assert all(not each.gates.resources for each in load_policy(None).environments.values())
    with pytest.raises(PolicyError, match="above 100%"):
        load_policy(None, overrides={"triggers.kv_cache": {"above": "100%", "for": "1m"}})


def test_a_gate_passes_below_its_limit_and_fails_on_one_reading_at_it() -> None:
    def judged(*readings: FiguresRead) -> Outcome:
        verdict = resource_verdict(FigureName.QUEUE, readings, limit=10, longest=2 * MINUTE)
        assert bool(verdict.remedy) is not verdict.passed
        return verdict.outcome

    well = [read(5 * n, queue=9) for n in range(5)]
    lost = read(30, queue=Figure(unknown="no pod answered"))
    assert judged(*well) is Outcome.PASS
    assert judged(*well, read(30, queue=10)) is Outcome.FAIL
    assert judged(*well, lost) is Outcome.INCONCLUSIVE
    assert judged(lost, read(30, queue=10)) is Outcome.FAIL
    assert judged(well[0], read(5, age=5, queue=9)) is Outcome.INCONCLUSIVE  # one sample, twice
    assert judged() is Outcome.INCONCLUSIVE
