"""Evidence explained on a terminal: each verdict with its figures and derivation."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import counted, format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.derivation import exact, working
from vllm_rollout.report.formatting import report_title
from vllm_rollout.report.rows import ReportItem, report_items

_INDENT = (0, 0, 0, 2)
_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def sentence(verdict: Verdict) -> str:
    """The verdict in one sentence: `PASS: P95 is at most 1.3 s, at 95% confidence …`."""
    return f"{verdict.outcome.upper()}: {one_line(verdict.reason).rstrip('.')}."


def figures_table(verdict: Verdict) -> Table:
    """The verdict's figures, to six digits."""
    table = Table("measured", "lower bound", "upper bound", "limit", "confidence", "n")
    figures = (verdict.measured, verdict.lower, verdict.upper, verdict.limit)
    table.add_row(
        *(exact(figure, verdict.unit) for figure in figures),
        exact(verdict.confidence, "ratio"),
        f"{verdict.n:,}",
    )
    return table


def explain_verdict(verdict: Verdict) -> Group:
    """A sentence, a table unless there is no figure, the working, and what would change it."""
    parts: list[RenderableType] = [Text(sentence(verdict), style=_STYLES[verdict.outcome])]
    if verdict.measured is not None or verdict.limit is not None:
        parts.append(figures_table(verdict))
    parts += [Text(line) for line in working(verdict)]
    if verdict.remedy:
        parts.append(Text(f"What would change it: {one_line(verdict.remedy)}"))
    return Group(*parts)


def explain_evidence(evidence: Evidence) -> Group:
    """Every verdict of a run under the gate that reached it, and what the run is called."""
    head = Text(f"{report_title(evidence)}\n{evidence.digest}")
    return Group(head, *(_explain_item(item) for item in report_items(evidence)))


def _explain_item(item: ReportItem) -> Group:
    parts: list[RenderableType] = [Text(f"\n{item.title}  {one_line(item.node_id)}", style="bold")]
    if item.load is not None:
        parts.append(Padding(Text(_load(item.load)), _INDENT, expand=False))
    parts += [Padding(explain_verdict(verdict), _INDENT, expand=False) for verdict in item.verdicts]
    return Group(*parts)


def _load(load: LoadSummary) -> str:
    """Return the load that the verdicts were reached on."""
    kinds = ", ".join(f"{one_line(kind)} {n:,}" for kind, n in load.failures_by_kind.items())
    return (
        f"Load: {counted(load.total, 'request')} at {format_value(load.rate_per_second, '1/s')} "
        f"for {format_value(load.duration_seconds, 's')}, {load.failures:,} of them failed"
        + (f" ({kinds})" if kinds else "")
        + (f"; stopped early: {one_line(load.stopped)}" if load.stopped else "")
        + (f"; incomplete: {one_line(load.incomplete)}" if load.incomplete else "")
        + "."
    )
