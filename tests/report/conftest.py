"""Evidence to render: made by hand, the same every time."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.evidence import Attachment, Evidence, GateResult, GateRun, Step
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.load_summary import summarize_load

START = datetime(2026, 1, 27, 9, 30, tzinfo=UTC)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to start a process."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    monkeypatch.setattr("os.fork", started)


@pytest.fixture(scope="session")
def passing() -> Verdict:
    """A latency well below its limit."""
    return Verdict(
        outcome=Outcome.PASS,
        reason="P95 is below the limit",
        measured=1.21,
        lower=1.13,
        upper=1.3,
        limit=3.0,
        confidence=0.95,
        n=3_750,
        unit="s",
    )


@pytest.fixture(scope="session")
def failing(passing: Verdict) -> Verdict:
    """A latency above its limit."""
    return replace(
        passing,
        outcome=Outcome.FAIL,
        reason="P95 is above the limit",
        measured=4.02,
        lower=3.91,
        upper=4.2,
        remedy="Add replicas or lower max-num-seqs.",
    )


@pytest.fixture(scope="session")
def unknown() -> Verdict:
    """An error rate that too few requests were sent for."""
    return Verdict(
        outcome=Outcome.INCONCLUSIVE,
        reason="400 requests cannot show an error rate below 0.1%",
        measured=0.0,
        upper=0.00746,
        limit=0.001,
        confidence=0.95,
        n=400,
        remedy="Send at least 2,995 requests.",
        unit="ratio",
    )


@pytest.fixture(scope="session")
def load_result() -> LoadResult:
    """A minute at 20/s: lognormal latencies, and a stretch in which a quarter of them fail."""
    rng = random.Random(7)
    plan = LoadPlan(
        base_url="http://127.0.0.1:8000",
        model="llama-2-7b",
        rate_per_second=20.0,
        duration_seconds=60.0,
        warmup_seconds=5.0,
    )
    requests = []
    for i in range(1_200):
        at = 5.0 + i / 20
        failed = 30 <= at < 40 and rng.random() < 0.25
        latency = rng.lognormvariate(math.log(0.6), 0.45)
        requests.append(
            RequestRecord(
                intended=at,
                sent=at + 0.0005,
                first_token=None if failed else at + latency / 5,
                end=at + latency,
                outcome=RequestOutcome.HTTP_ERROR if failed else RequestOutcome.OK,
                status=503 if failed else 200,
                completion_tokens=0 if failed else 64,
            )
        )
    return LoadResult(plan=plan, started_at=START.timestamp(), requests=tuple(requests))


@pytest.fixture(scope="session")
def load(load_result: LoadResult) -> LoadSummary:
    """The summary of `load_result`."""
    return summarize_load(load_result)


@pytest.fixture(scope="session")
def make_gate() -> Callable[..., GateResult]:
    """Make a gate's result from its verdicts."""

    def make(gate: str, *verdicts: Verdict, **more: object) -> GateResult:
        fields: dict[str, object] = {
            "item": f"test_{gate}[staging-llama-2-7b]",
            "title": f"{gate.replace('_', ' ').capitalize()}: what must hold",
            "started": START,
            "duration_seconds": 1.5,
        }
        return GateResult(gate=gate, verdicts=verdicts, **{**fields, **more})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def make_evidence(load: LoadSummary) -> Callable[..., Evidence]:
    """Make the evidence of one staging run of the gates given."""

    def make(
        *gates: GateResult,
        expected: tuple[str, ...] | None = None,
        changed: str = "",
        **more: object,
    ) -> Evidence:
        run = GateRun(
            deployment=Deployment("llama-2-7b", "staging"),
            base_url="http://127.0.0.1:8000",
            platform="local",
            revision=3,
            build=Build(values_digest="sha256:" + "ab" * 32, model_revision="r7"),
            policy_digest="sha256:" + "cd" * 32,
            started=START,
            finished=START + timedelta(minutes=11),
            expected=tuple(g.gate for g in gates) if expected is None else expected,
            gates=gates,
            loads={"load": load},
            changed=changed,
        )
        fields: dict[str, object] = {
            "run_id": "20260127-093000-0a1b",
            "model": "llama-2-7b",
            "suite_version": "0.1.0",
            "started": START,
            "finished": START + timedelta(minutes=12),
            "runs": (run,),
        }
        return Evidence(**{**fields, **more})  # type: ignore[arg-type]

    return make


HOSTILE = (
    "</script><script>document.title='hacked'</script>\"><img src=x onerror=alert(1)>{{7*7}}\x1b[2J"
)


@pytest.fixture(scope="session")
def hostile(make_gate: Callable[..., GateResult], load: LoadSummary) -> Evidence:
    """Evidence with markup, template code and control characters in every field of text."""
    bad = Verdict(outcome=Outcome.FAIL, reason=HOSTILE, remedy=HOSTILE, n=1)
    gate = make_gate(
        HOSTILE,
        bad,
        item=HOSTILE,
        title=HOSTILE,
        error=HOSTILE + "\n" + HOSTILE,
        unreachable=HOSTILE,
        skipped=HOSTILE,
        load=HOSTILE,
        attachments=(Attachment(title=HOSTILE, text=HOSTILE),),
    )
    run = GateRun(
        deployment=Deployment("llama-2-7b", "staging"),
        base_url=HOSTILE,
        platform=HOSTILE,
        revision=1,
        build=Build(model_revision=HOSTILE),
        policy_digest=HOSTILE,
        started=START,
        finished=START,
        expected=(HOSTILE + "!",),
        gates=(gate,),
        loads={HOSTILE: replace(load, incomplete=HOSTILE, failures_by_kind={HOSTILE: 1})},
        changed=HOSTILE,
    )
    return Evidence(
        run_id=HOSTILE,
        model=HOSTILE,
        suite_version=HOSTILE,
        started=START,
        finished=START,
        runs=(run,),
        steps=(Step(at=START, title=HOSTILE, detail=HOSTILE, outcome=Outcome.FAIL),),
        conclusion=HOSTILE,
        exit_code=1,
    )
