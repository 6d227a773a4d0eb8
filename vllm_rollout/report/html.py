"""The HTML report: pytest-html's page, filled with evidence.

Its template, style and script are used as they are; its plugin is not, for nothing is run here.
Everything goes through Jinja2 with autoescape on, and control characters are made visible first,
so text from a model, a log or an address is only ever text.
"""

import json
import platform
import sys
from collections import Counter
from datetime import datetime
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from vllm_rollout.model.evidence import Attachment, Evidence, GateRun
from vllm_rollout.model.text import one_line, printable
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome
from vllm_rollout.next_command import sign_off_command
from vllm_rollout.report import formatting as words
from vllm_rollout.report.plots import latency_plot, over_time_plot
from vllm_rollout.report.rows import CONCLUSION, ReportItem, report_items

if TYPE_CHECKING:
    from jinja2 import Environment, Template

LONGEST_ATTACHMENT = 2_000
"""Characters shown of a model's answer or a log; the evidence holds all of it."""

# pytest-html's script filters, colours and sorts rows by these words of its own.
_GROUPS = {Outcome.PASS: "Passed", Outcome.FAIL: "Failed", Outcome.INCONCLUSIVE: "Error"}
# Worst first; the script needs a filter for each of the others, and the style hides those.
_FILTERS = {"failed": Outcome.FAIL, "error": Outcome.INCONCLUSIVE, "passed": Outcome.PASS}
_UNUSED = ("skipped", "xfailed", "xpassed", "rerun", "retried")

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
        finalize=lambda value: printable(value) if type(value) is str else value,
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


@cache
def _page() -> tuple["Template", str]:
    """pytest-html's page, and its style."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("pytest_html", "resources"), autoescape=True, undefined=StrictUndefined
    )
    style = files("pytest_html").joinpath("resources", "style.css").read_text(encoding="utf-8")
    return made.get_template("index.jinja2"), style


def page_html(evidence: Evidence) -> str:
    """The whole report, one page that fetches nothing."""
    template, _ = _page()
    return template.render(page_fields(evidence))


def page_fields(evidence: Evidence) -> dict[str, Any]:
    """The variables of pytest-html's page."""
    items = report_items(evidence)
    counts = Counter(item.outcome for item in items)
    outcomes = {
        name: {"label": outcome.value, "value": counts[outcome]}
        for name, outcome in _FILTERS.items()
    }
    _, style = _page()
    now, title = datetime.now(), words.report_title(evidence)  # noqa: DTZ005 - as a clock shows it
    return {
        "title": title,
        "date": f"{now:%d-%b-%Y}",
        "time": f"{now:%H:%M:%S}",
        "version": metadata.version("pytest-html"),
        "styles": style,
        "run_count": words.outcome_counts(evidence),
        "running_state": "finished",
        "self_contained": True,
        "outcomes": {**outcomes, **{name: {"label": name, "value": 0} for name in _UNUSED}},
        "table_head": table_header(),
        "additional_summary": {"prefix": [summary_html(evidence)], "summary": [], "postfix": []},
        "test_data": json.dumps(
            {
                "title": title,
                "environment": {
                    "vllm-rollout": str(escape(one_line(evidence.suite_version))),
                    "Python": platform.python_version(),
                    "Platform": sys.platform,
                },
                "tests": {item.node_id: [_row_data(item)] for item in items},
                "renderCollapsed": ["passed"],
                "initialSort": "original",
            }
        ),
    }


def _row_data(item: ReportItem) -> dict[str, Any]:
    """A row as the script takes it: its cells, its details, and what it is sorted by."""
    return {
        "result": _GROUPS[item.outcome],
        "gate": str(_gate(item)),
        "environment": str(escape(item.environment)),
        "resultsTableRow": table_row(item),
        "extras": [{"name": None, "format_type": "html", "content": details_html(item)}],
        "log": "",
    }


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
            sign_off=sign_off_command(evidence.model, evidence.digest, "--as", "NAME"),
            to_read=_to_read(evidence) if evidence.awaits_sign_off else [],
            run_counts=_run_counts,
            risk=words.risk_text,
            duration=f"{(evidence.finished - evidence.started).total_seconds():,.0f} s",
        )
    )


def _to_read(evidence: Evidence) -> list[Attachment]:
    """The model's outputs that a person reads before signing."""
    gates = (gate for run in evidence.runs for gate in run.gates if gate.gate == "outputs")
    return [attachment for gate in gates for attachment in gate.attachments]


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
    reasons = dict.fromkeys(one_line(v.reason) for v in item.verdicts)
    remedies = dict.fromkeys(one_line(v.remedy) for v in item.verdicts if v.remedy)
    cells = {
        "outcome": escape(item.outcome.upper()),
        "gate": _gate(item),
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


def _gate(item: ReportItem) -> Markup:
    """Title and pytest id."""
    title = escape(item.title)
    if not item.item:
        return title
    return title + Markup("<br><small>{}</small>").format(one_line(item.item))


def _lines(texts: list[str]) -> Markup:
    return Markup("<br>").join(one_line(text) for text in texts)


def _run_counts(run: GateRun) -> str:
    counts = Counter(gate.outcome for gate in run.gates)
    counts[Outcome.INCONCLUSIVE] += len(run.missing)
    return ", ".join(f"{counts[kind]} {kind}" for kind in Outcome if counts[kind]) or "none ran"
