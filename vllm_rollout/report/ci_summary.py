"""Texts about runs for a CI system: a summary in Markdown, annotations, job outputs.

Pure text. Names and sentences from outside become plain text in it: no link, no mention, no markup,
no command to the CI system. `ci.py` writes it where the CI's variables say.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.text import one_line
from vllm_rollout.model.verdict import Outcome, worst
from vllm_rollout.report.changes import Comparison
from vllm_rollout.report.deployment_record import markdown_text
from vllm_rollout.report.formatting import (
    bound_text,
    count_text,
    first_names,
    headline,
    limit_text,
    measured_text,
    report_title,
    verdict_text,
)
from vllm_rollout.report.rows import GateRow, gate_rows, run_names, step_rows

LONGEST = 60
"""Lines of a summary, of all runs that it is about."""
_LONGEST_TEXT = 500
_MOST_ANNOTATIONS = 10
"""Of a kind: GitHub shows no more of a step."""
_FEWEST_LINES = 14
"""Below that a run has one line of the summary."""
_MOST_NAMED = 3
"""Gates that are named where several end for one reason."""
_JOINER = "\u2060"
# What GitHub or GitLab makes a link, a mention or a reference of: `@name`, `#12`, `!12`, addresses.
_REFERENCE = re.compile(r"(?<=[@#!~%$&])(?=[\w\"'])|(?<=:)(?=//)|(?<=\bwww)(?=\.)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CiResult:
    """One model's run, for a CI system.

    `evidence` is None where the run ended before there was any: `problem` says why. `comparisons`
    are those that the report's page shows; `link` leads to the report.
    """

    model: str
    environment: str
    exit_code: int
    evidence: Evidence | None = None
    problem: str = ""
    report: Path | None = None
    link: str = ""
    policy_file: str = ""
    next_command: str = ""
    comparisons: Sequence[Comparison] = ()

    @property
    def outcome(self) -> Outcome:
        """The banner's; inconclusive where nothing was judged."""
        return headline(self.evidence).outcome if self.evidence else Outcome.INCONCLUSIVE

    @property
    def title(self) -> str:
        """One line that names the run and its end."""
        if self.evidence:
            return report_title(self.evidence)
        return f"{one_line(self.model) or 'gates'}: not run"

    @property
    def sentence(self) -> str:
        """How it ended."""
        return headline(self.evidence).sentence if self.evidence else one_line(self.problem)

    @property
    def builds(self) -> tuple[str, ...]:
        """Digests of the builds that were gated."""
        runs = self.evidence.runs if self.evidence else ()
        return tuple(dict.fromkeys(run.build.digest for run in runs if run.build))


def outputs(results: Sequence[CiResult]) -> dict[str, str]:
    """Job outputs by name; of several models the values are separated by commas.

    The verdict is the worst. What is not known is empty.
    """

    def each(values: Sequence[str]) -> str:
        return ",".join(dict.fromkeys(one_line(value) for value in values if value))

    evidence = [result.evidence for result in results if result.evidence]
    return {
        "verdict": worst([result.outcome for result in results]).value,
        "exit-code": str(max((result.exit_code for result in results), default=0)),
        "evidence-digest": each([one.digest for one in evidence]),
        "run-id": each([one.run_id for one in evidence]),
        "report-path": each([str(result.report or "") for result in results]),
        "model": each([result.model for result in results]),
        "environment": each([result.environment for result in results]),
        "build": each([build for result in results for build in result.builds]),
    }


def annotations(results: Sequence[CiResult]) -> list[str]:
    """GitHub's workflow commands, a line each: errors and warnings for all that did not pass."""
    found: dict[str, list[str]] = {"error": [], "warning": []}
    bad = [result for result in results if result.outcome is not Outcome.PASS]
    for result in bad:
        failed = result.outcome is Outcome.FAIL or not result.evidence
        kind = "error" if failed else "warning"
        found[kind].append(_annotation(kind, result, result.title, result.sentence))
    for result in bad:
        whole = [(row, "; ".join(_texts(row))) for row in _problems(result)]
        for problem in _explained(whole):
            kind = "error" if problem.outcome is Outcome.FAIL else "warning"
            title = f"{result.model} {problem.where}"
            found[kind].append(_annotation(kind, result, title, problem.text))
    return [line for lines in found.values() for line in lines[:_MOST_ANNOTATIONS]]


def _annotation(kind: str, result: CiResult, title: str, text: str) -> str:
    file = result.policy_file or str(result.report or "")
    properties = {"file": file, "title": title}
    named = ",".join(f"{name}={_escaped(v, ':,')}" for name, v in properties.items() if v)
    return f"::{kind} {named}::{_escaped(_cut(text))}"


def _escaped(text: str, more: str = "") -> str:
    """The text as data of a workflow command."""
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def summary(results: Sequence[CiResult]) -> str:
    """The summary in Markdown, of at most `LONGEST` lines: what needs somebody comes first."""
    ordered = sorted(results, key=lambda one: one.outcome is Outcome.PASS)
    room = LONGEST // max(len(ordered), 1)
    if room >= _FEWEST_LINES:
        lines = [line for one in ordered for line in _section(one, room)]
    else:
        lines = [f"- {_text(one.title)}: {_text(one.sentence)}" for one in ordered]
        lines = _first(lines, LONGEST, "runs")
    return "".join(f"{line}\n" for line in lines)


def _section(result: CiResult, room: int) -> list[str]:
    """At most `room` lines about one run."""
    end = result.evidence and headline(result.evidence).word
    others = result.outcome is Outcome.PASS and result.exit_code  # another model's, of one session
    code = f"{'the session: ' if others else ''}exit code {result.exit_code}"
    lines = [
        f"### {_text(result.title)}",
        "",
        f"**{end or 'NOT RUN'}** ({code}): {_text(result.sentence)}",
        "",
    ]
    each = [(row, text) for row in _problems(result) for text in _texts(row)]
    problems = [
        f"- **{found.outcome.upper()}** {_text(f'{found.where}: {found.text}')}"
        for found in _explained(each)
    ]
    if problems:
        lines += [*_first(problems, room // 4, "findings"), ""]
    if result.next_command:
        lines += [f"**Next:** {_code(result.next_command)}", ""]
    tail = _evidence_lines(result)
    lines += _changes(result, room // 5)
    rows = [_cells(row) for row in sorted(_gates(result), key=lambda row: row.telling.passed)]
    left = room - len(lines) - len(tail) - 3
    if rows and left > 0:
        lines += [
            "| | Gate | Measured | Bound | Limit | n |",
            "|---|---|---|---|---|---|",
            *_first(rows, left, "gates", cells=True),
            "",
        ]
    return lines[: room - len(tail)] + tail


@dataclass(frozen=True, slots=True)
class _Problem:
    """One reason that one or several gates ended for: `where` names them."""

    outcome: Outcome
    where: str
    text: str


def _gates(result: CiResult) -> list[GateRow]:
    """The rows of the report's gates."""
    runs = result.evidence.runs if result.evidence else ()
    named = zip(run_names(runs), runs, strict=True)
    return [row for name, run in named for row in gate_rows(run, name)]


def _problems(result: CiResult) -> list[GateRow]:
    """The report's gates and steps that are no pass, fails first."""
    steps = step_rows(result.evidence) if result.evidence else []
    found = [row for row in (*_gates(result), *steps) if row.outcome is not Outcome.PASS]
    return sorted(found, key=lambda row: row.outcome is not Outcome.FAIL)


def _texts(row: GateRow) -> list[str]:
    """Figures, reason and remedy of what did not pass, a line each."""
    texts = (verdict_text(verdict) for verdict in row.verdicts if not verdict.passed)
    return list(dict.fromkeys(" ".join(text.split()) for text in texts))


def _explained(found: Sequence[tuple[GateRow, str]]) -> Iterator[_Problem]:
    """Explain once what several gates of an environment would explain alike."""
    alike: dict[tuple[Outcome, str, str], list[str]] = {}
    for row, text in found:
        alike.setdefault((row.outcome, row.environment, text), []).append(row.title)
    for (outcome, environment, text), titles in alike.items():
        yield _Problem(outcome, f"{environment}: {first_names(titles, _MOST_NAMED)}", text)


def _cells(row: GateRow) -> str:
    verdict = row.telling
    figures = (measured_text(verdict), bound_text(verdict), limit_text(verdict))
    where = f"{row.environment}: {row.title}"
    cells = [verdict.outcome.upper(), where, *figures, count_text(verdict)]
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _evidence_lines(result: CiResult) -> list[str]:
    parts = []
    if result.evidence:
        parts = [
            f"Evidence {_code(result.evidence.digest)}",
            f"run {_code(result.evidence.run_id)}",
        ]
        parts += [f"build {_code(build)}" for build in result.builds]
    lines = [", ".join(parts)] if parts else []
    if result.report:
        path = _code(str(result.report))
        lines += [f"[Report]({result.link}): {path}" if result.link else f"Report: {path}"]
    # A line break of Markdown between the two.
    return [f"{lines[0]}  ", *lines[1:]] if lines[1:] else lines


def _changes(result: CiResult, room: int) -> Iterator[str]:
    """Changes since each last passing run, as the report has them: `room` lines in all."""
    for each in result.comparisons:
        if each.evidence:
            changes = [change for change in (*each.build, *each.figures) if not change.same]
            texts = [each.unread] * bool(each.unread) + [change.text for change in changes]
            lines = [f"- {_text(text)}" for text in texts] or ["- nothing"]
            where = _text(each.run.deployment.environment)
            since = _code(each.evidence.run_id)
            yield f"Changed since {since}, the last run of {where} that passed:"
            yield from _first(lines, max(room // len(result.comparisons), 1), "changes")
            yield ""


def _first(lines: list[str], most: int, what: str, *, cells: bool = False) -> list[str]:
    """The first lines, and how many more there are."""
    if len(lines) <= most:
        return lines
    kept = max(most - 1, 0)
    more = f"… {len(lines) - kept} more {what}: see the report"
    return [*lines[:kept], f"| | {more} | | | | |" if cells else f"- {more}"]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 2]} …"


def _text(text: str) -> str:
    """Text from outside as plain text of Markdown, on one line."""
    plain = markdown_text(_REFERENCE.sub(_JOINER, _cut(one_line(text))))
    return plain.replace("_", "\\_").replace("#", "\\#")


def _code(text: str) -> str:
    """The text as it is, as code."""
    line = one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
