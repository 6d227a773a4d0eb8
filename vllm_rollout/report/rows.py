"""Rows of a report, drawn from evidence: gates, gates that never ran, steps, the end."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vllm_rollout.model.evidence import Attachment, Evidence, GateResult, GateRun, Step
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.text import one_line
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod, worst
from vllm_rollout.report.formatting import cut, headline, short_title

ROLLOUT = "rollout"
"""Where a row belongs that is about no single environment."""

_CONCLUSION = f"{ROLLOUT}::conclusion"
"""Node id of the row that says how the rollout ended, as the banner does."""

_LONGEST_WORDS = 2_000
_NOT_IN_NODE_ID = re.compile(r"[^A-Za-z0-9_.,:=\[\]-]+")
_NOT_IN_ANCHOR = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportItem:
    """One row. `node_id` is unique in the report; `verdicts` is never empty."""

    node_id: str
    title: str
    item: str
    environment: str
    verdicts: tuple[Verdict, ...]
    duration_seconds: float = 0.0
    attachments: tuple[Attachment, ...] = ()
    load: LoadSummary | None = None
    load_verdict: Verdict | None = None
    """The latency verdict reached on `load`, whichever gate reached it."""
    missing: bool = False
    """Whether it stands for a gate that the policy asks for and that did not run."""
    gate: str = ""
    """The gate that it is a result of; empty for a row about a run, a step or the end."""

    @property
    def outcome(self) -> Outcome:
        """The worst of the verdicts."""
        return worst([verdict.outcome for verdict in self.verdicts])

    @property
    def telling(self) -> Verdict:
        """The verdict that stands for the row."""
        return _telling(self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """All results of one gate in one run. `anchor` is the page's address of it."""

    anchor: str
    items: tuple[ReportItem, ...]

    @property
    def title(self) -> str:
        """The gate's name."""
        return self.items[0].title

    @property
    def environment(self) -> str:
        """Where it was asked; `ROLLOUT` for a step."""
        return self.items[0].environment

    @property
    def outcome(self) -> Outcome:
        """The worst of its results."""
        return worst([item.outcome for item in self.items])

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of its verdicts, in order."""
        return tuple(verdict for item in self.items for verdict in item.verdicts)

    @property
    def duration_seconds(self) -> float:
        """How long its results took together."""
        return sum(item.duration_seconds for item in self.items)

    @property
    def telling(self) -> Verdict:
        """The verdict that stands for the row."""
        return _telling(self.verdicts)


def _telling(verdicts: Sequence[Verdict]) -> Verdict:
    """The first of the worst that did not pass, else the one with most figures."""
    outcome = worst([verdict.outcome for verdict in verdicts])
    lost = [v for v in verdicts if v.outcome is outcome and not v.passed]
    return lost[0] if lost else max(verdicts, key=_figures)


def _figures(verdict: Verdict) -> int:
    return sum(figure is not None for figure in (verdict.measured, verdict.limit, verdict.upper))


def findings(result: GateResult) -> tuple[Verdict, ...]:
    """The gate's verdicts and an inconclusive one for each thing that kept it from knowing."""
    found = list(result.verdicts)
    if result.error or result.unreachable:
        error = _last_line(result.error)
        if result.unreachable not in error:
            silent = f"nothing answered at {result.unreachable}"
            error = f"{error} ({result.unreachable})" if error else silent
        remedy = result.remedy or "Fix what is named and run the gate again."
        if result.unreachable and not result.remedy:
            remedy = "Check that the deployment is up and the address is right."
        elif "from pytest-timeout" in result.error:
            remedy = "Give gates time: set pytest-timeout's `timeout` to 0, or above a load's time."
        found.append(_unknown(error, remedy))
    if result.skipped:
        found.append(_unknown(f"not run: {one_line(result.skipped)}", "Run the gate."))
    if not found:
        found.append(_unknown("the gate reached no verdict", "Run the gate again."))
    return tuple(map(_cut, found))


def _cut(verdict: Verdict) -> Verdict:
    """The verdict in words of a bounded length; the evidence holds all of them."""
    longest = max(len(verdict.reason), len(verdict.remedy))
    if longest <= _LONGEST_WORDS:
        return verdict
    reason, remedy = (cut(each, _LONGEST_WORDS) for each in (verdict.reason, verdict.remedy))
    return replace(verdict, reason=reason, remedy=remedy)


def remedy_of(evidence: Evidence) -> str:
    """Return what to do about the worst that the gates found; empty where nothing is known."""
    found = [v for run in evidence.runs for gate in run.gates for v in findings(gate)]
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        for verdict in found:
            if verdict.outcome is outcome and verdict.remedy:
                return one_line(verdict.remedy)
    return ""


def change_unsaid(run: GateRun) -> str:
    """Return what changed under the gates; empty if a gate has named it: what could not be read."""
    said = run.unread and any(run.changed == gate.error for gate in run.gates)
    return "" if said else run.changed


def report_items(evidence: Evidence) -> list[ReportItem]:
    """All rows, in order of the runs. They pass together only if the evidence passes."""
    items: list[ReportItem] = []
    for group, run in zip(run_names(evidence.runs), evidence.runs, strict=True):
        items += _run_items(run, group)
    items += _step_items(evidence)
    end = headline(evidence)
    if evidence.exit_code is not None or not items:
        items.append(
            ReportItem(
                node_id=_CONCLUSION,
                title="Conclusion",
                item=end.word,
                environment=ROLLOUT,
                verdicts=(Verdict(outcome=end.outcome, reason=end.sentence, n=1),),
            )
        )
    return items


def run_names(runs: Sequence[GateRun]) -> list[str]:
    """A name for each run: its environment, with a number where that is gated again."""
    return numbered([run.deployment.environment for run in runs])


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number where one is there already."""
    before = [names[:number].count(each) for number, each in enumerate(names)]
    return [f"{each}-{n + 1}" if n else each for each, n in zip(names, before, strict=True)]


def gate_rows(run: GateRun, group: str) -> list[GateRow]:
    """One row for each gate of the run, and for what else keeps it from passing."""
    found: dict[str, list[ReportItem]] = {}
    for item in _run_items(run, group):
        found.setdefault(item.gate or item.node_id.partition("::")[2], []).append(item)
    rows: list[GateRow] = []
    for name, items in found.items():
        anchor = _NOT_IN_ANCHOR.sub("-", f"gate-{group}-{name}")
        while any(row.anchor == anchor for row in rows):
            anchor += "-"
        rows.append(GateRow(anchor=anchor, items=tuple(items)))
    return rows


def step_rows(evidence: Evidence) -> list[GateRow]:
    """One row for each step that has an outcome."""
    return [GateRow(anchor="", items=(item,)) for item in _step_items(evidence)]


def _step_items(evidence: Evidence) -> Iterator[ReportItem]:
    for number, step in enumerate(evidence.steps, start=1):
        if step.outcome is not None:
            yield _step_item(number, step, step.outcome)


def _run_items(run: GateRun, group: str) -> Iterator[ReportItem]:
    environment = run.deployment.environment
    names: set[str] = set()
    for gate in run.gates:
        name = _NOT_IN_NODE_ID.sub("_", gate.item.rpartition("::")[2]) or "gate"
        while name in names:
            name += "_"
        names.add(name)
        yield ReportItem(
            node_id=f"{group}::{name}",
            gate=gate.gate,
            title=short_title(gate.title),
            item=gate.item,
            environment=environment,
            verdicts=findings(gate),
            duration_seconds=gate.duration_seconds,
            attachments=_attachments(gate),
            load=run.loads.get(gate.load),
            load_verdict=latency_verdict(run, gate.load),
        )
    for gate_name in run.missing:
        verdict = _unknown("the policy asks for this gate and it did not run", "Run it, too.")
        row = _run_item(run, group, f"missing-{gate_name}", gate_name, verdict)
        yield replace(row, missing=True, gate=gate_name)
    if not run.gates and not run.missing:
        verdict = _unknown("no gate ran, so nothing is known", "Select gates and run them.")
        yield _run_item(run, group, "gates", "Gates", verdict)
    if changed := change_unsaid(run):
        verdict = _unknown(changed, "Run the gates again while the deployment stands still.")
        yield _run_item(run, group, "unchanged", "One unchanged build", verdict)


def _run_item(run: GateRun, group: str, name: str, title: str, verdict: Verdict) -> ReportItem:
    """A row about the run as a whole or about a gate that left no result."""
    return ReportItem(
        node_id=f"{group}::{_NOT_IN_NODE_ID.sub('_', name)}",
        title=one_line(title),
        item="",
        environment=run.deployment.environment,
        verdicts=(verdict,),
    )


def _step_item(number: int, step: Step, outcome: Outcome) -> ReportItem:
    title = one_line(step.title)
    reason = one_line(step.detail) or title
    return ReportItem(
        node_id=f"{ROLLOUT}::{number:02}-{_NOT_IN_NODE_ID.sub('_', title)}",
        title=title,
        item=f"step {number}",
        environment=ROLLOUT,
        verdicts=(Verdict(outcome=outcome, reason=reason, n=1),),
    )


def _attachments(gate: GateResult) -> tuple[Attachment, ...]:
    if "\n" in gate.error.strip():
        return (*gate.attachments, Attachment(title="Error", text=gate.error))
    return gate.attachments


def latency_verdict(run: GateRun, load: str) -> Verdict | None:
    """The verdict on latency that was reached on that load of the run, if any was."""
    verdicts = (v for gate in run.gates if gate.load == load for v in gate.verdicts)
    return next((v for v in verdicts if _is_of_latency(v)), None)


def _is_of_latency(verdict: Verdict) -> bool:
    """Return True if its figures are seconds on the plot of a load's latencies."""
    if verdict.limit is None or verdict.confidence is None:
        return False
    # None: in evidence of schema 1, or of a team's own gate.
    methods = (VerdictMethod.ORDER_STATISTICS, None)
    return verdict.method in methods and verdict.unit == "s"


def _last_line(text: str) -> str:
    """The line of an error that names it: the last of a traceback, the only one of a message."""
    return one_line(text.strip().rpartition("\n")[2])


def _unknown(reason: str, remedy: str) -> Verdict:
    return Verdict(outcome=Outcome.INCONCLUSIVE, reason=reason, remedy=remedy)
