"""Gates, load and watch on a terminal."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from rich.console import Console
from support.samples import DOCS, not_printed

from vllm_rollout.load.load_progress import LoadProgress, RunningTimes
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.evidence import Evidence, GateResult
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import LiveCounts, nothing_known
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.terminal import (
    gate_line,
    gates_in_words,
    gates_table,
    observation_line,
    progress_line,
    progress_lines,
    run_lines,
    verdict_line,
)


@dataclass(frozen=True)
class Seen:
    """What a watch saw."""

    probes: ProbeSample
    replicas: Sequence[Replica] | None
    live: LiveCounts | None = None


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


def test_a_gate_is_one_line_for_all_that_it_found(
    make_gate: Callable[..., GateResult], passing: Verdict, failing: Verdict
) -> None:
    fact = Verdict(outcome=Outcome.PASS, reason="/health answered 200", n=1)
    long = [replace(fact, reason=f"{'x' * 40} {number}") for number in range(4)]
    whole = gate_line([make_gate("health", fact, fact), make_gate("health", passing)])
    assert whole.endswith("/health answered 200; 1.21 s (≤ 1.3 s at 95%)  limit 3 s  n=3,750")
    assert gate_line([make_gate("outputs", *long)]).endswith(f"0; {long[1].reason} (and 2 more)")
    head, why, remedy = gate_line([make_gate("latency", passing, failing)]).split("\n")
    assert head.startswith("FAIL ")
    assert "≥ 3.91 s at 95%" in head
    assert remedy.strip().startswith("→ ")
    assert why.strip() == failing.reason


def test_a_run_is_told_in_fifteen_lines_and_in_full_with_v(
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    unknown: Verdict,
) -> None:
    bad = [make_gate(f"own_{n}", replace(failing, remedy=f"Do {n}.")) for n in range(4)]
    gates = [make_gate("latency", passing, passing), make_gate("error_rate", unknown), *bad]
    run = make_evidence(*gates, expected=("latency", "soak")).runs[0]
    lines = run_lines(run)
    assert len(lines) <= 15 - 3  # what is below them
    assert sum(line.lstrip().startswith("→") for line in lines) == 3
    assert len(run_lines(run, verbose=True)) > 15
    assert gates_in_words(run) == (
        "1 of 7 gates passed; failed: Own 0, Own 1 and 2 more; not known: Error rate, soak"
    )


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
    assert observation_line(5, watching, None) == "5s of 10m: cannot observe"
    left = timedelta(seconds=4.99626)
    assert observation_line(0, left, None) == "0s of 5s: cannot observe"
    dead = Seen(ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=False), None)
    assert observation_line(65, watching, dead) == (
        "1m5s of 10m: 0 of 10 probes answered, health check failed, replicas unknown"
    )
    ready = Replica(name="a", phase="Running", ready=True, restarts=0)
    well = Seen(
        ProbeSample(total=2, failures=0, latencies_seconds=(0.1, 0.3), healthy=True), [ready]
    )
    assert observation_line(0, watching, well) == (
        "0s of 10m: 2 of 2 probes answered, healthy, slowest 0.3 s, 1 of 1 replica ready"
    )
    blind = replace(well, live=nothing_known("it is down"))
    assert observation_line(0, watching, blind).endswith(
        ", Prometheus: not known (Prometheus: it is down)"
    )


def running(*, latencies: Sequence[float] = (), **changes: object) -> LoadProgress:
    """A load run half a minute old."""
    times = RunningTimes()
    for latency in latencies:
        times.add(latency)
    progress = LoadProgress(
        elapsed_seconds=30.0,
        remaining_seconds=90.2,
        asked_rate_per_second=10.0,
        sent_rate_per_second=9.9,
        planned=1_200,
        sent=301,
        done=300,
        failures=2,
        unsent=0,
        latency=times,
        ttft=RunningTimes(),
        lag_p99_seconds=0.002,
        generator_cpu=None,
    )
    return replace(progress, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("latencies", "shown"),
    [
        ([0.5] * 20, "P50 0.5 s (≤ 0.5 s), P95 0.5 s"),
        ([0.5] * 18 + [math.inf] * 2, "P50 0.5 s (≤ 0.5 s), P95 ∞ s"),
        ([0.5] * 280 + [2.0] * 20, "P50 0.5 s (≤ 0.5 s), P95 2.001 s (≤ 2.001 s)"),
        ([], "no answer yet"),
    ],
)
def test_a_load_run_shows_where_it_stands(latencies: list[float], shown: str) -> None:
    """A percentile beyond the failures is infinite, and left out before the first answer."""
    line = progress_line(running(latencies=latencies), confidence=0.95)
    assert line == (
        f"9.9/s of 10/s asked are sent, 300 of 1,200 done, 2 failed, {shown}, "
        "lag P99 0.002 s, 1m30s left"
    )
    unsent = progress_line(running(latencies=[], lag_p99_seconds=None), confidence=0.95)
    assert unsent.endswith(" failed, no answer yet, 1m30s left")


def test_a_terminal_shows_the_same_with_a_bar() -> None:
    ttft = RunningTimes()
    for _ in range(200):
        ttft.add(0.1)
    progress = running(latencies=[0.5] * 200, ttft=ttft, generator_cpu=0.61, unsent=3)
    page = (DOCS / "how-to" / "load.md").read_text(encoding="utf-8")
    (shown_there,) = re.findall(r"^load staging\S+ (.*)$", page, flags=re.MULTILINE)
    plain = progress_line(replace(progress, unsent=0), confidence=0.95)
    assert not_printed([shown_there], plain) == []
    shown = io.StringIO()
    Console(file=shown, width=120).print(progress_lines(progress, "load m", confidence=0.95))
    text = shown.getvalue()
    for part in (
        "load m",
        "1m30s left",
        "300 of 1,200 done, 2 failed",
        "9.9/s of 10/s asked are sent",
        "P95 0.5 s (≤ 0.5 s)",
        "first token",
        "lag P99 0.002 s, CPU 61%, 3 not sent",
    ):
        assert part in text
