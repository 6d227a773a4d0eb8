"""Gates, load and watch on a terminal."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pytest
from rich.console import Console

from vllm_rollout.deployment import Replica
from vllm_rollout.judge.verdict import Verdict
from vllm_rollout.observe.load_progress import LoadProgress
from vllm_rollout.observe.probe import ProbeSample
from vllm_rollout.report.evidence import Evidence, GateResult
from vllm_rollout.report.terminal import gates_table, progress_line, sight_line, verdict_line


@dataclass(frozen=True)
class Seen:
    """What a watch saw."""

    probes: ProbeSample
    replicas: Sequence[Replica] | None


def test_each_verdict_is_a_line_with_why_and_what_to_do_below(
    make_gate: Callable[..., GateResult], passing: Verdict, unknown: Verdict
) -> None:
    """Outcome, gate and figures line up; only what did not pass explains itself."""
    lines = verdict_line(make_gate("latency", passing, unknown)).split("\n")
    assert lines[0].split(maxsplit=1)[0] == "PASS"
    assert lines[0].endswith("1.21 s (≤ 1.3 s at 95%)  limit 3 s  n=3,750")
    assert lines[1].startswith("INCONCLUSIVE  Latency ")
    assert lines[0].index("Latency") == lines[1].index("Latency")
    assert [line.strip() for line in lines[2:]] == [
        "400 requests cannot show an error rate below 0.1%",
        "→ Send at least 2,995 requests.",
    ]


def test_the_table_shows_every_gate_also_those_that_never_ran(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    failing: Verdict,
    hostile: Evidence,
) -> None:
    """Markup in untrusted text is text, and no control character reaches the terminal."""
    run = make_evidence(make_gate("latency", failing), expected=("latency", "soak")).runs[0]
    shown = io.StringIO()
    Console(file=shown, width=120).print(gates_table(run), gates_table(hostile.runs[0]))
    text = shown.getvalue()
    assert "staging/llama-2-7b: FAIL" in text
    assert "≥ 3.91 s at 95%" in text
    assert "soak" in text
    assert "did not run" in text
    assert "\x1b" not in text


def test_a_watch_that_sees_nothing_says_so() -> None:
    """Absence of data is shown, never left out."""
    watching = timedelta(minutes=10)
    assert sight_line(5, watching, None) == "5s of 10m: cannot observe"
    dead = Seen(ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=False), None)
    assert sight_line(65, watching, dead) == (
        "1m5s of 10m: 0 of 10 probes answered, health check failed, replicas unknown"
    )
    ready = Replica(name="a", phase="Running", ready=True, restarts=0)
    well = Seen(
        ProbeSample(total=2, failures=0, latencies_seconds=(0.1, 0.3), healthy=True), [ready]
    )
    assert sight_line(0, watching, well) == (
        "0s of 10m: 2 of 2 probes answered, healthy, slowest 0.3 s, 1 of 1 replicas ready"
    )


@pytest.mark.parametrize(
    ("p95", "shown"), [(1.25, "P95 1.25 s"), (math.inf, "P95 ∞ s"), (math.nan, "P95 unknown")]
)
def test_a_load_run_shows_where_it_stands(p95: float, shown: str) -> None:
    """A percentile beyond the failures is infinite, and unknown before the first answer."""
    line = progress_line(
        LoadProgress(
            elapsed_seconds=30.0,
            remaining_seconds=90.2,
            asked_rate_per_second=10.0,
            planned=1_200,
            sent=301,
            done=300,
            failures=2,
            latency_p50_seconds=0.6,
            latency_p95_seconds=p95,
            ttft_p50_seconds=math.nan,
            ttft_p95_seconds=math.nan,
        )
    )
    assert line == f"10/s asked, 300 of 1,200 done, 2 failed, P50 0.6 s, {shown}, 1m30s left"
