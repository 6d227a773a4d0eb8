"""The report in a real browser: what its script makes of it, from a file and without a network."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.browser import dom

from vllm_rollout.model.evidence import Evidence, GateResult
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.report.render import write_reports

pytestmark = pytest.mark.browser


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[Evidence], str]:
    """Render evidence and give the DOM that a browser has after the page's script ran."""
    return lambda evidence: dom(
        write_reports(evidence, tmp_path / "report").html.as_uri(), tmp_path / "profile"
    )


def test_the_page_shows_banner_rows_and_filters(
    shown: Callable[[Evidence], str],
    make_gate: Callable[..., GateResult],
    make_evidence: Callable[..., Evidence],
    passing: Verdict,
    failing: Verdict,
    unknown: Verdict,
) -> None:
    """pytest-html's script finds every group it filters by, and shows every row."""
    gates = (
        make_gate("latency", passing, load="load"),
        make_gate("error_rate", unknown, load="load"),
        make_gate("load_capacity", failing, load="load"),
    )
    page = shown(make_evidence(*gates))
    table = page[page.index('<table id="results-table">') : page.index("<footer>")]
    assert '<p class="word">FAIL</p>' in page
    for group, row_class in (("PASS", "passed"), ("INCONCLUSIVE", "error"), ("FAIL", "failed")):
        assert f'<td class="col-outcome">{group}</td>' in table
        assert f'<tbody class="results-table-row {row_class}"' in table
    assert "1 inconclusive" in page
    assert table.count("<svg") == 6


def test_a_hostile_script_does_not_run(shown: Callable[[Evidence], str], hostile: Evidence) -> None:
    """Every field holds a script that would rename the page; the page keeps its name."""
    page = shown(hostile)
    assert "<title>hacked</title>" not in page
    assert '<title id="head-title">hacked' not in page
    assert '<img src="x"' not in page
    assert '<td class="col-outcome">FAIL</td>' in page
