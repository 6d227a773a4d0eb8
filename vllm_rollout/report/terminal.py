"""Gates, load and watch on a terminal: plain lines, and a table for rich."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from rich.table import Table
from rich.text import Text

from vllm_rollout.deployment import Replica
from vllm_rollout.judge.verdict import Outcome
from vllm_rollout.observe.load_progress import LoadProgress
from vllm_rollout.observe.probe import ProbeSample
from vllm_rollout.report.evidence import GateResult, GateRun
from vllm_rollout.report.items import findings
from vllm_rollout.report.words import one_line, short_title, verdict_text
from vllm_rollout.units import format_duration, format_value

__all__ = ["gates_table", "progress_line", "sight_line", "verdict_line", "verdict_text"]

_COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}
_OUTCOME_WIDTH = max(len(outcome) for outcome in Outcome)
_TITLE_WIDTH = 40


class Sight(Protocol):
    """What a watch saw at one moment; `replicas` is None when the platform did not say."""

    @property
    def probes(self) -> ProbeSample:
        """The inference requests sent and what became of them."""

    @property
    def replicas(self) -> Sequence[Replica] | None:
        """The replicas that existed."""


def verdict_line(result: GateResult) -> str:
    """`PASS  P95 latency  1.21 s (≤ 1.3 s at 95%)  limit 3 s  n=3,750`, one line per verdict.

    A fail or an inconclusive adds why, and what to do on an indented line of its own.
    """
    indent = " " * (_OUTCOME_WIDTH + 2)
    lines = []
    for verdict in findings(result):
        first, *more = verdict_text(verdict).split("\n")
        title = short_title(result.title)
        head = f"{verdict.outcome.upper():{_OUTCOME_WIDTH}}  {title:{_TITLE_WIDTH}}  {first}"
        lines += [head, *(indent + line for line in more)]
    return "\n".join(lines)


def gates_table(run: GateRun) -> Table:
    """All gates of a run as a table, those that never ran included."""
    table = Table(title=f"{run.deployment}: {run.outcome.upper()}", title_justify="left")
    table.add_column("Result", no_wrap=True)
    table.add_column("Gate")
    table.add_column("What was found")
    for gate in run.gates:
        for verdict in findings(gate):
            table.add_row(
                _outcome(verdict.outcome),
                Text(short_title(gate.title)),
                Text(verdict_text(verdict)),
            )
    for name in run.missing:
        table.add_row(_outcome(Outcome.INCONCLUSIVE), Text(one_line(name)), "did not run")
    if run.changed:
        table.caption = Text(one_line(run.changed))
    return table


def progress_line(progress: LoadProgress) -> str:
    """Where a load run stands, on one line."""
    parts = [
        f"{format_value(progress.asked_rate_per_second, '1/s')} asked",
        f"{progress.done:,} of {progress.planned:,} done",
        f"{progress.failures:,} failed",
        f"P50 {format_value(progress.latency_p50_seconds, 's')}",
        f"P95 {format_value(progress.latency_p95_seconds, 's')}",
    ]
    if not math.isnan(progress.ttft_p95_seconds):
        parts.append(f"first token P95 {format_value(progress.ttft_p95_seconds, 's')}")
    return ", ".join([*parts, f"{_clock(progress.remaining_seconds)} left"])


def sight_line(elapsed_seconds: float, duration: timedelta | None, sight: Sight | None) -> str:
    """What a watch sees now, on one line; `sight` is None when nothing could be observed.

    `duration` is None for a watch without end.
    """
    when = _clock(elapsed_seconds) + (f" of {format_duration(duration)}" if duration else "")
    if sight is None:
        return f"{when}: cannot observe"
    probes = sight.probes
    parts = [
        f"{probes.total - probes.failures} of {probes.total} probes answered",
        "healthy" if probes.healthy else "health check failed",
    ]
    if probes.latencies_seconds:
        parts.append(f"slowest {format_value(max(probes.latencies_seconds), 's')}")
    if sight.replicas is None:
        parts.append("replicas unknown")
    else:
        ready = sum(replica.ready for replica in sight.replicas)
        parts.append(f"{ready} of {len(sight.replicas)} replicas ready")
    if probes.error:
        parts.append(one_line(probes.error))
    return f"{when}: {', '.join(parts)}"


def _outcome(outcome: Outcome) -> Text:
    return Text(outcome.upper(), style=f"bold {_COLOURS[outcome]}")


def _clock(seconds: float) -> str:
    return format_duration(timedelta(seconds=round(seconds)))
