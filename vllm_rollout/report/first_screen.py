"""The first screen of a report: one sentence for the decision, and a tile for each gate."""

import math
from dataclasses import dataclass

from vllm_rollout.model.evidence import Attachment, Evidence, GateRun
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import counted, format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report import formatting as words
from vllm_rollout.report.rows import gate_rows, latency_verdict

_MOST_NAMED = 3
_LONGEST_END = 300
_ROOM = 1.15
"""The gauge goes so far beyond its highest figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A verdict's figures as places on a line, in percent of its length.

    `low` to `high` is between the bounds; each is `at` where there is no such bound.
    """

    low: float
    high: float
    at: float
    limit: float


def gauge(verdict: Verdict) -> Gauge | None:
    """The verdict drawn against its limit; None without a value or a limit to draw.

    What lies beyond all that can be drawn is at the end.
    """
    measured, limit = verdict.measured, verdict.limit
    if measured is None or limit is None or math.isnan(measured) or not math.isfinite(limit):
        return None
    low = _known(verdict.lower, measured)
    high = _known(verdict.upper, measured)
    top = max(each for each in (measured, limit, low, high) if math.isfinite(each)) * _ROOM
    if top <= 0:
        return None

    def place(value: float) -> float:
        return round(100 * min(max(value / top, 0.0), 1.0), 2)

    return Gauge(low=place(low), high=place(high), at=place(measured), limit=place(limit))


def _known(bound: float | None, measured: float) -> float:
    return measured if bound is None or math.isnan(bound) else bound


def deciding_run(evidence: Evidence) -> GateRun | None:
    """The gate run that the decision rests on: the first that did not pass, else the last."""
    lost = [run for run in evidence.runs if run.outcome is not Outcome.PASS]
    return next(iter(lost or evidence.runs[-1:]), None)


def decision(evidence: Evidence) -> str:
    """One sentence with what a decision needs.

    `P95 0.64 s of 3 s; 0 of 5,987 failed; waits for QA: read 2 outputs`. What went wrong comes
    first.
    """
    run, headline = deciding_run(evidence), words.headline(evidence)
    figures = [] if run is None else [*_latency(run), *_failures(run)]
    if run is not None and not evidence.conclusion:  # which names them itself
        figures += _not_passed(run)
    if evidence.awaits_sign_off:
        count = len(outputs(evidence))
        read = f": read {counted(count, 'output')}" if count else ""
        return "; ".join([*figures, f"waits for QA{read}"])
    end = _start_small(one_line(evidence.conclusion).rstrip("."))
    if len(end) > _LONGEST_END:
        end = f"{end[: _LONGEST_END - 2]} …"
    end = end or words.outcome_counts(evidence)
    parts = [*figures, end] if headline.outcome is Outcome.PASS else [end, *figures]
    return _start_large("; ".join(parts))


def outputs(evidence: Evidence) -> list[Attachment]:
    """The model's outputs that a person reads before signing."""
    gates = (gate for run in evidence.runs for gate in run.gates if gate.gate == "outputs")
    return [attachment for gate in gates for attachment in gate.attachments]


def _latency(run: GateRun) -> list[str]:
    loads = dict.fromkeys(gate.load for gate in run.gates if gate.load)
    for verdict in filter(None, (latency_verdict(run, load) for load in loads)):
        if verdict.measured is not None and not math.isnan(verdict.measured):
            name = "latency" if verdict.percentile is None else f"P{verdict.percentile:g}"
            limit = format_value(verdict.limit, verdict.unit)
            if math.isinf(verdict.measured):
                return [f"{name} without an answer, limit {limit}"]
            return [f"{name} {format_value(verdict.measured, verdict.unit)} of {limit}"]
    return []


def _failures(run: GateRun) -> list[str]:
    loads = [run.loads[gate.load] for gate in run.gates if gate.load in run.loads]
    return [f"{load.failures:,} of {load.total:,} failed" for load in loads[:1] if load.total]


def _not_passed(run: GateRun) -> list[str]:
    """The gates that failed, and those that know nothing, by name."""
    parts = []
    rows = gate_rows(run, run.deployment.environment)
    for outcome, word in ((Outcome.FAIL, "failed"), (Outcome.INCONCLUSIVE, "not known")):
        names = [row.title for row in rows if row.outcome is outcome]
        if names:
            parts.append(f"{word}: {words.first_names(names, _MOST_NAMED)}")
    return parts


def _start_small(text: str) -> str:
    """`text` to go on a sentence with; an abbreviation stays as it is."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _start_large(text: str) -> str:
    return text[:1].upper() + text[1:]
