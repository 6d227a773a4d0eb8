"""Gates, load and watch on a terminal: plain lines, and a table for rich."""

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vllm_rollout.judge.sample_outputs import doubts_of
from vllm_rollout.load.load_progress import LoadProgress, RunningTimes
from vllm_rollout.model.evidence import GateResult, GateRun
from vllm_rollout.model.observation import Observation
from vllm_rollout.model.request_counts import LiveCounts
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import counted, format_about, format_duration, format_value, of_total
from vllm_rollout.model.verdict import Outcome, worst
from vllm_rollout.report.formatting import first_names, short_title, verdict_text
from vllm_rollout.report.rows import change_unsaid, findings

__all__ = [
    "by_gate",
    "gate_line",
    "gates_in_words",
    "gates_table",
    "observation_line",
    "progress_line",
    "progress_lines",
    "run_lines",
    "verdict_line",
    "verdict_text",
]

_COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}
_OUTCOME_WIDTH = max(len(outcome) for outcome in Outcome)
_TITLE_WIDTH = 40
_LONGEST_JOINED = 90
_MOST_EXPLAINED, _MOST_NAMED = 3, 2


def verdict_line(result: GateResult) -> str:
    """`PASS  P95 latency  1.21 s (≤ 1.3 s at 95%)  limit 3 s  n=3,750`, one line per verdict.

    A fail or an inconclusive adds why, and what to do on an indented line of its own.
    """
    return "\n".join(
        _line(verdict.outcome, result.title, verdict_text(verdict)) for verdict in findings(result)
    )


def gate_line(results: Sequence[GateResult]) -> str:
    """One line for all items of a gate: what they found if they passed, else what decided.

    Why, and what to do, follow as in `verdict_line`.
    """
    found = [verdict for result in results for verdict in findings(result)]
    outcome = worst([verdict.outcome for verdict in found])
    first, *more = dict.fromkeys(verdict_text(v) for v in found if v.outcome is outcome)
    if outcome is Outcome.PASS:
        text = _joined([first, *more])
    else:
        head, *rest = first.split("\n")
        text = "\n".join([f"{head}{_and_more(len(more))}", *rest])
    return _line(outcome, results[0].title, text)


def run_lines(run: GateRun, *, verbose: bool = False) -> list[str]:
    """The run's gates for the end of a session; `verbose` has each verdict on a line of its own.

    Otherwise a gate has one line, what several gates would explain alike is explained once, and
    no more than the first few that did not pass are explained at all.
    """
    if verbose:
        return [line for gate in run.gates for line in verdict_line(gate).split("\n")]
    lines: list[str] = []
    explained = 0
    for gate in by_gate(run):
        head, *more = gate_line(gate).split("\n")
        more = [line for line in more if line not in lines]
        if explained == _MOST_EXPLAINED:
            more = []
        explained += bool(more)
        lines += [head, *more]
    return lines


def by_gate(run: GateRun) -> list[list[GateResult]]:
    """The results of each gate, which may have several items; those of one title are one gate's."""
    found: dict[tuple[str, str], list[GateResult]] = {}
    for result in run.gates:
        found.setdefault((result.gate, result.title), []).append(result)
    return list(found.values())


def gates_in_words(run: GateRun) -> str:
    """`all 7 gates passed`, or how many did, and which ended how else."""
    ended: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for gate in by_gate(run):
        ended[worst([each.outcome for each in gate])].append(short_title(gate[0].title))
    ended[Outcome.INCONCLUSIVE] += map(one_line, run.missing)
    passed, total = len(ended[Outcome.PASS]), sum(map(len, ended.values()))
    parts = [f"{passed} of {counted(total, 'gate')} passed"]
    for outcome, word in ((Outcome.FAIL, "failed"), (Outcome.INCONCLUSIVE, "not known")):
        names = ended[outcome]
        if names:
            parts.append(f"{word}: {first_names(names, _MOST_NAMED)}")
    return "; ".join(parts)


def _line(outcome: Outcome, title: str, text: str) -> str:
    first, *more = text.split("\n")
    head = f"{outcome.upper():{_OUTCOME_WIDTH}}  {short_title(title):{_TITLE_WIDTH}}  {first}"
    return "\n".join([head, *(" " * (_OUTCOME_WIDTH + 2) + line for line in more)])


def _joined(texts: Sequence[str]) -> str:
    """As many of `texts` as fit on a line, and how many more there are."""
    first, *others = texts
    while others and len(f"{first}; {others[0]}") <= _LONGEST_JOINED:
        first = f"{first}; {others.pop(0)}"
    return first + _and_more(len(others))


def _and_more(number: int) -> str:
    return f" (and {number} more)" if number else ""


def gates_table(run: GateRun) -> Table:
    """All gates of a run as a table, those that never ran included."""
    table = Table(title=f"{run.deployment}: {run.outcome.upper()}", title_justify="left")
    table.add_column("Result", no_wrap=True)
    table.add_column("Gate", overflow="fold")
    table.add_column("What was found", overflow="fold")
    for gate in run.gates:
        for verdict in findings(gate):
            table.add_row(
                _outcome(verdict.outcome),
                Text(short_title(gate.title)),
                Text(verdict_text(verdict)),
            )
    for name in run.missing:
        table.add_row(_outcome(Outcome.INCONCLUSIVE), Text(one_line(name)), "did not run")
    if changed := change_unsaid(run):
        table.caption = Text(one_line(changed))
    return table


def progress_line(progress: LoadProgress, *, confidence: float) -> str:
    """Return a load run's progress on one line: the plain form of `progress_lines`."""
    parts = [
        _rates(progress),
        f"{progress.done:,} of {progress.planned:,} done",
        f"{progress.failures:,} failed",
        _both(progress.latency, confidence) if progress.latency.count else "no answer yet",
    ]
    if progress.ttft.count:
        parts.append(f"first token P95 {_percentile(progress.ttft, 95, confidence)}")
    parts += [_generator(progress), f"{_clock(progress.remaining_seconds)} left"]
    return ", ".join(filter(None, parts))


def progress_lines(progress: LoadProgress, title: str, *, confidence: float) -> Group:
    """Return a load run's progress for a terminal: a bar, and the figures below it."""
    whole = progress.elapsed_seconds + progress.remaining_seconds
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(whole, 1e-9), completed=progress.elapsed_seconds, width=30)
    head.add_row(Text(title, style="bold"), bar, f"{_clock(progress.remaining_seconds)} left")
    table = Table.grid(padding=(0, 2))
    rows = {
        "requests": f"{progress.done:,} of {progress.planned:,} done, {progress.failures:,} failed",
        "rate": _rates(progress),
        "latency": _both(progress.latency, confidence) if progress.latency.count else "",
        "first token": _both(progress.ttft, confidence) if progress.ttft.count else "",
        "generator": _generator(progress),
    }
    for name, text in rows.items():
        if text:
            style = "red" if name == "requests" and progress.failures else ""
            table.add_row(Text(f"  {name}"), Text(text, style=style))
    return Group(head, table)


def _rates(progress: LoadProgress) -> str:
    sent, asked = progress.sent_rate_per_second, progress.asked_rate_per_second
    return f"{format_value(sent, '1/s')} of {format_value(asked, '1/s')} asked are sent"


def _both(times: RunningTimes, confidence: float) -> str:
    p50, p95 = (_percentile(times, percentile, confidence) for percentile in (50, 95))
    return f"P50 {p50}, P95 {p95}"


def _percentile(times: RunningTimes, percentile: float, confidence: float) -> str:
    """`1.2 s (≤ 1.4 s)`: the bound holds however often it is read."""
    text = format_value(times.percentile(percentile), "s")
    from vllm_rollout.judge.anytime_valid import percentile_rank_at_most

    rank = percentile_rank_at_most(times.count, percentile, confidence)
    return text if rank is None else f"{text} (≤ {format_value(times.at_rank(rank), 's')})"


def _generator(progress: LoadProgress) -> str:
    """Return how well the generator keeps up, as far as is known yet."""
    parts = []
    if progress.lag_p99_seconds is not None:
        parts.append(f"lag P99 {format_value(progress.lag_p99_seconds, 's')}")
    if progress.generator_cpu is not None:
        parts.append(f"CPU {progress.generator_cpu:.0%}")
    if progress.unsent:
        parts.append(f"{progress.unsent:,} not sent")
    return ", ".join(parts)


def observation_line(
    elapsed_seconds: float, duration: timedelta | None, observation: Observation | None
) -> str:
    """Return an observation of a watch on one line; None when nothing could be observed.

    `duration` is None for a watch without end.
    """
    when = _clock(elapsed_seconds) + (f" of {format_about(duration)}" if duration else "")
    if observation is None:
        return f"{when}: cannot observe"
    probes = observation.probes
    if probes.path_errors:
        return f"{when}: not seen: {one_line(probes.path_errors)}"
    if probes.refused_because and not probes.total:
        return f"{when}: not seen: {one_line(probes.refused_because)}"
    parts = [
        f"{of_total(probes.total - probes.failures, probes.total, 'probe')} answered",
        "healthy" if probes.healthy else "health check failed",
    ]
    if probes.latencies_seconds:
        parts.append(f"slowest {format_value(max(probes.latencies_seconds), 's')}")
    if observation.replicas is None:
        parts.append("replicas unknown")
    else:
        ready = sum(replica.ready for replica in observation.replicas)
        parts.append(f"{of_total(ready, len(observation.replicas), 'replica')} ready")
    if observation.live is not None:
        parts.append(f"Prometheus: {_live_text(observation.live)}")
    parts += [one_line(doubt) for doubt in doubts_of(probes).values()]
    if probes.error:
        parts.append(one_line(probes.error))
    return f"{when}: {', '.join(parts)}"


def _live_text(live: LiveCounts) -> str:
    if live.unknown:
        return f"not known ({one_line(live.unknown)})"
    return " and ".join(
        f"{of_total(each.failures, each.total, 'request')} failed ({each.source})"
        for each in live.rates.sources
    )


def _outcome(outcome: Outcome) -> Text:
    return Text(outcome.upper(), style=f"bold {_COLOURS[outcome]}")


def _clock(seconds: float) -> str:
    return format_duration(timedelta(seconds=round(seconds)))
