"""Own parts of the HTML report: the top, the cells of a row and its details.

Everything goes through Jinja2 with autoescape on, and control characters are made visible first,
so text from a model, a log or an address is only ever text.
"""

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome
from vllm_rollout.report import formatting as words
from vllm_rollout.report.plots import latency_plot, over_time_plot
from vllm_rollout.report.rows import CONCLUSION, ReportItem, report_items

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_ATTACHMENT = 2_000
"""Characters shown of a model's answer or a log; the evidence holds all of it."""

# pytest-html's script filters, colours and sorts rows by these words of its own.
_GROUPS = {Outcome.PASS: "Passed", Outcome.FAIL: "Failed", Outcome.INCONCLUSIVE: "Error"}

_COLUMNS = (
    ("outcome", "Result", True),
    ("gate", "Gate", True),
    ("environment", "Environment", True),
    ("measured", "Measured", False),
    ("bound", "Bound", False),
    ("limit", "Limit", False),
    ("n", "n", False),
    ("why", "Why", False),
    ("remedy", "What to do", False),
    ("took", "Took", False),
)
_SORTED_BY = {"outcome": "result"}


@cache
def environment() -> "Environment":
    """The templates, escaping whatever is filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("vllm_rollout.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: words.printable(value) if type(value) is str else value,
    )
    made.filters.update(
        cut=lambda text: words.cut(text, LONGEST_ATTACHMENT),
        time=words.time_text,
        value=format_value,
        measured=words.measured_text,
        bound=words.bound_text,
        limit=words.limit_text,
        count=words.count_text,
    )
    return made


def summary_html(evidence: Evidence) -> str:
    """The top of the report: banner, what needs attention, gate runs, timeline, sign-off."""
    items = report_items(evidence)
    return (
        environment()
        .get_template("summary.html.jinja")
        .render(
            evidence=evidence,
            headline=words.headline(evidence),
            counts=words.outcome_counts(evidence),
            attention=[
                item
                for item in items
                if not (item.outcome is Outcome.PASS or item.node_id == CONCLUSION)
            ],
            run_counts=_run_counts,
            risk=words.risk_text,
            duration=f"{(evidence.finished - evidence.started).total_seconds():,.0f} s",
        )
    )


def table_header() -> list[str]:
    """The header cells of the results table; sorting is pytest-html's, by column type."""
    return [
        f'<th class="sortable" data-column-type="{_SORTED_BY.get(name, name)}">{title}</th>'
        if sortable
        else f"<th>{title}</th>"
        for name, title, sortable in _COLUMNS
    ]


def table_row(item: ReportItem) -> list[str]:
    """The cells of an item's row, one line per verdict in each.

    pytest-html takes a row's group from the text of its first cell; that cell is hidden and rides
    with the one that shows the outcome in our words.
    """
    gate = escape(item.title)
    if item.item:
        gate += Markup("<br><small>{}</small>").format(words.one_line(item.item))
    reasons = dict.fromkeys(words.one_line(v.reason) for v in item.verdicts)
    remedies = dict.fromkeys(words.one_line(v.remedy) for v in item.verdicts if v.remedy)
    cells = {
        "outcome": escape(item.outcome.upper()),
        "gate": gate,
        "environment": escape(item.environment),
        "measured": _lines([words.measured_text(v) for v in item.verdicts]),
        "bound": _lines([words.bound_text(v) for v in item.verdicts]),
        "limit": _lines([words.limit_text(v) for v in item.verdicts]),
        "n": _lines([words.count_text(v) for v in item.verdicts]),
        "why": _lines(list(reasons)),
        "remedy": _lines(list(remedies)),
        "took": escape(
            format_value(item.duration_seconds, "s") if item.duration_seconds else words.NONE
        ),
    }
    row = [f'<td class="col-{name}">{cells[name]}</td>' for name, _, _ in _COLUMNS]
    return [f'<td class="col-result" hidden>{_GROUPS[item.outcome]}</td>{row[0]}', *row[1:]]


def details_html(item: ReportItem) -> str:
    """Return the content of an opened row: verdicts, its load run's plots, attachments."""
    plots = []
    if item.load is not None:
        made = (
            latency_plot(item.load, item.load_verdict),
            over_time_plot(item.load, item.load_verdict),
        )
        plots = [Markup(plot) for plot in made if plot]  # noqa: S704 - escaped where it is drawn
    context: dict[str, Any] = {"item": item, "plots": plots}
    return environment().get_template("details.html.jinja").render(context)


def _lines(texts: list[str]) -> Markup:
    return Markup("<br>").join(words.one_line(text) for text in texts)


def _run_counts(run: GateRun) -> str:
    counts = Counter(gate.outcome for gate in run.gates)
    counts[Outcome.INCONCLUSIVE] += len(run.missing)
    return ", ".join(f"{counts[kind]} {kind}" for kind in Outcome if counts[kind]) or "none ran"
