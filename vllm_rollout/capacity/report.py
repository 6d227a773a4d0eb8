"""Files of a capacity search: `capacity.json`, and a page drawn from the same figures."""

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from vllm_rollout.capacity.model import Capacity, Probe, Purpose
from vllm_rollout.capacity.plot import capacity_plot
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.text import all_printable, one_line
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.html import environment

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityReport:
    """One search, whole or as far as it came."""

    schema: int = SCHEMA
    run_id: str
    suite_version: str
    deployment: Deployment
    base_url: str
    revision: int | None
    build: Build | None
    policy_digest: str
    slos: Slos
    expected_per_second: float
    alone_seconds: float
    """Latency of single requests before the first load."""
    started: datetime
    finished: datetime
    probes: tuple[Probe, ...]
    capacity: Capacity
    verdict: Verdict
    exit_code: int


_ADAPTER: TypeAdapter[CapacityReport] = TypeAdapter(CapacityReport)


def as_json(report: CapacityReport) -> dict[str, Any]:
    """The report as strict JSON data: a figure that nobody could measure is null."""
    data: dict[str, Any] = all_printable(_strict(_ADAPTER.dump_python(report, mode="json")))
    return data


def write_capacity(report: CapacityReport, folder: Path) -> Path:
    """Write `capacity.json` and `capacity.html` into `folder`; return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(report), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "capacity.json").write_text(text + "\n", encoding="utf-8")
    page = folder / "capacity.html"
    page.write_text(capacity_html(report), encoding="utf-8")
    return page.resolve()


def capacity_html(report: CapacityReport) -> str:
    """One page, complete in itself."""
    return (
        environment()
        .get_template("capacity.html.jinja")
        .render(
            report=report,
            probes=[(_word(probe), probe) for probe in report.probes],
            plots=[
                Markup(plot)  # noqa: S704 - drawn from numbers; its texts are escaped
                for plot in capacity_plot(
                    report.probes, report.capacity, report.slos, report.expected_per_second
                )
            ],
        )
    )


def probe_line(probe: Probe) -> str:
    """Return how one probe ended, on one line: `PASS  40/s  prove  P95 0.21 s  39.9/s good  …`."""
    return (
        f"{_word(probe)} {format_value(probe.per_second, '1/s')} ({probe.aim}, "
        f"{format_value(probe.seconds, 's')}): P95 {format_value(probe.p95_seconds, 's')}, "
        f"{format_value(probe.good_per_second, '1/s')} good, {probe.failures:,} of "
        f"{probe.requests:,} failed; {one_line(probe.reason)}"
    )


def probes_table(report: CapacityReport) -> Table:
    """All probes by rate, for a terminal."""
    table = Table(title=f"{report.deployment}: capacity", title_justify="left")
    for column in ("rate", "found", "for", "seconds", "requests", "failed", "P50", "P95", "good"):
        justify: Literal["left", "right"] = "left" if column in ("found", "for") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for probe in sorted(report.probes, key=lambda each: each.per_second):
        table.add_row(
            format_value(probe.per_second, "1/s"),
            Text(_word(probe), style=_STYLES.get(probe.outcome, "")),
            str(probe.aim),
            format_value(probe.seconds, "s"),
            f"{probe.requests:,}",
            f"{probe.failures:,}",
            format_value(probe.p50_seconds, "s"),
            format_value(probe.p95_seconds, "s"),
            format_value(probe.good_per_second, "1/s"),
        )
    return table


_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red"}


def _word(probe: Probe) -> str:
    """The outcome; of an exploring probe that did not fail what it leans to."""
    if probe.unmeasured or probe.generator_limited or probe.outcome is not Outcome.INCONCLUSIVE:
        return probe.outcome.upper()
    if probe.aim is Purpose.EXPLORE:
        return "HELD" if probe.holds else "DOUBTFUL"
    return "INCONCLUSIVE"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner) for inner in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value
