"""A pytest plugin that replays evidence: each recorded result is reported again, none is run.

`pytest -p vllm_rollout.report.replay evidence.json` collects one item per row of the report and
reports it with its recorded outcome and duration, so that pytest's own JUnit writer and
pytest-html render evidence, whoever gathered it. An inconclusive result is an error of the item's
setup: apart from failures in JUnit and in the HTML report, which calls that group Inconclusive.
"""

import platform
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from pytest_html import extras

from vllm_rollout.model.evidence import Evidence, read_evidence
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.formatting import one_line, report_title, verdict_text
from vllm_rollout.report.html import details_html, summary_html, table_header, table_row
from vllm_rollout.report.rows import ReportItem, report_items

_EVIDENCE = pytest.StashKey[Evidence]()


class RecordedError(Exception):
    """A recorded result that is not a pass."""


class RecordedItem(pytest.Item):
    """One row of the report."""

    def __init__(self, *, recorded: ReportItem, **kwargs: Any) -> None:
        super().__init__(nodeid=recorded.node_id, **kwargs)
        self.recorded = recorded
        self.user_properties += _properties(recorded)

    def setup(self) -> None:
        """Raise if the recorded outcome is inconclusive."""
        if self.recorded.outcome is Outcome.INCONCLUSIVE:
            raise RecordedError

    def runtest(self) -> None:
        """Raise if the recorded outcome is a fail."""
        if self.recorded.outcome is Outcome.FAIL:
            raise RecordedError


class EvidenceFile(pytest.File):
    """An `evidence.json`."""

    def collect(self) -> Iterator[RecordedItem]:
        """One item per row of the report."""
        for recorded in report_items(_evidence(self.config)):
            yield RecordedItem.from_parent(self, name=recorded.node_id, recorded=recorded)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> EvidenceFile | None:
    """Collect the evidence file, and nothing else."""
    return EvidenceFile.from_parent(parent, path=file_path) if file_path.suffix == ".json" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what was recorded in place of what the replay itself took and raised."""
    report = yield
    if not isinstance(item, RecordedItem):
        return report
    recorded = item.recorded
    decides = report.when == "call" or report.failed
    report.duration = recorded.duration_seconds if decides else 0.0
    if decides:
        report.__dict__.update(recorded=recorded, extras=[extras.html(details_html(recorded))])
    if report.failed:
        report.longrepr = _explanation(recorded)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Exit with 0 once all reports are written: a replayed fail is no error of the replay."""
    yield
    if session.exitstatus == pytest.ExitCode.TESTS_FAILED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_metadata(metadata: dict[str, Any], config: pytest.Config) -> None:
    """Say what made the evidence and what rendered it; nothing that names a machine."""
    metadata.clear()
    metadata["vllm-rollout"] = str(escape(one_line(_evidence(config).suite_version)))
    metadata["Python"] = platform.python_version()
    metadata["Platform"] = sys.platform


def pytest_html_report_title(report: Any) -> None:
    """Name the report and the groups its rows are counted and filtered by."""
    report.title = report_title(_evidence(report.config))
    labels = {"failed": "fail", "error": "inconclusive", "passed": "pass"}
    unused = [outcome for outcome in report.outcomes if outcome not in labels]
    for outcome, label in labels.items():
        report.outcomes[outcome]["label"] = label
    # Worst first; pytest-html's script needs the unused ones, so they stay and are not shown.
    for outcome in [*labels, *unused]:
        report.outcomes[outcome] = report.outcomes.pop(outcome)


def pytest_html_results_summary(prefix: list[str], session: pytest.Session) -> None:
    """Put the banner, the gate runs, the timeline and the sign-off on top."""
    prefix.append(summary_html(_evidence(session.config)))


def pytest_html_results_table_header(cells: list[str]) -> None:
    """Our columns in place of pytest-html's."""
    cells[:] = table_header()


def pytest_html_results_table_row(report: pytest.TestReport, cells: list[str]) -> None:
    """Our cells; a phase that decided nothing has no row."""
    recorded: ReportItem | None = getattr(report, "recorded", None)
    cells[:] = table_row(recorded) if recorded is not None else []


def pytest_html_results_table_html(data: list[str]) -> None:
    """No log: the replay wrote none, and the details hold what was recorded."""
    data.clear()


def _evidence(config: pytest.Config) -> Evidence:
    """The evidence named on the command line; read once, by whichever hook comes first."""
    if _EVIDENCE not in config.stash:
        config.stash[_EVIDENCE] = read_evidence(Path(config.args[0]))
    return config.stash[_EVIDENCE]


def _explanation(recorded: ReportItem) -> str:
    """Return the JUnit text: the outcome and the deciding reason first, then every verdict."""
    deciding = next(v for v in recorded.verdicts if v.outcome is recorded.outcome)
    lines = [f"{recorded.outcome}: {one_line(deciding.reason)}"]
    for verdict in recorded.verdicts:
        lines += ["", f"{verdict.outcome.upper()}  {verdict_text(verdict)}"]
    return "\n".join(lines)


def _properties(recorded: ReportItem) -> list[tuple[str, object]]:
    """The exact figures of each verdict, as JUnit properties."""
    several = len(recorded.verdicts) > 1
    return [
        (f"{name}.{number}" if several else name, value)
        for number, verdict in enumerate(recorded.verdicts, start=1)
        for name, value in _figures(verdict).items()
        if value is not None
    ]


def _figures(verdict: Verdict) -> dict[str, object]:
    return {
        "outcome": verdict.outcome.value,
        "measured": verdict.measured,
        "lower": verdict.lower,
        "upper": verdict.upper,
        "limit": verdict.limit,
        "unit": verdict.unit or None,
        "confidence": verdict.confidence,
        "n": verdict.n,
    }
