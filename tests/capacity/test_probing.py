"""A probe says nothing of the rate where its generator did not measure it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vllm_rollout.capacity.model import NextProbe, Probe, Purpose
from vllm_rollout.capacity.probing import send_probe
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.goodput import GoodputLimits
from vllm_rollout.load.arrivals import arrivals
from vllm_rollout.load.request_log import LOG_NAME, LogWriter
from vllm_rollout.load.run_load import Generator
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.policy import load_policy

PLAN = LoadPlan(base_url="http://h", model="m", rate_per_second=10, duration_seconds=10)
ASK = NextProbe(
    per_second=50,
    aim=Purpose.PROVE,
    least_seconds=1,
    most_seconds=10,
    pass_risk=0.025,
    fail_risk=0.01,
)


class Ended:
    """A load generator that has ended."""

    start_seconds = end_seconds = clock_ahead_seconds = 0.0

    def wait(self, seconds: float) -> bool:
        return True

    def problem(self) -> str:
        return ""

    def not_started(self, reason: str) -> UnreachableError:
        raise AssertionError(reason)


def probe(folder: Path, slos: Slos, *, stalled_seconds: float) -> Probe:
    """The probe of a load whose every answer took 0.2 s and was read after such a stall."""

    @contextmanager
    def start(plan: LoadPlan, results: Path) -> Iterator[Generator]:
        log = LogWriter(results / LOG_NAME.format(index=0), started_at=0.0)
        for number, due in enumerate(arrivals(plan)):
            log.record(
                RequestRecord(
                    number=number,
                    intended=due,
                    sent=due,
                    first_token=None if stalled_seconds else due + 0.1,
                    end=due + 0.2,
                    outcome=RequestOutcome.OK,
                    completion_tokens=8,
                    stalled_seconds=stalled_seconds,
                )
            )
        log.tick(sent=number, busy_seconds=1.0)
        log.end()
        yield Ended()

    return send_probe(
        PLAN,
        ASK,
        slos=slos,
        late_after_seconds=3,
        load=load_policy().environments["staging"].load,
        cores=2,
        work_dir=folder,
        api_key=None,
        on_progress=lambda _: None,
        start=start,
    )


@pytest.mark.parametrize(
    ("slos", "stalled_seconds", "outcome"),
    [
        (Slos(goodput=GoodputLimits(ttft_seconds=0.5), goodput_target=0.9), 0.0, Outcome.PASS),
        (
            Slos(goodput=GoodputLimits(ttft_seconds=0.5), goodput_target=0.9),
            0.08,
            Outcome.INCONCLUSIVE,
        ),
        (Slos(error_limit=0.05), 0.08, Outcome.PASS),
    ],
    ids=["no stall", "first tokens not known", "not asked for"],
)
def test_stalls_of_the_generator_refute_no_rate(
    tmp_path: Path, slos: Slos, stalled_seconds: float, outcome: Outcome
) -> None:
    found = probe(tmp_path, slos, stalled_seconds=stalled_seconds)
    assert found.outcome is outcome, found.reason
    assert bool(found.generator_limited) is (outcome is Outcome.INCONCLUSIVE)
