"""The report in a real browser: what its script makes of it, from a file and without a network."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_rollout.judge.verdict import Verdict
from vllm_rollout.report.evidence import Evidence, GateResult
from vllm_rollout.report.render import write_reports

pytestmark = pytest.mark.browser


@pytest.fixture
def dom(tmp_path: Path) -> Callable[[Evidence], str]:
    """Render evidence and give the DOM that chromium has after the page's script ran."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("VLLM_ROLLOUT_REQUIRE") == "all":
            pytest.fail("no chromium on PATH: apt-get install chromium")
        pytest.skip("no chromium on PATH: apt-get install chromium")

    def load(evidence: Evidence) -> str:
        page = write_reports(evidence, tmp_path / "report").html
        done = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",  # chromium refuses to run as root with one
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return done.stdout

    return load


def test_the_page_shows_banner_rows_and_filters(
    dom: Callable[[Evidence], str],
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
    page = dom(make_evidence(*gates))
    table = page[page.index('<table id="results-table">') : page.index("<footer>")]
    assert '<p class="word">FAIL</p>' in page
    for group, row_class in (("PASS", "passed"), ("INCONCLUSIVE", "error"), ("FAIL", "failed")):
        assert f'<td class="col-outcome">{group}</td>' in table
        assert f'<tbody class="results-table-row {row_class}"' in table
    assert "1 inconclusive" in page
    assert table.count("<svg") == 6


def test_a_hostile_script_does_not_run(dom: Callable[[Evidence], str], hostile: Evidence) -> None:
    """Every field holds a script that would rename the page; the page keeps its name."""
    page = dom(hostile)
    assert "<title>hacked</title>" not in page
    assert '<title id="head-title">hacked' not in page
    assert '<img src="x"' not in page
    assert '<td class="col-outcome">FAIL</td>' in page
