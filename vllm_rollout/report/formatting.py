"""Formatting shared by all reports: a verdict's figures and a run's conclusion."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict, worst
from vllm_rollout.next_command import evidence_in_commands

NONE = "–"
"""Shown where there is no figure."""

_END_WORDS: dict[int | None, str] = {
    ExitCode.ROLLED_BACK: "ROLLED BACK",
    ExitCode.NEEDS_PERSON: "NEEDS A PERSON",
    ExitCode.INTERRUPTED: "INTERRUPTED",
}


AWAITS_SIGN_OFF = "WAITS FOR SIGN-OFF"
"""The word of a run that lacks nothing but a person's approval."""


@dataclass(frozen=True, slots=True)
class Headline:
    """Conclusion of a run: the word of the banner, its outcome (the colour) and one sentence."""

    word: str
    outcome: Outcome
    sentence: str


def cut(text: str, longest: int) -> str:
    """The first `longest` characters, and how many there were if some were left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}\n… cut: {longest:,} of {len(text):,} characters shown"


def short_title(title: str) -> str:
    """A gate's title up to its first colon or comma."""
    begin = one_line(re.split(r"[:,] ", title, maxsplit=1)[0]).rstrip(".")
    return begin or one_line(title) or NONE


def first_names(names: Sequence[str], most: int) -> str:
    """`a, b, c and 2 more`: the first `most` names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def measured_text(verdict: Verdict) -> str:
    """The measured value with its unit, or a dash for a plain yes or no."""
    return NONE if verdict.measured is None else format_value(verdict.measured, verdict.unit)


def limit_text(verdict: Verdict) -> str:
    """The limit with its unit, or a dash."""
    return NONE if verdict.limit is None else format_value(verdict.limit, verdict.unit)


def count_text(verdict: Verdict) -> str:
    """Return how many observations, with thousands set apart."""
    return f"{verdict.n:,}"


def bound_text(verdict: Verdict) -> str:
    """Both confidence bounds: `1.1 s – 1.3 s at 95%`; one of them when the other does not exist."""
    lower, upper = verdict.lower, verdict.upper
    if lower is None and upper is None:
        return NONE
    if lower is None:
        text = f"≤ {format_value(upper, verdict.unit)}"
    elif upper is None:
        text = f"≥ {format_value(lower, verdict.unit)}"
    else:
        text = f"{format_value(lower, verdict.unit)} – {format_value(upper, verdict.unit)}"
    return text + _confidence(verdict)


def deciding_bound_text(verdict: Verdict) -> str:
    """The bound that decided: the upper below the limit or the lower above it, else both."""
    lower, upper, limit = verdict.lower, verdict.upper, verdict.limit
    if limit is not None and upper is not None and upper <= limit:
        return f"≤ {format_value(upper, verdict.unit)}{_confidence(verdict)}"
    if limit is not None and lower is not None and lower >= limit:
        return f"≥ {format_value(lower, verdict.unit)}{_confidence(verdict)}"
    return bound_text(verdict)


def verdict_text(verdict: Verdict) -> str:
    """A verdict's figures and, unless it passed, why and what to do on lines of their own."""
    if verdict.passed:
        return _figures(verdict)
    lines = [_figures(verdict) if verdict.measured is not None else "", one_line(verdict.reason)]
    if verdict.remedy:
        lines.append(f"→ {one_line(verdict.remedy)}")
    return "\n".join(line for line in lines if line)


def time_text(at: datetime) -> str:
    """`at` in UTC to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def outcome_counts(evidence: Evidence) -> str:
    """Return how many gates ended how: `9 gates: 7 pass, 1 fail, 1 inconclusive`.

    All items of a gate are one.
    """
    ended: dict[tuple[int, str], list[Outcome]] = {}
    for number, run in enumerate(evidence.runs):
        for gate in run.gates:
            ended.setdefault((number, gate.gate), []).append(gate.outcome)
    counts = Counter(map(worst, ended.values()))
    counts[Outcome.INCONCLUSIVE] += sum(len(run.missing) for run in evidence.runs)
    return counts_text(counts)


def counts_text(counts: Counter[Outcome]) -> str:
    """`9 gates: 7 pass, 1 fail, 1 inconclusive`."""
    total = counts.total()
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in Outcome if counts[kind])
    noun = "gate" if total == 1 else "gates"
    return f"{total} {noun}: {kinds}" if total else "no gate ran"


def risk_text(run: GateRun) -> str:
    """Return the risk of a wrong pass or fail of the whole run; empty if chance has no part."""
    members = sum(v.confidence is not None for gate in run.gates for v in gate.verdicts)
    if run.confidence is None or not members:
        return ""
    risk = format_value(round(1 - run.confidence, 9), "ratio")
    verdicts = f"{members} verdict{'s'[: members > 1]} from samples"
    passed = f"a pass of all is wrong at most {risk} of the time"
    if run.family_risk == "none":
        return f"{verdicts}: {passed}, each fail on its own likewise"
    return f"{verdicts}: {passed}, and so is a fail of any ({run.family_risk.capitalize()})"


def headline(evidence: Evidence) -> Headline:
    """Return how `evidence` ended. A gate that did not pass outweighs exit code 0."""
    outcome = evidence.outcome
    if evidence.exit_code == ExitCode.OK:
        outcome = worst([outcome, *(run.outcome for run in evidence.runs)])
    word = _END_WORDS.get(evidence.exit_code, outcome.upper())
    conclusion = evidence.conclusion
    if evidence.awaits_sign_off:  # whose digest was not known when the conclusion was written
        word = AWAITS_SIGN_OFF
        named = evidence_in_commands(evidence.digest)
        conclusion = conclusion.replace("--evidence DIGEST", f"--evidence {named}")
    sentence = one_line(conclusion) or f"{outcome_counts(evidence).capitalize()}."
    return Headline(word, outcome, sentence)


def report_title(evidence: Evidence) -> str:
    """One line that names the run: `llama-2-7b: staging gates PASS`."""
    word = headline(evidence).word
    if evidence.exit_code is not None:
        return f"{one_line(evidence.model)}: rollout {word}"
    environments = dict.fromkeys(run.deployment.environment for run in evidence.runs)
    subject = " and ".join(environments) + " gates" if environments else "gates"
    return f"{one_line(evidence.model)}: {subject} {word}"


def _figures(verdict: Verdict) -> str:
    if verdict.measured is None:
        return one_line(verdict.reason)
    figures = measured_text(verdict)
    if verdict.lower is not None or verdict.upper is not None:
        figures += f" ({deciding_bound_text(verdict)})"
    if verdict.limit is not None:
        figures += f"  limit {limit_text(verdict)}"
    return f"{figures}  n={count_text(verdict)}"


def _confidence(verdict: Verdict) -> str:
    if verdict.confidence is None:
        return ""
    return f" at {format_value(verdict.confidence, 'ratio')}"
