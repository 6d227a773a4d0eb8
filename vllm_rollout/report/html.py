"""The HTML report: our own page in pytest-html's, filled with evidence.

pytest-html's template is the frame: title, list of results for its script, its script. Its plugin
is not used, for nothing is run here. Everything goes through Jinja2 with autoescape on, and control
characters are made visible first, so text from a model, a log or an address is only ever text.
"""

import json
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.text import one_line, printable
from vllm_rollout.model.units import format_duration, format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.next_command import sign_off_command
from vllm_rollout.report import first_screen
from vllm_rollout.report import formatting as words
from vllm_rollout.report.changes import Comparison, rise_text
from vllm_rollout.report.derivation import working
from vllm_rollout.report.plots import latency_plot, over_time_plot
from vllm_rollout.report.rows import (
    ROLLOUT,
    GateRow,
    ReportItem,
    gate_rows,
    latency_verdict,
    report_items,
    run_names,
    step_rows,
)
from vllm_rollout.report.timeline import rollout_moments

if TYPE_CHECKING:
    from jinja2 import Environment, Template

LONGEST_ATTACHMENT = 2_000
"""Characters shown of a model's answer or a log; the evidence holds all of it."""

_BY_NAME = ("--as", "NAME")
"""The options of a sign-off on a form to be filled in, where nothing proves the name."""

# pytest-html's script filters and sorts by these words of its own.
_GROUPS = {Outcome.PASS: "Passed", Outcome.FAIL: "Failed", Outcome.INCONCLUSIVE: "Error"}
# Worst first; the script needs a filter for each of the others.
_FILTERS = {"failed": Outcome.FAIL, "error": Outcome.INCONCLUSIVE, "passed": Outcome.PASS}
_UNUSED = ("skipped", "xfailed", "xpassed", "rerun", "retried")
_COLUMNS = (("result", "Result"), ("gate", "Gate"), ("environment", "Environment"))
# What pytest-html's head lacks: its page is of English, fits a phone, and asks nobody for anything.
_CHARSET = '<meta charset="utf-8"/>'
_FITS = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
_FETCHES_NOTHING = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\"/>"
)
_HEAD = (
    ("<html>", '<html lang="en">'),
    (_CHARSET, f"{_CHARSET}\n    {_FITS}\n    {_FETCHES_NOTHING}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCharts:
    """A load of a gate run with what is drawn of it."""

    load: LoadSummary
    plots: tuple[Markup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    """A gate run as the page shows it; `name` is its environment, numbered if that came before."""

    name: str
    run: GateRun
    rows: tuple[GateRow, ...]
    loads: tuple[LoadCharts, ...]


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
        line=one_line,
        time=words.time_text,
        value=format_value,
        measured=words.measured_text,
        bound=words.bound_text,
        deciding=words.deciding_bound_text,
        limit=words.limit_text,
        count=words.count_text,
        risk=words.risk_text,
        rise=rise_text,
        gauge=first_screen.gauge,
        working=working,
        took=lambda seconds: format_value(seconds, "s") if seconds else words.NONE,
    )
    return made


@cache
def _frame() -> "Template":
    """pytest-html's page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("pytest_html", "resources"), autoescape=True, undefined=StrictUndefined
    )
    return made.get_template("index.jinja2")


def page_html(
    evidence: Evidence, comparisons: Sequence[Comparison], sign_off_words: Sequence[str] | None
) -> str:
    """The whole report, one page that fetches nothing.

    `sign_off_words` are the options by which the policy has a person sign off; None where the
    policy is not known.
    """
    inside = summary_html(evidence, comparisons, sign_off_words)
    page = _frame().render(page_fields(evidence, inside))
    for theirs, ours in _HEAD:
        page = page.replace(theirs, ours, 1)
    return page


def page_fields(evidence: Evidence, inside: str = "") -> dict[str, Any]:
    """The variables of pytest-html's page, with ours `inside` it."""
    items = report_items(evidence)
    counts = Counter(item.outcome for item in items)
    outcomes = {
        name: {"label": outcome.value, "value": counts[outcome]}
        for name, outcome in _FILTERS.items()
    }
    now, title = datetime.now(), words.report_title(evidence)  # noqa: DTZ005 - as a clock shows it
    style = files("vllm_rollout.report").joinpath("templates", "report.css")
    return {
        "title": title,
        "date": f"{now:%d-%b-%Y}",
        "time": f"{now:%H:%M:%S}",
        "version": metadata.version("pytest-html"),
        "styles": style.read_text(encoding="utf-8"),
        "run_count": words.outcome_counts(evidence),
        "running_state": "finished",
        "self_contained": True,
        "outcomes": {**outcomes, **{name: {"label": name, "value": 0} for name in _UNUSED}},
        "table_head": [
            f'<th class="sortable" data-column-type="{name}">{title}</th>'
            for name, title in _COLUMNS
        ],
        "additional_summary": {"prefix": [inside], "summary": [], "postfix": []},
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
    """A row as pytest-html's script takes it: its cells, and what it is sorted by."""
    cells = (_GROUPS[item.outcome], item.node_id, item.environment)
    return {
        "result": _GROUPS[item.outcome],
        "gate": str(escape(item.node_id)),
        "environment": str(escape(item.environment)),
        "resultsTableRow": [
            f'<td class="col-{name}">{escape(text)}</td>'
            for (name, _), text in zip(_COLUMNS, cells, strict=True)
        ],
        "extras": [],
        "log": "",
    }


def summary_html(
    evidence: Evidence,
    comparisons: Sequence[Comparison] = (),
    sign_off_words: Sequence[str] | None = None,
) -> str:
    """The page inside pytest-html's. `comparisons` and `sign_off_words`: as `page_html`."""
    sections = list(_sections(evidence))
    deciding = first_screen.deciding_run(evidence)
    first = next((each for each in sections if each.run is deciding), None)
    counts = Counter(row.outcome for each in sections for row in each.rows)
    by_name = sign_off_words is None or tuple(sign_off_words[:1]) == _BY_NAME[:1]
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            evidence=evidence,
            headline=words.headline(evidence),
            decision=first_screen.decision(evidence),
            sections=sections,
            first=first,
            counts_text=words.counts_text(counts),
            attention=list(_attention(evidence, sections)),
            counts=[(kind.value, counts[kind]) for kind in _FILTERS.values()],
            total=counts.total(),
            comparisons=comparisons,
            sign_off=sign_off_command(
                evidence.model,
                evidence.digest,
                *(_BY_NAME if by_name else sign_off_words or ()),
            ),
            policy_known=sign_off_words is not None,
            outputs=first_screen.outputs(evidence),
            soaks=[
                (each.name, row)
                for each in sections
                for row in each.rows
                if row.items[0].gate == "soak"
            ],
            moments=rollout_moments(evidence),
            duration=format_duration(
                timedelta(seconds=round((evidence.finished - evidence.started).total_seconds()))
            ),
        )
    )


def _sections(evidence: Evidence) -> Iterator[RunSection]:
    for name, run in zip(run_names(evidence.runs), evidence.runs, strict=True):
        yield RunSection(
            name=name,
            run=run,
            rows=tuple(gate_rows(run, name)),
            loads=tuple(_charts(run, each) for each in run.loads),
        )


def _attention(
    evidence: Evidence, sections: Sequence[RunSection]
) -> Iterator[tuple[str, str, str, Verdict]]:
    """Yield what did not pass: its anchor on the page, where it was, its title, the verdict."""
    for section in sections:
        for row in section.rows:
            for verdict in row.verdicts:
                if not verdict.passed:
                    yield row.anchor, section.name, row.title, verdict
    for row in step_rows(evidence):
        for verdict in row.verdicts:
            if not verdict.passed:
                yield "rollout", ROLLOUT, row.title, verdict


def _charts(run: GateRun, name: str) -> LoadCharts:
    """The load's charts: once, whichever gates were judged on it."""
    load, verdict = run.loads[name], latency_verdict(run, name)
    drawn = filter(None, (latency_plot(load, verdict), over_time_plot(load, verdict)))
    plots = tuple(Markup(plot) for plot in drawn)  # noqa: S704 - escaped where it is drawn
    return LoadCharts(load=load, plots=plots)
