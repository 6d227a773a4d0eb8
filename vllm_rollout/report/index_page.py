"""The page over all runs of a reports folder: filter, compare two, trends. One file."""

import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from vllm_rollout.model.deployment import short_digest
from vllm_rollout.model.text import one_line, printable
from vllm_rollout.model.units import counted
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report import formatting as words
from vllm_rollout.report.html import environment
from vllm_rollout.report.rows import numbered
from vllm_rollout.report.run_index import ALL, Bounds, RunIndex, read_index, run_folders
from vllm_rollout.report.run_rows import EnvironmentRow, ListedGate, RunRow
from vllm_rollout.report.trends import trend_svg, trends

NAME = "index.html"
_TRENDS_SHOWN = 8
"""Plots beyond that are behind a click."""


def write_index(reports: Path, bounds: Bounds = ALL) -> Path:
    """Write the page into the reports folder, whole or not at all; return its path.

    Raises:
        OSError: it cannot be written.
    """
    page, partial = reports / NAME, reports / f"index.{secrets.token_hex(4)}.partial"
    try:
        for _ in range(3):  # a run that ended meanwhile may have written it, and is in it then
            folders = run_folders(reports)
            html = index_html(read_index(reports, bounds=bounds))
            partial.write_text(html, encoding="utf-8")
            partial.replace(page)
            if run_folders(reports) == folders:
                break
    finally:
        partial.unlink(missing_ok=True)
    return page.resolve()


def index_html(index: RunIndex) -> str:
    """The page, complete in itself."""
    drawn = trends(index)
    return (
        environment()
        .get_template("index.html.jinja")
        .render(
            index=index,
            models=list(dict.fromkeys(row.model for row in index.runs)),
            environments=list(
                dict.fromkeys(e.environment for row in index.runs for e in row.environments)
            ),
            outcomes=[outcome.value for outcome in Outcome],
            trends=[
                (trend, Markup(trend_svg(trend)))  # noqa: S704 - escaped where it is drawn
                for trend in drawn
            ],
            open=len(drawn) <= _TRENDS_SHOWN,
            link=quote,
            short=short_digest,
            counted=counted,
            data=_script_data([_compared(row) for row in index.runs]),
        )
    )


def _script_data(data: Any) -> Markup:
    """JSON for a script element: nothing in it ends the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def _compared(row: RunRow) -> dict[str, Any]:
    """The part of a run that two are compared by, in the words of the reports, made printable."""
    names = numbered([each.environment for each in row.environments])
    return {
        "name": printable(row.name),
        "page": quote(row.page),
        "facts": {
            "Verdict": row.verdict,
            "Conclusion": row.conclusion,
            "Started": words.time_text(row.started),
            "Finished": words.time_text(row.finished),
            "Evidence": short_digest(row.evidence, 16),
            **{
                f"{title}, {name}": value
                for name, each in zip(names, row.environments, strict=True)
                for title, value in _build_facts(each).items()
            },
        },
        "gates": {gate.key: _gate(gate) for gate in row.gates},
    }


def _build_facts(each: EnvironmentRow) -> dict[str, str]:
    parts = {
        key.removesuffix("_digest").replace("_", " ").capitalize(): one_line(short_digest(value))
        for key, value in each.build_parts.items()
        if value
    }
    return {
        "Build": short_digest(each.build),
        **parts,
        "Revision": "" if each.revision is None else str(each.revision),
        "Policy": short_digest(each.policy),
    }


def _gate(gate: ListedGate) -> list[Any]:
    return [gate.environment, gate.title, gate.outcome.value, [_figures(v) for v in gate.verdicts]]


def _figures(verdict: Verdict) -> list[str]:
    """Measured, bound and limit of a verdict; the reason where it has no figures or is no pass."""
    reason = "" if verdict.passed and verdict.measured is not None else one_line(verdict.reason)
    return [
        words.measured_text(verdict),
        words.deciding_bound_text(verdict),
        words.limit_text(verdict),
        reason,
    ]
